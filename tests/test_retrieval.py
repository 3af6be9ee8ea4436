"""Fetch and rerank against slow, obvious twins."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from retrieval.paths.search import Beams, Query, answer, fetch, join, rerank, search

from index_store.errors import VersionDamaged
from retrieval.paths import search as retrieval
from retrieval.paths.index import SOFTMAX, Index, Reranker
from retrieval.query import Limits
from tests.conftest import Planted
from trainer.publish.version import open_session

ITEMS, SIZE = 12, 3


def random_index(rng: np.random.Generator, paths: int) -> tuple[Index, dict[int, list[int]]]:
    """An index of `paths` random path lists, and the same as a dictionary."""
    lists = {
        int(path): rng.permutation(ITEMS)[: rng.integers(1, 6)].tolist()
        for path in np.sort(rng.choice(50, paths, replace=False))
    }
    index = Index(
        np.array(list(lists), np.int64),
        np.cumsum([0, *map(len, lists.values())]).astype(np.int64),
        np.concatenate(list(lists.values())).astype(np.int32),
        rng.normal(size=(ITEMS, SIZE)).astype(np.float16),
        rng.normal(size=ITEMS).astype(np.float32),
    )
    return index, lists


def slow_answer(
    index: Index, lists: dict[int, list[int]], beams: Beams, row: int, n: int, k: int, excluded: list[int], weights: Any
) -> list[tuple[int, float]]:
    """One request's best items and scores, with dictionaries and loops."""
    found: dict[int, list[float]] = {}
    for place, log_prob in zip(beams.paths[row].tolist(), beams.log_probs[row], strict=True):
        for item in lists[int(index.path_ids[place])][:n] if place >= 0 else ():
            found.setdefault(item, []).append(float(log_prob))
    scored = []
    for item, log_probs in found.items():
        if item in excluded:
            continue
        bias = float(index.item_bias[item])
        logit = float(index.item_vectors[item] @ beams.user[row]) + bias
        features = (logit, bias, math.log(sum(map(math.exp, log_probs))), len(log_probs))
        scored.append((item, sum(w * f for w, f in zip(weights, features, strict=True))))
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:k]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), batch=st.integers(1, 4), n=st.integers(1, 6), k=st.integers(1, 8))
@example(seed=0, batch=3, n=2, k=4)
def test_answers_equal_the_slow_twin(seed: int, batch: int, n: int, k: int) -> None:
    """Fetching, joining duplicates, excluding, scoring and cutting a whole batch equals doing it one by one."""
    rng = np.random.default_rng(seed)
    index, lists = random_index(rng, paths=8)
    beams = Beams(
        rng.normal(size=(batch, SIZE)).astype(np.float32),
        np.stack([rng.choice(np.arange(-1, len(index.path_ids)), 5, replace=False) for _ in range(batch)]),
        np.log(rng.random((batch, 5))).astype(np.float32),
    )
    weights = rng.normal(size=4)
    excluded = [rng.integers(ITEMS, size=rng.integers(4)) for _ in range(batch)]

    reranker = Reranker("lr", weights.astype(np.float32), 0.5)
    answers = rerank(index, beams, fetch(index, beams, n), reranker, [k] * batch, excluded)

    for row in range(batch):
        expected = slow_answer(index, lists, beams, row, n, k, excluded[row].tolist(), weights)
        assert answers[row].items.tolist() == [item for item, _ in expected]
        assert np.allclose(answers[row].scores, [score + 0.5 for _, score in expected], atol=1e-4)
        assert answers[row].paths == (beams.paths[row] >= 0).sum()
        every = slow_answer(index, lists, beams, row, n, ITEMS, [], weights)
        assert answers[row].candidates == len(every)
        assert answers[row].read == sum(
            len(lists[int(index.path_ids[place])][:n]) for place in beams.paths[row].tolist() if place >= 0
        )


def test_equal_scores_go_by_item() -> None:
    """0 and -0 are equal, and less than nothing is less, the further the less."""
    index = Index(
        np.array([1]),
        np.array([0, 6]),
        np.array([5, 4, 3, 2, 1, 0], np.int32),
        np.array([[0.0], [-0.0], [-1.0], [2.0], [-1.0], [-np.inf]], np.float16),
        np.zeros(6, np.float32),
    )
    beams = Beams(np.ones((1, 1), np.float32), np.array([[0]]), np.zeros((1, 1), np.float32))
    weights = np.array([-0.5, 0, 0, 0], np.float32)

    (found,) = rerank(index, beams, fetch(index, beams, 6), Reranker("lr", weights, -0.0), [6], [np.empty(0, np.int64)])

    assert found.items.tolist() == [5, 2, 4, 0, 1, 3]


