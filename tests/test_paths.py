"""Searching, reading and reranking of paths, against slow and obvious reference implementations."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from index_store.errors import VersionDamaged
from retrieval.paths.index import Neighbours, PathIndex, Postings
from retrieval.paths.rerank import SOFTMAX, Beams, Reranker, candidates, rerank
from retrieval.paths.structure import PathStructure
from retrieval.query import Limits, Query, wider_beams
from tests.conftest import Planted

ITEMS, SIZE = 12, 3


def random_index(rng: np.random.Generator, paths: int) -> tuple[PathIndex, dict[int, list[int]]]:
    """An index of `paths` random path lists, and the same lists as a dictionary."""
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
        random_neighbours(rng),
    )
    return index, lists


def random_neighbours(rng: np.random.Generator) -> Neighbours:
    """Up to three different neighbours, and followers, of each item."""
    items = np.full((2, ITEMS, 3), -1, np.int32)
    for row in items.reshape(-1, 3):
        count = rng.integers(4)
        row[:count] = rng.permutation(ITEMS)[:count]
    return Neighbours(items, rng.integers(65536, size=items.shape).astype(np.uint16))


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
    """One request's best items and scores, computed with dictionaries and loops."""
    log_probs_of: dict[int, list[float]] = {}
    for place, log_prob in zip(beams.paths[row].tolist(), beams.log_probs[row], strict=True):
        for item in lists[int(index.path_ids[place])][:n] if place >= 0 else ():
            log_probs_of.setdefault(item, []).append(float(log_prob))
    scored = []
    for item, log_probs in log_probs_of.items():
        if item in excluded:
            continue
        bias = float(index.item_bias[item])
        logit = float(index.item_vectors[item] @ beams.user[row]) + bias
        ends = np.cumsum(beams.lengths).tolist()
        history = beams.history[ends[row] - beams.lengths[row] : ends[row]].tolist() if ends else []
        near = slow_similarities(index, history, item)
        features = (logit, bias, math.log(sum(map(math.exp, log_probs))), len(log_probs), *near)
        scored.append((item, sum(w * f for w, f in zip(weights, features, strict=True))))
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:k]


def slow_similarities(index: PathIndex, history: list[int], item: int) -> list[float]:
    """For neighbours and followers, the roots of the history's summed similarities to `item`: all, recent."""
    sums = []
    for items, similarities in zip(*index.neighbours, strict=True):
        near = recent = 0.0
        for age, seen in enumerate(reversed(history)):
            for other, similarity in zip(items[seen].tolist(), similarities[seen].tolist(), strict=True):
                near += (other == item) * similarity / 65535
                recent += (other == item) * similarity / 65535 * 0.8**age
        sums += [near**0.5, recent**0.5]
    return sums


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), batch=st.integers(1, 4), n=st.integers(1, 6), k=st.integers(1, 8))
@example(seed=0, batch=3, n=2, k=4)
def test_answers_equal_the_slow_reference(seed: int, batch: int, n: int, k: int) -> None:
    """A whole batch is read, deduplicated, filtered, scored and cut as the reference does it request by request."""
    rng = np.random.default_rng(seed)
    index, lists = random_index(rng, paths=8)
    beams = Beams(
        rng.normal(size=(batch, SIZE)).astype(np.float32),
        np.stack([rng.choice(np.arange(-1, len(index.path_ids)), 5, replace=False) for _ in range(batch)]),
        np.log(rng.random((batch, 5))).astype(np.float32),
        rng.integers(ITEMS, size=4 * batch),
        rng.multinomial(4 * batch, np.ones(batch) / batch),
    )
    weights = rng.normal(size=8)
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


