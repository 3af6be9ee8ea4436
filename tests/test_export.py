"""The exported version computes what the trained network computes."""

from __future__ import annotations

import copy
import dataclasses
from typing import Literal

import numpy as np
import onnx
import pytest
import torch

from index_store.version import npy
from retrieval.context import Category, ContextSchema, Number
from retrieval.golden import replay
from retrieval.paths.rerank import SOFTMAX
from retrieval.paths.structure import PathStructure
from retrieval.paths.trie import path_trie
from retrieval.searcher import Searcher
from retrieval.session import open_session
from tests.conftest import Planted
from tests.planted import changed
from trainer.config import TrainConfig
from trainer.data.context import UserContext
from trainer.data.dataset import Dataset
from trainer.data.requests import Requests, training_requests
from trainer.deep_retrieval.layers import PathModel
from trainer.errors import ExportRefused
from trainer.publish.index import make_index
from trainer.publish.network import Network, to_onnx
from trainer.publish.parity import check_parity


def network_of(planted: Planted) -> Network:
    """The exported network, in torch."""
    return Network(planted.trained.model).eval()


def with_network(structure: PathStructure, network: Network) -> PathStructure:
    """The structure with an ONNX file made of `network`."""
    return dataclasses.replace(structure, session=open_session(to_onnx(network, ContextSchema())))


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("beam", [1, 5, 36, 256])
def test_onnx_equals_torch(planted: Planted, batch: int, beam: int) -> None:
    """User vectors, paths and log-probabilities agree for any batch, history length and beam."""
    rng = np.random.default_rng(batch)
    histories = [rng.integers(40, size=rng.integers(0, 7)) for _ in range(batch)]
    index, nothing = planted.index, (np.zeros((batch, 0), np.int64), np.zeros((batch, 0), np.float32))
    beams = planted.structure.search(histories, *nothing, beam)
    vectors = np.zeros((batch, 6, 16), np.float16)
    for row, history in zip(vectors, histories, strict=True):
        row[: len(history)] = index.item_vectors[history]
    inputs = vectors, np.array([len(history) for history in histories]), *nothing
    with torch.inference_mode():
        user, rows, log_probs = network_of(planted)(
            *map(torch.from_numpy, inputs), torch.tensor(beam), torch.from_numpy(planted.structure.trie)
        )

    assert np.allclose(user, beams.user, atol=1e-5)
    assert np.allclose(log_probs, beams.log_probs, atol=1e-4)
    assert (rows.numpy() == beams.paths).mean() > 0.99


def test_a_network_of_the_same_shape_has_its_own_weights(planted: Planted) -> None:
    """The graph that was traced for one network serves another one, whose file has all of the other's weights."""
    network, other = network_of(planted), copy.deepcopy(network_of(planted))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    first = to_onnx(network, ContextSchema())
    inputs = torch.randn(2, 3, 16).half(), torch.tensor([3, 2]), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0)
    inputs[0][1, 2] = 0
    feeds = (*inputs, torch.tensor(4), torch.from_numpy(planted.structure.trie))
    with torch.inference_mode():
        expected = other(*feeds)

    session = open_session(to_onnx(other, ContextSchema()))
    names = ("history", "length", "categories", "numbers", "beam", "trie")
    found = session.run(None, {name: feed.numpy() for name, feed in zip(names, feeds, strict=True)})

    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(found, expected, strict=True))
    assert to_onnx(network, ContextSchema()) == first


@pytest.mark.parametrize(("width", "encoder"), [(5, "lru"), (20, "lru"), (20, "gru")])
def test_onnx_equals_torch_with_three_layers_and_context(width: int, encoder: Literal["lru", "gru"]) -> None:
    """A tiny and a larger K, so that both ways to bound the beam are exported; some histories are empty."""
    torch.manual_seed(0)
    schema = ContextSchema((Category("country", ("a", "b")), Number("age", 0.0, 1.0)))
    config = TrainConfig(encoder=encoder, embedding=8, hidden=16, width=width, depth=3, history=6)
    model = PathModel(config, width, np.ones(50, np.int64), schema).eval()
    rng = np.random.default_rng(0)
    index = make_index(model, rng.integers(width**3, size=(50, 3)))
    network = Network(model).eval()
    session = open_session(to_onnx(network, schema))
    structure = PathStructure(session, index, path_trie(index.path_ids, 3, width), SOFTMAX, 6, 256)
    categories, numbers = rng.integers(3, size=(9, 1)), rng.normal(size=(9, 1)).astype(np.float32)
    offsets = np.cumsum([0, *rng.integers(0, 9, size=9)])
    clicks = rng.integers(50, size=offsets[-1]).astype(np.int32)
    dataset = Dataset(np.arange(50), np.arange(9), clicks, offsets, UserContext(schema, categories, numbers))
    histories = [dataset.sequence(user).astype(np.int64) for user in range(9)]
    requests = Requests(50, histories, histories, categories, numbers, np.arange(9))

    check_parity(network, structure, requests)


@pytest.mark.parametrize("value", [7e4, np.nan])
def test_vectors_that_float16_cannot_hold_are_refused(planted: Planted, value: float) -> None:
    """The error names float16, and does not report a difference between ONNX and torch."""
    model = copy.deepcopy(planted.trained.model)
    with torch.no_grad():
        model.item_vectors[0, 0] = value

    with pytest.raises(ExportRefused, match="float16"):
        make_index(model, planted.trained.paths)


def test_the_gate_refuses_another_start_of_the_history(planted: Planted) -> None:
    """The export is compared with the trained network, not only with itself."""
    network = copy.deepcopy(network_of(planted))
    with torch.no_grad():
        network.start[::2].add_(1.0)  # the same shift of all numbers would not change what a LayerNorm gives
    structure = with_network(planted.structure, network)
    requests = training_requests(planted.dataset, planted.split, 7, 0)

    with pytest.raises(ExportRefused, match="differs from the trained one"):
        check_parity(network, structure, requests)


