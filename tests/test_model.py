"""Path probabilities, beam search and user vectors of the model, against their definitions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retrieval.context import Category, ContextSchema, Number
from retrieval.paths.trie import path_trie
from trainer.config import TrainConfig
from trainer.deep_retrieval.layers import PathModel
from trainer.deep_retrieval.paths import path_nodes, random_paths

SCHEMA = ContextSchema((Category("country", ("AT", "NL")), Number("age", 40.0, 10.0)))


Encoder = Literal["lru", "gru"]
ENCODERS: tuple[Encoder, ...] = ("lru", "gru")


def make_model(depth: int, width: int, seed: int = 0, encoder: Encoder = "lru") -> PathModel:
    """A small random network whose probabilities are far from uniform."""
    torch.manual_seed(seed)
    config = TrainConfig(
        encoder=encoder, depth=depth, embedding=6, hidden=8, width=width, candidate_paths=1, paths_per_item=1
    )
    model = PathModel(config, width, np.ones(9, np.int64), SCHEMA).eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.out.weight *= 5
            for weight in layer.node.parameters():
                weight.normal_()  # the scales would be 0
    return model


def all_paths(model: PathModel, user: torch.Tensor, used: Sequence[int] | None = None) -> torch.Tensor:
    """Log p of every path, (N, K^D), one layer at a time by the definition (eq. 1).

    used: the paths in use; a layer's softmax is over the nodes that continue to one, and other paths have -inf.
    """
    every = list(itertools.product(range(model.width), repeat=model.depth))
    in_use = {every[path][:d] for path in (range(len(every)) if used is None else used) for d in range(model.depth + 1)}
    columns = []
    for nodes in every:
        total = torch.zeros(len(user))
        for d, layer in enumerate(model.layers):
            maps = zip(layer.node, layer.nodes, nodes[:d], strict=True)
            scales, shifts = sum((linear(table[node]) for linear, table, node in maps), torch.zeros(16)).chunk(2)
            hidden = torch.relu(layer.user(user) * (1 + scales) + shifts)
            exist = torch.tensor([(*nodes[:d], node) in in_use for node in range(model.width)])
            logits = layer.out(hidden).masked_fill(~exist, -torch.inf)
            total = total + logits[:, nodes[d]] - logits.logsumexp(dim=1)
        columns.append(total.nan_to_num(nan=-torch.inf))
    return torch.stack(columns, 1)


@pytest.mark.parametrize(("depth", "width"), [(1, 7), (2, 5), (3, 4)])
def test_the_paths_are_a_probability_distribution(depth: int, width: int) -> None:
    """The probabilities of all K^D paths sum to one for each user."""
    model = make_model(depth, width)
    with torch.no_grad():
        total = all_paths(model, torch.randn(5, 6)).exp().sum(1)

    assert total.numpy() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("depth", "width"), [(1, 7), (2, 5), (3, 4)])
def test_path_log_probs_are_those_of_the_definition(depth: int, width: int) -> None:
    """path_log_probs gives each user the log probabilities of that user's own J paths."""
    model = make_model(depth, width)
    user = torch.randn(5, 6)
    paths = torch.randint(width**depth, (5, 3))
    with torch.no_grad():
        expected = all_paths(model, user).gather(1, paths)
        computed = model.path_log_probs(user, paths)

    assert torch.allclose(expected, computed, atol=1e-5)


@pytest.mark.parametrize(("depth", "width"), [(1, 7), (2, 5), (3, 4)])
def test_with_a_trie_the_paths_in_use_are_the_whole_distribution(depth: int, width: int) -> None:
    """A layer's softmax is over the nodes that continue to a path in use, so the probabilities of these sum to one."""
    model = make_model(depth, width)
    used = np.sort(np.random.default_rng(0).choice(width**depth, 6, replace=False))
    user, paths = torch.randn(5, 6), torch.from_numpy(used).expand(5, -1)
    with torch.no_grad():
        computed = model.path_log_probs(user, paths, torch.from_numpy(path_trie(used, depth, width)))
        expected = all_paths(model, user, used.tolist()).gather(1, paths)

    assert torch.allclose(expected, computed, atol=1e-5)
    assert computed.exp().sum(1).numpy() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("depth", "width"), [(1, 7), (2, 5), (3, 4)])
def test_beam_search_at_full_width_is_the_exhaustive_ranking(depth: int, width: int) -> None:
    """With a beam of K^D every path comes back, the most probable first."""
    model = make_model(depth, width)
    user = torch.randn(5, 6)
    with torch.no_grad():
        everything = all_paths(model, user)
        paths, log_probs = model.beam_search(user, width**depth)

    expected = everything.sort(dim=1, descending=True).values
    assert torch.allclose(expected, log_probs, atol=1e-5)
    assert torch.allclose(everything.gather(1, paths), log_probs, atol=1e-5)
    assert paths.sort(dim=1).values.tolist() == [list(range(width**depth))] * 5


def test_beam_search_ranks_by_joint_probability() -> None:
    """A narrow beam equals a slow search that keeps the best prefixes by joint probability at each layer."""
    model = make_model(3, 4)
    user = torch.randn(6, 6)
    with torch.no_grad():
        everything = all_paths(model, user).exp().reshape(6, 4, 4, 4)
        paths, _ = model.beam_search(user, 3)
    for row in range(6):
        kept: list[tuple[int, ...]] = [()]
        for _ in range(3):
            longer = [(*prefix, node) for prefix in kept for node in range(4)]
            kept = sorted(longer, key=lambda prefix: -float(everything[(row, *prefix)].sum()))[:3]

        assert paths[row].tolist() == [16 * a + 4 * b + c for a, b, c in kept]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), beam=st.integers(1, 70), live=st.integers(1, 20))