def test_equal_scores_are_ordered_by_item() -> None:
    """Items of equal score come in ascending order; 0.0 and -0.0 are equal, and negative scores come last."""
    index = PathIndex(
        np.array([1]),
        np.array([0, 6]),
        np.array([5, 4, 3, 2, 1, 0], np.int32),
        np.array([[0.0], [-0.0], [-1.0], [2.0], [-1.0], [-np.inf]], np.float16),
        np.zeros(6, np.float32),
    )
    beams = Beams(np.ones((1, 1), np.float32), np.array([[0]]), np.zeros((1, 1), np.float32))
    weights = np.array([-0.5, *[0] * 7], np.float32)

    (answer,) = rerank(index, beams, read(index, beams, 6), Reranker("lr", weights, -0.0), [6], [np.empty(0, np.int64)])

    assert answer.items.tolist() == [5, 2, 4, 0, 1, 3]


def test_an_item_on_several_paths_is_one_candidate() -> None:
    """The item is scored once; its features are the summed probability of its paths and their number."""
    index = PathIndex(
        np.array([1, 2]),
        np.array([0, 2, 3]),
        np.array([0, 1, 0], np.int32),
        np.eye(2, dtype=np.float16),
        np.zeros(2, np.float32),
    )
    beams = Beams(np.ones((1, 2), np.float32), np.array([[0, 1]]), np.log(np.array([[0.5, 0.25]], np.float32)))

    postings = read(index, beams, 10)
    joined = candidates(index, beams, postings)

    assert joined.item.tolist() == [0, 1]
    assert np.exp(joined.features[:, 2]) == pytest.approx([0.75, 0.5])
    assert joined.features[:, 3].tolist() == [2, 1]
    assert postings.lengths.tolist() == [[2, 1]]


def test_excluded_items_take_no_place_in_the_answer() -> None:
    """Exclusion happens before the cut to k, so k items still come back."""
    index = PathIndex(
        np.array([1]),
        np.array([0, 4]),
        np.arange(4, dtype=np.int32),
        np.eye(4, dtype=np.float16),
        np.zeros(4, np.float32),
    )
    beams = Beams(np.array([[4, 3, 2, 1]], np.float32), np.array([[0]]), np.zeros((1, 1), np.float32))

    (answer,) = rerank(index, beams, read(index, beams, 10), SOFTMAX, [2], [np.array([0, 1])])

    assert answer.items.tolist() == [2, 3]


def test_excluded_items_may_come_in_any_order_and_twice() -> None:
    """The excluded items include the first and the last candidate, one item twice, and items that are no candidates."""
    index = PathIndex(
        np.array([1]),
        np.array([0, 6]),
        np.arange(0, 12, 2, dtype=np.int32),
        np.zeros((12, 1), np.float16),
        np.zeros(12, np.float32),
    )
    beams = Beams(np.ones((1, 1), np.float32), np.array([[0]]), np.zeros((1, 1), np.float32))
    excluded = np.array([10, 11, 4, 0, 4, 3])

    (answer,) = rerank(index, beams, read(index, beams, 6), SOFTMAX, [6], [excluded])

    assert answer.items.tolist() == [2, 6, 8]
    assert answer.candidates == 6


def test_a_beam_without_paths_gives_an_empty_answer() -> None:
    """Every place of the beam is -1: the answer is empty, and no error is raised."""
    index, _ = random_index(np.random.default_rng(0), 3)
    beams = Beams(np.ones((1, SIZE), np.float32), np.array([[-1, -1]]), np.full((1, 2), -np.inf, np.float32))

    (answer,) = rerank(index, beams, read(index, beams, 10), SOFTMAX, [5], [np.empty(0, np.int64)])

    assert answer.items.tolist() == []
    assert (answer.paths, answer.read, answer.candidates) == (0, 0, 0)