def test_an_item_on_several_paths_is_one_candidate() -> None:
    """It is scored once, with the paths' probabilities summed and their number known."""
    index = Index(
        np.array([1, 2]),
        np.array([0, 2, 3]),
        np.array([0, 1, 0], np.int32),
        np.eye(2, dtype=np.float16),
        np.zeros(2, np.float32),
    )
    beams = Beams(np.ones((1, 2), np.float32), np.array([[0, 1]]), np.log(np.array([[0.5, 0.25]], np.float32)))

    postings = fetch(index, beams, 10)
    found = join(index, beams, postings)

    assert found.item.tolist() == [0, 1]
    assert np.exp(found.features[:, 2]) == pytest.approx([0.75, 0.5])
    assert found.features[:, 3].tolist() == [2, 1]
    assert postings.lengths.tolist() == [[2, 1]]


def test_what_is_excluded_costs_no_place() -> None:
    """Exclusion happens before the cut to k, so k items still come back."""
    index = Index(
        np.array([1]),
        np.array([0, 4]),
        np.arange(4, dtype=np.int32),
        np.eye(4, dtype=np.float16),
        np.zeros(4, np.float32),
    )
    beams = Beams(np.array([[4, 3, 2, 1]], np.float32), np.array([[0]]), np.zeros((1, 1), np.float32))

    (found,) = rerank(index, beams, fetch(index, beams, 10), SOFTMAX, [2], [np.array([0, 1])])

    assert found.items.tolist() == [2, 3]


def test_what_is_excluded_may_come_in_any_order_and_twice() -> None:
    """First, last, between, often, and what is no candidate."""
    index = Index(
        np.array([1]),
        np.array([0, 6]),
        np.arange(0, 12, 2, dtype=np.int32),
        np.zeros((12, 1), np.float16),
        np.zeros(12, np.float32),
    )
    beams = Beams(np.ones((1, 1), np.float32), np.array([[0]]), np.zeros((1, 1), np.float32))
    excluded = np.array([10, 11, 4, 0, 4, 3])

    (found,) = rerank(index, beams, fetch(index, beams, 6), SOFTMAX, [6], [excluded])

    assert found.items.tolist() == [2, 6, 8]
    assert found.candidates == 6


def test_a_beam_that_meets_no_path_finds_nothing() -> None:
    """No path in use: an empty answer, no error."""
    index, _ = random_index(np.random.default_rng(0), 3)
    beams = Beams(np.ones((1, SIZE), np.float32), np.array([[-1, -1]]), np.full((1, 2), -np.inf, np.float32))

    (found,) = rerank(index, beams, fetch(index, beams, 10), SOFTMAX, [5], [np.empty(0, np.int64)])

    assert found.items.tolist() == []
    assert (found.paths, found.read, found.candidates) == (0, 0, 0)


def test_padding_reaches_the_model_as_nothing() -> None:
    """Who is searched with somebody of a longer history is answered as alone: its vectors end in zeros."""
    index, _ = random_index(np.random.default_rng(0), 4)
    fed: dict[str, Any] = {}

    class Session:
        def run(self, _: Any, feeds: dict[str, Any]) -> list[Any]:
            fed.update(feeds)
            return [np.zeros((2, SIZE), np.float32), np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float32)]

    nothing = np.zeros((2, 0), np.int64), np.zeros((2, 0), np.float32)
    search(Session(), index, [np.array([3]), np.array([9, 1, 2, 3])], *nothing, 1, 3)

    assert fed["length"].tolist() == [1, 3]
    assert fed["history"][1].tolist() == index.item_vectors[[1, 2, 3]].tolist()  # the latest, oldest first
    assert fed["history"][0].tolist() == [index.item_vectors[3].tolist(), [0.0] * SIZE, [0.0] * SIZE]

    nobody = np.empty(0, np.int64)
    search(Session(), index, [nobody, np.array([3])], *nothing, 1, 3)
    assert fed["length"].tolist() == [0, 1]
    assert fed["history"].tolist() == [[[0.0] * SIZE], [index.item_vectors[3].tolist()]]
    search(Session(), index, [nobody, nobody], *nothing, 1, 3)
    assert fed["length"].tolist() == [0, 0]
    assert fed["history"].tolist() == [[[0.0] * SIZE]] * 2


@pytest.mark.parametrize("document", [None, {}, {"kind": "lr", "weights": {"logit": "x"}, "intercept": 0}])
def test_a_reranker_that_is_none_is_refused(document: Any) -> None:
    """Missing or other features are an error, not zeros."""
    with pytest.raises(VersionDamaged, match="reranker"):
        Reranker.from_json(document)


def test_a_reranker_with_nan_is_refused() -> None:
    """A weight that is not finite would make every order arbitrary."""
    document = Reranker("lr", np.array([np.nan, 0, 0, 0], np.float32), 0.0).to_json()

    with pytest.raises(VersionDamaged, match="finite"):
        Reranker.from_json(document)