@example(seed=0, beam=8, live=8)
def test_the_beam_spends_no_place_on_a_dead_prefix(seed: int, beam: int, live: int) -> None:
    """With prefix tables, a wide enough beam finds every path in use and no other; unused places hold -1."""
    model = make_model(3, 4)
    rng = np.random.default_rng(seed)
    path_ids = np.sort(rng.choice(64, live, replace=False))
    user = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        everything = all_paths(model, user, path_ids.tolist())
        rows, log_probs = model.beam_search(user, beam, torch.from_numpy(path_trie(path_ids, 3, 4)))

    paths = torch.where(rows < 0, -1, torch.from_numpy(path_ids)[rows])
    assert paths.shape == (2, min(beam, 64))
    for row in range(2):
        reached = paths[row][paths[row] >= 0]
        assert set(reached.tolist()) <= set(path_ids.tolist())
        assert len(set(reached.tolist())) == len(reached)
        assert torch.allclose(everything[row][reached], log_probs[row][: len(reached)], atol=1e-5)
        assert torch.isneginf(log_probs[row][len(reached) :]).all()
        if beam >= live:
            assert len(reached) == live


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("length", [0, 1, 3])
def test_the_last_user_vector_is_that_of_the_whole_encoder(length: int, kind: Encoder) -> None:
    """encoder.last, which is exported, gives for the last position the vector that the whole encoder gives there."""
    encoder = make_model(2, 5, encoder=kind).encoder.eval()
    history = torch.tensor([[3, 4, 1]]).where(torch.arange(3) < length, -1)
    categories, numbers = torch.tensor([[2]]), torch.tensor([[0.5]])
    rows = torch.cat([torch.tensor([[encoder.start]]), history], dim=1)
    vectors = encoder.item_embedding(rows.clamp(min=0)) * (rows >= 0).unsqueeze(2)
    with torch.no_grad():
        last = encoder.last(vectors, torch.tensor([length]), categories, numbers)

        assert torch.allclose(last, encoder(history, categories, numbers)[:, length], atol=1e-6)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_empty_history_has_a_user_vector(kind: Encoder) -> None:
    """An empty history is the start item alone; batched with a full one, both keep the vectors they have alone."""
    encoder = make_model(2, 5, encoder=kind).encoder
    categories, numbers = torch.tensor([[0], [2]]), torch.tensor([[0.0], [1.0]])
    history = torch.tensor([[-1, -1], [3, 4]])
    with torch.no_grad():
        both = encoder(history, categories, numbers)
        empty = encoder(history[:1, :1], categories[:1], numbers[:1])
        full = encoder(history[1:], categories[1:], numbers[1:])

    assert torch.allclose(both[0, 0], empty[0, 0], atol=1e-6)
    assert torch.allclose(both[1, 2], full[0, 2], atol=1e-6)
    assert torch.isfinite(both).all()


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_user_vector_depends_only_on_earlier_items(kind: Encoder) -> None:
    """Items appended to a sequence change none of the vectors at the positions before them."""
    encoder = make_model(2, 5, encoder=kind).encoder
    context = torch.tensor([[1]]), torch.tensor([[0.5]])
    with torch.no_grad():
        short = encoder(torch.tensor([[1, 2]]), *context)
        long = encoder(torch.tensor([[1, 2, 7, 8]]), *context)

    assert torch.allclose(short, long[:, :3], atol=1e-6)


@pytest.mark.parametrize("kind", ENCODERS)
def test_context_reaches_the_user_vector(kind: Encoder) -> None:
    """A different country or age gives a different vector."""
    encoder = make_model(2, 5, encoder=kind).encoder
    history = torch.tensor([[1, 2]])
    with torch.no_grad():
        vectors = [
            encoder(history, torch.tensor([[country]]), torch.tensor([[age]]))[0, -1]
            for country, age in ((1, 0.0), (2, 0.0), (1, 1.0))
        ]

    assert not torch.allclose(vectors[0], vectors[1], atol=1e-3)
    assert not torch.allclose(vectors[0], vectors[2], atol=1e-3)


def test_layers_have_node_embeddings_of_their_own() -> None:
    """Node 2 of layer 1 is not node 2 of layer 2."""
    tables = make_model(3, 5).layers[2].tables()

    assert len(tables) == 2
    assert not torch.allclose(tables[0], tables[1])


@given(path=st.integers(0, 4**5 - 1))
def test_a_path_id_is_its_nodes_in_base_k(path: int) -> None:
    """path_id = sum of c_d K^(D-1-d)."""
    nodes = path_nodes(torch.tensor(path), 5, 4)

    assert path == sum(int(node) * 4 ** (4 - d) for d, node in enumerate(nodes))


@pytest.mark.parametrize(("width", "depth", "count"), [(2, 2, 4), (10, 3, 3), (3, 2, 2), (1, 3, 1)])
def test_random_paths_differ_within_an_item(width: int, depth: int, count: int) -> None:
    """An item's random paths are distinct, even where hardly more paths exist than it needs."""
    paths = random_paths(500, count, depth, width, np.random.default_rng(0))

    assert paths.min() >= 0
    assert paths.max() < width**depth
    assert (np.diff(np.sort(paths, axis=1), axis=1) > 0).all()
