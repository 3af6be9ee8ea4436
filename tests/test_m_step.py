"""The M-step compared with exhaustive search, and the properties that it must have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_scores import random_clicks
from trainer.config import TrainConfig
from trainer.deep_retrieval.m_step import alpha_for_budget, descend
from trainer.deep_retrieval.occupancy import Occupancy
from trainer.deep_retrieval.reads import expected_reads
from trainer.deep_retrieval.scores import Paths, PathScores


def scores_with(values: dict[tuple[int, int], float], paths: Paths) -> PathScores:
    """Scores with these values of (item, path) and one click an item. paths: (V, J), the current assignment."""
    rows = [[(path, score) for (item, path), score in values.items() if item == v] for v in range(len(paths))]
    size = max(paths.shape[1], *map(len, rows))
    scores = PathScores(paths, size, 1.0)
    for v, row in enumerate(rows):
        if row:
            known, probs = zip(*row, strict=True)
            scores.observe(np.array([v], np.int32), np.array([known]), np.array([probs], np.float32))
    return scores


def same_paths(items: int, count: int) -> Paths:
    """Paths 0 .. count - 1 for each item."""
    return np.tile(np.arange(count), (items, 1))


def objective(scores: PathScores, paths: Paths, alpha: float) -> float:
    """The sum of N_v log sum_j s[v, path_j] less alpha times the sum of |c|^4 / 4, as the paper defines it."""
    gain = 0.0
    for v, chosen in enumerate(paths.tolist()):
        known = dict(zip(scores.candidates[v].tolist(), scores.values[v].tolist(), strict=True))
        total = sum(known.get(path, 0.0) for path in chosen)
        if scores.clicks[v] and total > 0:
            gain += float(scores.clicks[v] * np.log(total))
    crowds = [sum(path in chosen for chosen in paths.tolist()) for path in np.unique(paths).tolist()]
    return gain - alpha * sum(crowd**4 / 4 for crowd in crowds)


def test_the_objective_is_the_definition() -> None:
    """`objective`, the slow reference of the tests below, equals numbers worked out by hand."""
    scores = scores_with({(0, 1): 0.5, (0, 2): 0.25, (1, 1): 0.2, (1, 2): 0.1}, same_paths(2, 1))

    expected = np.log(0.5) + np.log(0.2) - 0.1 * 2**4 / 4
    assert objective(scores, np.array([[1], [1]]), 0.1) == pytest.approx(expected)


@given(seed=st.integers(0, 999), alpha=st.sampled_from([0.0, 0.01, 0.1, 1.0, 100.0]))
@settings(max_examples=50, deadline=None)
def test_no_sweep_lowers_the_objective(seed: int, alpha: float) -> None:
    """More sweeps on the same scores never end lower."""
    scores = PathScores(same_paths(6, 2), 6, 1.0)
    scores.observe(*random_clicks(seed, 60))

    values = [objective(scores, descend(scores, alpha, sweeps), alpha) for sweeps in range(1, 6)]

    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(values))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("alpha", [0.0, 0.02, 0.5, 10.0])
def test_descent_reaches_the_optimum_of_exhaustive_search(count: int, alpha: float) -> None:
    """Three items and four paths have clearly different preferences; penalties are weak and strong."""
    table = [[0.60, 0.20, 0.02, 0.01], [0.50, 0.02, 0.30, 0.01], [0.55, 0.01, 0.02, 0.25]]
    scores = scores_with(
        {(v, path): value for v, row in enumerate(table) for path, value in enumerate(row)}, same_paths(3, count)
    )
    choices = list(itertools.combinations(range(4), count))
    best = max(objective(scores, np.array(paths), alpha) for paths in itertools.product(choices, repeat=3))

    assert objective(scores, descend(scores, alpha, 5), alpha) == pytest.approx(best)


@given(seed=st.integers(0, 999), alpha=st.sampled_from([0.0, 0.01, 0.1, 1.0]))
@settings(max_examples=50, deadline=None)
def test_no_item_alone_could_do_better(seed: int, alpha: float) -> None:
    """Descent ends where no other path of any single item, the other items fixed, has a higher objective."""
    rng = np.random.default_rng(seed)
    scores = scores_with({(v, path): float(rng.random()) for v in range(5) for path in range(4)}, same_paths(5, 1))
    paths = descend(scores, alpha, 50)
    reached = objective(scores, paths, alpha)
    for v, path in itertools.product(range(5), range(4)):
        changed = paths.copy()
        changed[v] = path

        assert objective(scores, changed, alpha) <= reached + 1e-9


def test_without_penalty_all_items_take_the_same_path() -> None:
    """The penalty prevents this collapse (Sec. 3.2)."""
    scores = scores_with(
        {(v, path): 0.9 if path == 0 else 0.01 for v in range(8) for path in range(8)}, same_paths(8, 1)
    )

    assert Occupancy.of(descend(scores, 0.0, 5)).used == 1
    assert Occupancy.of(descend(scores, 10.0, 5)).largest == 1


def test_items_move_to_a_path_that_all_prefer_until_it_is_full() -> None:
    """Six items, nobody is on path 0 yet, and it has room for two."""
    paths = np.arange(1, 13).reshape(6, 2)
    scores = scores_with({(v, path): 9.0 if path == 0 else 0.1 for v in range(6) for path in (0, *paths[v])}, paths)

    moved = descend(scores, 0.0, 5, capacity=2)

    assert (moved == 0).sum() == 2


@given(seed=st.integers(0, 999), alpha=st.sampled_from([0.0, 0.01, 1.0]), more=st.integers(0, 2))
@settings(max_examples=100, deadline=None)
def test_no_path_gets_more_items_than_the_capacity(seed: int, alpha: float, more: int) -> None:
    """Nor does the objective fall below that of the present paths, whichever paths have scores and items clicks."""
    rng = np.random.default_rng(seed)
    paths = rng.permuted(np.tile(np.arange(9), (6, 1)), axis=1)[:, :2]
    capacity = int(np.bincount(paths.ravel()).max()) + more
    known = {
        (v, path): float(rng.random())
        for v in range(5)
        for path in range(9)
        if path == paths[v, 0] or rng.random() < 0.7
    }
    scores = scores_with(known, paths)

    moved = descend(scores, alpha, 5, capacity)

    assert np.bincount(moved.ravel()).max() <= capacity
    assert (moved[:, 0] != moved[:, 1]).all()
    assert objective(scores, moved, alpha) >= objective(scores, paths, alpha) - 1e-9


def test_paths_of_an_item_differ() -> None:
    """J different paths for each item, clicked or not."""
    scores = PathScores(same_paths(9, 3), 6, 1.0)  # items 6, 7, 8 are never clicked
    scores.observe(*random_clicks(3, 200))

    paths = descend(scores, 0.1, 5)

    assert (paths >= 0).all()
    assert (np.diff(np.sort(paths, axis=1), axis=1) > 0).all()


def test_items_never_clicked_keep_their_paths() -> None:
    """These are the paths that the scores were made from; a clicked item moves to its best path."""
    scores = scores_with({(0, 5): 1.0}, np.array([[4], [12], [14]]))

    assert descend(scores, 0.1, 3).tolist() == [[5], [12], [14]]


def test_items_never_clicked_crowd_their_paths() -> None:
    """With a penalty a clicked item avoids the path of two unclicked items; without one it takes its best path."""
    scores = scores_with({(0, 0): 1.0, (0, 5): 0.9}, same_paths(3, 1))

    assert descend(scores, 0.1, 3).tolist() == [[5], [0], [0]]
    assert descend(scores, 0.0, 3).tolist() == [[0], [0], [0]]


def test_too_few_scored_paths_are_filled_up() -> None:
    """The item also gets the least crowded path in use that it does not have."""
    values = {(0, 5): 1.0, (1, 5): 1.0, (1, 6): 1.0, (2, 5): 1.0, (2, 6): 1.0, (3, 6): 1.0, (3, 7): 1.0}
    paths = descend(scores_with(values, same_paths(4, 2)), 0.0, 3)

    assert sorted(paths[0].tolist()) == [5, 7]


@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_small_and_large_path_ids_give_the_same_paths(seed: int) -> None:
    """Loads are kept by id where ids are small, and by rank where they are large."""
    items, paths, probs = random_clicks(seed, 40)
    small, large = PathScores(same_paths(6, 2), 4, 0.9), PathScores(10**15 * same_paths(6, 2), 4, 0.9)
    small.observe(items, paths, probs)
    large.observe(items, np.where(paths < 0, -1, 10**15 * paths), probs)

    assert (descend(large, 0.1, 3) == 10**15 * descend(small, 0.1, 3)).all()


@pytest.mark.parametrize(("alpha", "path"), [(0.99e-14, 0), (1.01e-14, 5)])
def test_the_penalty_of_a_very_crowded_path_does_not_overflow(alpha: float, path: int) -> None:
    """The penalty ((c + 1)^4 - c^4) / 4 is about c^3, 10^15 at 100,000 items; (c + 1)^4 itself does not fit in an
    int64.

    From alpha = 10^-14 on, the penalty outweighs a score that is e^10 times that of a path without items.
    """
    scores = scores_with({(0, 0): 1.0, (0, 5): float(np.exp(-10))}, same_paths(100_001, 1))

    assert descend(scores, alpha, 1)[0].tolist() == [path]


def test_the_best_of_very_many_scored_paths_is_chosen() -> None:
    """It is the 40,000th candidate, whose position does not fit in 16 bits."""
    scores = PathScores(np.array([[3]]), 40_000, 1.0)
    scores.candidates[0, -1], scores.values[0, -1], scores.clicks[0] = 8, 0.5, 1

    assert descend(scores, 0.1, 1).tolist() == [[8]]


def test_without_any_click_nothing_moves() -> None:
    """All items keep their paths."""
    paths = np.array([[1, 2], [2, 3]])

    assert descend(PathScores(paths, 4, 1.0), 0.1, 3).tolist() == paths.tolist()


def test_a_descent_changes_neither_the_scores_nor_the_paths_it_starts_from() -> None:
    """Several alphas can be tried on the same scores."""
    paths = same_paths(6, 2)
    scores = PathScores(paths, 6, 1.0)
    scores.observe(*random_clicks(1, 50))
    before = scores.candidates.copy(), scores.values.copy(), scores.clicks.copy()

    descend(scores, 0.1, 3)

    for array, copy in zip((scores.candidates, scores.values, scores.clicks), before, strict=True):
        assert np.array_equal(array, copy)
    assert np.array_equal(paths, same_paths(6, 2))


def test_alpha_meets_the_budget() -> None:
    """All items prefer the same paths; `auto` finds the penalty at which a request reads about 7.5 k items."""
    items, size = 400, 100
    rng = np.random.default_rng(0)
    scores = PathScores(same_paths(items, 1), size, 1.0)
    probs = np.exp(-np.arange(size) / 10) * (1 + 0.1 * rng.random((items, size))) / 10
    for _ in range(10):
        scores.observe(np.arange(items, dtype=np.int32), same_paths(items, size), probs.astype(np.float32))
    beams = np.tile(np.arange(size), (50, 1))
    config = TrainConfig(k=10, beam=15, paths_per_item=1, candidate_paths=size)

    alpha = alpha_for_budget(scores, beams, config)

    assert 50 <= expected_reads(descend(scores, alpha, config.sweeps), beams, 15) <= 100


def test_expected_reads_by_hand() -> None:
    """Path 1 has one item and path 2 has three. One beam has both and the empty path 9, the other has 2 and 9."""
    paths = np.array([[1], [2], [2], [2]])
    beams = np.array([[1, 2, 9], [2, 9, 9]])

    assert expected_reads(paths, beams, 6) == pytest.approx(6 * (1 + 3 + 3) / 3)
    assert expected_reads(paths, np.array([[8, 9]]), 6) == 0


def test_occupancy_of_known_sizes() -> None:
    """Paths with 1, 1 and 2 items: used, largest, mean, Gini and entropy by hand."""
    occupancy = Occupancy.of_sizes(np.array([2, 1, 1]))

    assert (occupancy.used, occupancy.largest) == (3, 2)
    assert occupancy.mean_size == pytest.approx(4 / 3)
    assert occupancy.gini == pytest.approx(1 / 6)
    assert occupancy.entropy == pytest.approx(1.5)
    assert Occupancy.of_sizes(np.full(10, 4)).gini == pytest.approx(0)
