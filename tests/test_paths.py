"""Searching, reading and reranking of paths against slow, obvious twins."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from index_store.errors import VersionDamaged
from retrieval.paths.index import PathIndex, Postings
from retrieval.paths.rerank import SOFTMAX, Beams, Reranker, candidates, rerank
from retrieval.paths.structure import PathStructure
from retrieval.query import Limits, Query
from tests.conftest import Planted

ITEMS, SIZE = 12, 3


def random_index(rng: np.random.Generator, paths: int) -> tuple[PathIndex, dict[int, list[int]]]:
    """An index of `paths` random path lists, and the same as a dictionary."""
    lists = {
        int(path): rng.permutation(ITEMS)[: rng.integers(1, 6)].tolist()
        for path in np.sort(rng.choice(50, paths, replace=False))
    }
    index = PathIndex(
        np.array(list(lists), np.int64),
        np.cumsum([0, *map(len, lists.values())]).astype(np.int64),
        np.concatenate(list(lists.values())).astype(np.int32),
        rng.normal(size=(ITEMS, SIZE)).astype(np.float16),
        rng.normal(size=ITEMS).astype(np.float32),
    )
    return index, lists


def structure_of(index: PathIndex, session: Any = None, history: int = 5) -> PathStructure:
    """A structure over `index` whose network is `session`."""
    return PathStructure(session, index, None, SOFTMAX, history, 36)


def read(index: PathIndex, beams: Beams, n: int) -> Postings:
    """The first n items of each path."""
    return structure_of(index).read(beams, n)


def slow_answer(
    index: PathIndex,
    lists: dict[int, list[int]],
    beams: Beams,
    row: int,
    n: int,
    k: int,
    excluded: list[int],
    weights: Any,
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
    answers = rerank(index, beams, read(index, beams, n), reranker, [k] * batch, excluded)

    for row in range(batch):
        expected = slow_answer(index, lists, beams, row, n, k, excluded[row].tolist(), weights)
        assert answers[row].items.tolist() == [item for item, _ in expected]
        assert np.allclose(answers[row].scores, [score + 0.5 for _, score in expected], atol=1e-4)
        assert answers[row].short == (len(expected) < k)
        assert answers[row].paths == (beams.paths[row] >= 0).sum()
        every = slow_answer(index, lists, beams, row, n, ITEMS, [], weights)
        assert answers[row].candidates == len(every)
        assert answers[row].read == sum(
            len(lists[int(index.path_ids[place])][:n]) for place in beams.paths[row].tolist() if place >= 0
        )


def test_equal_scores_go_by_item() -> None:
    """0 and -0 are equal, and less than nothing is less, the further the less."""
    index = PathIndex(
        np.array([1]),
        np.array([0, 6]),
        np.array([5, 4, 3, 2, 1, 0], np.int32),
        np.array([[0.0], [-0.0], [-1.0], [2.0], [-1.0], [-np.inf]], np.float16),
        np.zeros(6, np.float32),
    )
    beams = Beams(np.ones((1, 1), np.float32), np.array([[0]]), np.zeros((1, 1), np.float32))
    weights = np.array([-0.5, 0, 0, 0], np.float32)

    (found,) = rerank(index, beams, read(index, beams, 6), Reranker("lr", weights, -0.0), [6], [np.empty(0, np.int64)])

    assert found.items.tolist() == [5, 2, 4, 0, 1, 3]


def test_an_item_on_several_paths_is_one_candidate() -> None:
    """It is scored once, with the paths' probabilities summed and their number known."""
    index = PathIndex(
        np.array([1, 2]),
        np.array([0, 2, 3]),
        np.array([0, 1, 0], np.int32),
        np.eye(2, dtype=np.float16),
        np.zeros(2, np.float32),
    )
    beams = Beams(np.ones((1, 2), np.float32), np.array([[0, 1]]), np.log(np.array([[0.5, 0.25]], np.float32)))

    postings = read(index, beams, 10)
    found = candidates(index, beams, postings)

    assert found.item.tolist() == [0, 1]
    assert np.exp(found.features[:, 2]) == pytest.approx([0.75, 0.5])
    assert found.features[:, 3].tolist() == [2, 1]
    assert postings.lengths.tolist() == [[2, 1]]


def test_what_is_excluded_costs_no_place() -> None:
    """Exclusion happens before the cut to k, so k items still come back."""
    index = PathIndex(
        np.array([1]),
        np.array([0, 4]),
        np.arange(4, dtype=np.int32),
        np.eye(4, dtype=np.float16),
        np.zeros(4, np.float32),
    )
    beams = Beams(np.array([[4, 3, 2, 1]], np.float32), np.array([[0]]), np.zeros((1, 1), np.float32))

    (found,) = rerank(index, beams, read(index, beams, 10), SOFTMAX, [2], [np.array([0, 1])])

    assert found.items.tolist() == [2, 3]


def test_what_is_excluded_may_come_in_any_order_and_twice() -> None:
    """First, last, between, often, and what is no candidate."""
    index = PathIndex(
        np.array([1]),
        np.array([0, 6]),
        np.arange(0, 12, 2, dtype=np.int32),
        np.zeros((12, 1), np.float16),
        np.zeros(12, np.float32),
    )
    beams = Beams(np.ones((1, 1), np.float32), np.array([[0]]), np.zeros((1, 1), np.float32))
    excluded = np.array([10, 11, 4, 0, 4, 3])

    (found,) = rerank(index, beams, read(index, beams, 6), SOFTMAX, [6], [excluded])

    assert found.items.tolist() == [2, 6, 8]
    assert found.candidates == 6