def test_the_gate_refuses_another_network(planted: Planted) -> None:
    """A weight of the encoder or of a path layer that changed after the export is noticed."""
    requests = training_requests(planted.dataset, planted.split, 7, 0)
    check_parity(network_of(planted), planted.structure, requests)
    for name in ("model.encoder.recurrence.norm.weight", "model._layers.1.out.weight"):
        network = copy.deepcopy(network_of(planted))
        with torch.no_grad():
            network.get_parameter(name).mul_(1.2)

        with pytest.raises(ExportRefused, match=r"ONNX and torch differ|differs from the trained"):
            check_parity(network, planted.structure, requests)


def test_the_onnx_file_reveals_nothing_of_this_machine(planted: Planted) -> None:
    """It has no file paths, stack traces or external data, and only standard operators."""
    content = bytes(planted.version.parts["model.onnx"])
    model = onnx.load_from_string(content)

    assert b".py" not in content
    assert b"/" not in b"".join(node.doc_string.encode() for node in model.graph.node)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


def test_path_lists_are_the_inverted_assignment(planted: Planted) -> None:
    """Item v is on path c exactly if c is among the paths of v; on a path the most clicked items come first."""
    index = planted.index
    for place, path in enumerate(index.path_ids.tolist()):
        items = index.path_items[index.path_offsets[place] : index.path_offsets[place + 1]].tolist()
        expected = [v for v, paths in enumerate(planted.trained.paths.tolist()) if path in paths]

        assert sorted(items) == expected
        assert items == sorted(items, key=lambda item: (-index.item_bias[item], item))
    assert len(index.path_items) == planted.trained.paths.size


def test_the_index_of_an_assignment_by_hand(planted: Planted) -> None:
    """Three items are on two paths; item 2 comes before item 0 because its bias is larger."""
    model = copy.deepcopy(planted.trained.model)
    model.item_bias = torch.tensor([-1.0, -2.0, -0.5])

    index = make_index(model, np.array([[7], [3], [7]]))

    assert index.path_ids.tolist() == [3, 7]
    assert index.path_offsets.tolist() == [0, 1, 3]
    assert index.path_items.tolist() == [1, 2, 0]


def test_the_reads_are_within_the_budget(planted: Planted) -> None:
    """Beam times per_path was chosen so that a request reads at most 9 k items on average."""
    facts = planted.searcher.facts
    requests = training_requests(planted.dataset, planted.split, 100, 0)
    reads = [
        planted.index.read(row, facts.per_path).lengths.sum()
        for beams in requests.beams(planted.structure, facts.beam)
        for row in beams.paths
    ]

    assert np.mean(reads) <= 9 * planted.config.k


def test_the_frontier_is_measured(planted: Planted) -> None:
    """Of all pairs of beam and cap within the budget, the chosen one reads most of brute force's answer."""
    from trainer.deep_retrieval.reads import SERVED_READS
    from trainer.publish.frontier import BEAMS, CAPS, choose_beam

    requests = training_requests(planted.dataset, planted.split, 30, 0)
    index, k = planted.index, 2
    shares = {}
    for beam in BEAMS:
        (beams,) = requests.beams(planted.structure, beam)
        for cap in CAPS:
            hits, reads = 0, 0
            for user, row in zip(beams.user, beams.paths, strict=True):
                logits = index.item_vectors.astype(np.float32) @ user + index.item_bias
                best = sorted(range(len(logits)), key=lambda item, scores=logits: -scores[item])[:k]  # type: ignore[misc]
                read = index.read(row, cap).items.tolist()
                hits += len(set(best) & set(read))
                reads += len(read)
            if reads <= SERVED_READS * k * 30:
                shares[beam, cap] = hits

    chosen = choose_beam(planted.structure, requests, planted.config.replace(k=k))

    assert shares[chosen] == max(shares.values())


@pytest.mark.parametrize(("beam", "per_path"), [(30, "auto"), ("auto", 30), (30, 30)])
def test_a_fixed_beam_or_per_path_is_kept(planted: Planted, beam: int | str, per_path: int | str) -> None:
    """Fixed values stay, even if they read more than the budget."""
    from trainer.publish.frontier import choose_beam

    requests = training_requests(planted.dataset, planted.split, 10, 0)
    config = planted.config.replace(k=1, beam=beam, per_path=per_path)

    chosen = choose_beam(planted.structure, requests, config)

    assert beam in {"auto", chosen[0]}
    assert per_path in {"auto", chosen[1]}


def test_golden_queries_replay(planted: Planted) -> None:
    """The version that they were recorded with gives the same answers; one query has an empty history."""
    version = planted.version
    golden = version.document("golden.json")

    replay(planted.searcher, golden)

    assert [] in [request["history"] for request in golden["requests"]]


@pytest.mark.parametrize("part", ["model", "item_vectors", "item_bias", "path_items", "reranker", "item_ids"])
def test_golden_queries_notice_a_part_of_another_version(planted: Planted, other: Planted, part: str) -> None:
    """One part from another version, valid in itself, changes the answers."""
    from index_store.errors import VersionDamaged

    version, donor = planted.version, other.version
    (name,) = (name for name in version.parts if name.split(".")[0] == part)
    part_of_donor = bytes(donor.parts[name]) if part != "item_ids" else npy(np.asarray(version.item_ids) + 1)
    mixed = changed(version, **{part: part_of_donor})

    with pytest.raises(VersionDamaged, match="golden"):
        replay(Searcher.open(mixed), version.document("golden.json"))