@pytest.mark.parametrize(
    "paths", [np.array([[np.nan, 9.0]]), np.array([[0, 9]], np.int32), np.array([[0, 1]]), np.zeros((1, 3), np.int32)]
)
def test_what_no_version_answers_is_refused(paths: Any) -> None:
    """Rows that are no whole numbers, that the index has not, of another type, more than their log-probabilities."""
    index, _ = random_index(np.random.default_rng(0), 4)

    class Session:
        def run(self, *_: Any) -> list[Any]:
            return [np.zeros((1, SIZE), np.float32), paths, np.zeros((1, 2), np.float32)]

    nothing = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32)
    with pytest.raises(VersionDamaged):
        search(Session(), index, [np.array([0, 1])], *nothing, 2, 5)


def test_who_is_widened_together_reads_no_more_than_one_may(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven that never find enough: searched again in groups, with the answers that each has alone."""
    version = planted.version
    session = open_session(bytes(version.parts["model.onnx"]))
    parts = session, version.index, version.reranker
    queries = [Query(np.array([i]), [], [], 40, 2, 5, np.array([i])) for i in range(7)]
    monkeypatch.setattr(Limits, "READS", 100)
    reads: list[int] = []
    search_once = retrieval._answer_once

    def watched(*arguments: Any, whole_catalogue: bool = False) -> Any:
        if not whole_catalogue:
            reads.append(sum(query.per_path * arguments[-1] for query in arguments[3]))
        return search_once(*arguments, whole_catalogue=whole_catalogue)

    monkeypatch.setattr(retrieval, "_answer_once", watched)
    together = answer(*parts, queries, version.manifest.history, 20)

    # All seven with 2 paths; then with 4 (20 each), 8 (40 each), 16 (80 each), and 20 (100 each).
    assert reads == [70, 100, 40, 80, 80, 80, 40, *[80] * 7, *[100] * 7]
    monkeypatch.undo()
    alone = [answer(*parts, [query], version.manifest.history, 20)[0] for query in queries]
    for found, wanted in zip(together, alone, strict=True):
        assert found.items.tolist() == wanted.items.tolist()
        assert found.read == wanted.read


def test_as_many_as_there_are_are_found(planted: Planted) -> None:
    """39 of 40 items, one read of a path: what no searched path has is scored as if it were on the last of them."""
    version = planted.version
    session = open_session(bytes(version.parts["model.onnx"]))
    index = version.index
    query = Query(np.array([1, 5]), [], [], 39, 2, 1, np.array([1]))

    (found,) = answer(session, index, version.reranker, [query], version.manifest.history, 4)

    nothing = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32)
    beams = search(session, index, [query.history], *nothing, 4, version.manifest.history)
    on_path: dict[int, list[float]] = {}
    for row, log_prob in zip(beams.paths[0].tolist(), beams.log_probs[0].tolist(), strict=True):
        for item in index.read(np.array([row]), 1).items.tolist():
            on_path.setdefault(item, []).append(log_prob)
    assert len(on_path) <= 4
    scores = {}
    for item in set(range(40)) - {1}:
        log_probs = on_path.get(item, [beams.log_probs[0, -1]])
        logit = float(index.item_vectors[item].astype(np.float32) @ beams.user[0] + index.item_bias[item])
        features = [logit, index.item_bias[item], np.logaddexp.reduce(log_probs), len(log_probs)]
        scores[item] = float(version.reranker.weights @ features) + version.reranker.intercept
    assert sorted(found.items.tolist()) == sorted(scores)
    assert np.allclose(found.scores, sorted(scores.values(), reverse=True), atol=1e-3)
    assert found.candidates == 40


def test_a_widened_request_has_read_all_it_read(planted: Planted) -> None:
    """Searched with one path, then two, then four: the items of all three searches are counted."""
    version, k = planted.version, 8
    session = open_session(bytes(version.parts["model.onnx"]))
    history = np.array([1, 5])
    query = Query(history, [], [], k, 1, 2, history)
    index = version.index

    (found,) = answer(session, index, version.reranker, [query], version.manifest.history, 36)
    (narrow,) = answer(
        session, index, version.reranker, [dataclasses.replace(query, widen=False)], version.manifest.history, 36
    )

    reads, beam = 0, 1
    while True:
        nothing = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32)
        beams = search(session, index, [history], *nothing, beam, 6)
        items = index.read(beams.paths[0], 2).items
        reads += len(items)
        if beam == 1:
            assert narrow.read == reads
        if len(set(items.tolist()) - {1, 5}) >= k or beam >= 36:
            break
        beam = min(2 * beam, 36)
    assert beam > 2
    assert found.read == reads