def test_a_beam_that_meets_no_path_finds_nothing() -> None:
    """No path in use: an empty answer, no error."""
    index, _ = random_index(np.random.default_rng(0), 3)
    beams = Beams(np.ones((1, SIZE), np.float32), np.array([[-1, -1]]), np.full((1, 2), -np.inf, np.float32))

    (found,) = rerank(index, beams, read(index, beams, 10), SOFTMAX, [5], [np.empty(0, np.int64)])

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
    structure = structure_of(index, Session(), history=3)
    structure.search([np.array([3]), np.array([9, 1, 2, 3])], *nothing, 1)

    assert fed["length"].tolist() == [1, 3]
    assert fed["history"][1].tolist() == index.item_vectors[[1, 2, 3]].tolist()  # the latest, oldest first
    assert fed["history"][0].tolist() == [index.item_vectors[3].tolist(), [0.0] * SIZE, [0.0] * SIZE]

    nobody = np.empty(0, np.int64)
    structure.search([nobody, np.array([3])], *nothing, 1)
    assert fed["length"].tolist() == [0, 1]
    assert fed["history"].tolist() == [[[0.0] * SIZE], [index.item_vectors[3].tolist()]]
    structure.search([nobody, nobody], *nothing, 1)
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
        structure_of(index, Session()).search([np.array([0, 1])], *nothing, 2)


class Watched:
    """A session that notes how many queries are searched with which beam."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.searches: list[tuple[int, int]] = []

    def run(self, names: Any, feeds: dict[str, Any]) -> Any:
        """As the session does it."""
        self.searches.append((len(feeds["length"]), int(feeds["beam"])))
        return self.session.run(names, feeds)


def test_short_queries_are_widened_in_groups(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven that never find enough: searched again in groups of at most READS items, each with its own answer."""
    watched = Watched(planted.structure.session)
    structure = replace(planted.structure, session=watched, max_beam=20)
    queries = [Query(np.array([i]), [], [], 40, 2, 5, np.array([i])) for i in range(7)]
    monkeypatch.setattr(Limits, "READS", 100)

    together = structure.answer(queries)

    # All seven with 2 paths of 5; then with 4 (20 each), 8 (40 each), 16 (80 each), 20 (100 each).
    groups = [(7, 2), (5, 4), (2, 4), (2, 8), (2, 8), (2, 8), (1, 8), *[(1, 16)] * 7, *[(1, 20)] * 7]
    assert watched.searches[: len(groups)] == groups
    assert set(watched.searches[len(groups) :]) <= {(1, 20)}  # those that had not read every item then do so
    monkeypatch.undo()
    alone = [structure.answer([query])[0] for query in queries]
    for found, wanted in zip(together, alone, strict=True):
        assert found.items.tolist() == wanted.items.tolist()
        assert found.read == wanted.read


def test_a_search_that_goes_on_ends_where_one_from_the_start_does(planted: Planted) -> None:
    """Once, then wider: the same answers and reads as at once, and no search is done twice."""
    watched = Watched(planted.structure.session)
    structure = replace(planted.structure, session=watched, max_beam=8)
    queries = [Query(np.array([i]), [], [], k, 2, 1, np.array([i])) for i, k in ((1, 2), (5, 39))]

    first = structure.answer_once(queries)
    assert [answer.short for answer in first] == [False, True]
    assert [structure.can_widen(*pair) for pair in zip(queries, first, strict=True)] == [False, True]
    wider = structure.widen(queries, first)

    assert watched.searches == [(2, 2), (1, 4), (1, 8), (1, 8)]
    for found, wanted in zip(wider, structure.answer(queries), strict=True):
        assert found.items.tolist() == wanted.items.tolist()
        assert (found.read, found.short) == (wanted.read, wanted.short)
    assert not any(structure.can_widen(*pair) for pair in zip(queries, wider, strict=True))


def test_as_many_as_there_are_are_found(planted: Planted) -> None:
    """39 of 40 items, one read of a path: items on no searched path are scored as if they were on the last of them."""
    structure, index = replace(planted.structure, max_beam=4), planted.index
    query = Query(np.array([1, 5]), [], [], 39, 2, 1, np.array([1]))

    (found,) = structure.answer([query])

    nothing = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32)
    beams = structure.search([query.history], *nothing, 4)
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
        scores[item] = float(structure.reranker.weights @ features) + structure.reranker.intercept
    assert sorted(found.items.tolist()) == sorted(scores)
    assert np.allclose(found.scores, sorted(scores.values(), reverse=True), atol=1e-3)
    assert found.candidates == 40


def test_a_widened_request_has_read_all_it_read(planted: Planted) -> None:
    """Searched with one path, then two, then four: the items of all three searches are counted."""
    structure, k, history = planted.structure, 8, np.array([1, 5])
    query = Query(history, [], [], k, 1, 2, history)

    (found,) = replace(structure, max_beam=36).answer([query])
    (narrow,) = structure.answer([replace(query, widen=False)])

    reads, beam = 0, 1
    while True:
        nothing = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32)
        beams = structure.search([history], *nothing, beam)
        items = planted.index.read(beams.paths[0], 2).items
        reads += len(items)
        if beam == 1:
            assert narrow.read == reads
        if len(set(items.tolist()) - {1, 5}) >= k or beam >= 36:
            break
        beam = min(2 * beam, 36)
    assert beam > 2
    assert found.read == reads