def test_short_histories_are_padded_with_zeros() -> None:
    """A history searched beside a longer one is padded with zero vectors, and its own length is given to the model."""
    index, _ = random_index(np.random.default_rng(0), 4)
    fed: dict[str, Any] = {}

    class Session:
        def run(self, _: Any, feeds: dict[str, Any]) -> list[Any]:
            fed.update(feeds)
            return [np.zeros((2, SIZE), np.float32), np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float32)]

    no_context = np.zeros((2, 0), np.int64), np.zeros((2, 0), np.float32)
    structure = structure_of(index, Session(), history=3)
    structure.search([np.array([3]), np.array([9, 1, 2, 3])], *no_context, 1)

    assert fed["length"].tolist() == [1, 3]
    assert fed["history"][1].tolist() == index.item_vectors[[1, 2, 3]].tolist()  # the latest, oldest first
    assert fed["history"][0].tolist() == [index.item_vectors[3].tolist(), [0.0] * SIZE, [0.0] * SIZE]

    empty = np.empty(0, np.int64)
    structure.search([empty, np.array([3])], *no_context, 1)
    assert fed["length"].tolist() == [0, 1]
    assert fed["history"].tolist() == [[[0.0] * SIZE], [index.item_vectors[3].tolist()]]
    structure.search([empty, empty], *no_context, 1)
    assert fed["length"].tolist() == [0, 0]
    assert fed["history"].tolist() == [[[0.0] * SIZE]] * 2


@pytest.mark.parametrize("document", [None, {}, {"kind": "lr", "weights": {"logit": "x"}, "intercept": 0}])
def test_a_malformed_reranker_is_refused(document: Any) -> None:
    """A missing document, or one whose weights are missing or no numbers, is an error; nothing is taken as zero."""
    with pytest.raises(VersionDamaged, match="reranker"):
        Reranker.from_json(document)


def test_a_reranker_with_nan_is_refused() -> None:
    """A weight that is not finite would make the ranking arbitrary."""
    document = Reranker("lr", np.array([np.nan, *[0] * 7], np.float32), 0.0).to_json()

    with pytest.raises(VersionDamaged, match="finite"):
        Reranker.from_json(document)
    with pytest.raises(VersionDamaged, match="expected weights"):
        Reranker.from_json(document | {"intercept": 10**400})


@pytest.mark.parametrize(
    "paths", [np.array([[np.nan, 9.0]]), np.array([[0, 9]], np.int32), np.array([[0, 1]]), np.zeros((1, 3), np.int32)]
)
def test_malformed_paths_from_the_model_are_refused(paths: Any) -> None:
    """The model's paths are not integers, not in the index, of the wrong type, or more than their log-probabilities."""
    index, _ = random_index(np.random.default_rng(0), 4)

    class Session:
        def run(self, *_: Any) -> list[Any]:
            return [np.zeros((1, SIZE), np.float32), paths, np.zeros((1, 2), np.float32)]

    no_context = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32)
    with pytest.raises(VersionDamaged):
        structure_of(index, Session()).search([np.array([0, 1])], *no_context, 2)


class Watched:
    """A session that records, for each search, the number of queries and the beam."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.searches: list[tuple[int, int]] = []

    def run(self, names: Any, feeds: dict[str, Any]) -> Any:
        """Record the search and run it."""
        self.searches.append((len(feeds["length"]), int(feeds["beam"])))
        return self.session.run(names, feeds)


@pytest.mark.parametrize(("beam", "wider"), [(4, [8, 16, 20]), (5, [10, 20]), (19, [20]), (20, [])])
def test_a_wider_beam_is_twice_the_one_before(beam: int, wider: list[int]) -> None:
    """The last one is the widest beam."""
    assert wider_beams(beam, 20) == wider


def test_short_queries_are_widened_in_groups(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries that never find enough are searched again in groups of at most READS items; each gets its own answer."""
    watched = Watched(planted.structure.session)
    structure = replace(planted.structure, session=watched, max_beam=20)
    queries = [Query(np.array([i]), [], [], 40, 2, 5, np.array([i])) for i in range(7)]
    monkeypatch.setattr(Limits, "READS", 100)

    together = structure.answer(queries)

    # All seven with 2 paths of 5; then with 4 (20 each), 8 (40 each), 16 (80 each), 20 (100 each).
    groups = [(7, 2), (5, 4), (2, 4), (2, 8), (2, 8), (2, 8), (1, 8), *[(1, 16)] * 7, *[(1, 20)] * 7]
    assert watched.searches[: len(groups)] == groups
    assert set(watched.searches[len(groups) :]) <= {(1, 20)}  # queries that had not read every item then do so
    monkeypatch.undo()
    alone = [structure.answer([query])[0] for query in queries]
    for answer, expected in zip(together, alone, strict=True):
        assert answer.items.tolist() == expected.items.tolist()
        assert answer.read == expected.read


def test_widening_later_gives_the_answers_of_one_search(planted: Planted) -> None:
    """`answer_once` and then `widen` give the items and reads that `answer` gives, and no search is repeated."""
    watched = Watched(planted.structure.session)
    structure = replace(planted.structure, session=watched, max_beam=8)
    queries = [Query(np.array([i]), [], [], k, 2, 1, np.array([i])) for i, k in ((1, 1), (5, 39))]

    first = structure.answer_once(queries)
    assert [answer.short for answer in first] == [False, True]
    assert [structure.can_widen(*pair) for pair in zip(queries, first, strict=True)] == [False, True]
    wider = structure.widen(queries, first)

    assert watched.searches == [(2, 2), (1, 4), (1, 8), (1, 8)]
    for answer, expected in zip(wider, structure.answer(queries), strict=True):
        assert answer.items.tolist() == expected.items.tolist()
        assert (answer.read, answer.short) == (expected.read, expected.short)
    assert not any(structure.can_widen(*pair) for pair in zip(queries, wider, strict=True))


def test_the_whole_catalogue_is_scored_with_the_widest_beam_that_may_be_read(planted: Planted) -> None:
    """Two paths of 25,000 items are the most that may be read, so four are not searched, not even at the end."""
    watched = Watched(planted.structure.session)
    structure = replace(planted.structure, session=watched, max_beam=8)

    (answer,) = structure.answer([Query(np.array([1]), [], [], 40, 1, 25_000, np.array([1]))])

    assert watched.searches == [(1, 1), (1, 2), (1, 2)]
    assert (answer.paths, answer.candidates, answer.short) == (2, 40, True)


def test_every_item_is_returned_if_as_many_are_asked_for(planted: Planted) -> None:
    """39 of 40 items with one read per path: items on no searched path are scored as if on the beam's last path."""
    structure, index = replace(planted.structure, max_beam=4), planted.index
    query = Query(np.array([1, 5]), [], [], 39, 2, 1, np.array([1]))

    (answer,) = structure.answer([query])

    no_context = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32)
    beams = structure.search([query.history], *no_context, 4)
    on_path: dict[int, list[float]] = {}
    for row, log_prob in zip(beams.paths[0].tolist(), beams.log_probs[0].tolist(), strict=True):
        for item in index.read(np.array([row]), 1).items.tolist():
            on_path.setdefault(item, []).append(log_prob)
    assert len(on_path) <= 4
    scores = {}
    for item in set(range(40)) - {1}:
        log_probs = on_path.get(item, [beams.log_probs[0, -1]])
        logit = float(index.item_vectors[item].astype(np.float32) @ beams.user[0] + index.item_bias[item])
        near = slow_similarities(index, query.history.tolist(), item)
        features = [logit, index.item_bias[item], np.logaddexp.reduce(log_probs), len(log_probs), *near]
        scores[item] = float(structure.reranker.weights @ features) + structure.reranker.intercept
    assert sorted(answer.items.tolist()) == sorted(scores)
    assert np.allclose(answer.scores, sorted(scores.values(), reverse=True), atol=1e-3)
    assert answer.candidates == 40


def test_a_widened_request_counts_the_reads_of_all_its_searches(planted: Planted) -> None:
    """The beam doubles from one path until k items are found; `read` is the sum over all of these searches."""
    structure, k, history = planted.structure, 8, np.array([1, 5])
    query = Query(history, [], [], k, 1, 2, history)

    (answer,) = replace(structure, max_beam=36).answer([query])
    (narrow,) = structure.answer([replace(query, widen=False)])

    reads, beam = 0, 1
    while True:
        no_context = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32)
        beams = structure.search([history], *no_context, beam)
        items = planted.index.read(beams.paths[0], 2).items
        reads += len(items)
        if beam == 1:
            assert narrow.read == reads
        if len(set(items.tolist()) - {1, 5}) >= k or beam >= 36:
            break
        beam = min(2 * beam, 36)
    assert beam > 2
    assert answer.read == reads
