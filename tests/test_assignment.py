"""The M-step against its definition, exhaustive search, and its own laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.deep_retrieval.assignment import PathAssigner, _marginal
from trainer.deep_retrieval.occupancy import Occupancy


def assigner_with(scores: dict[tuple[int, int], float], items: int, count: int, clicks: int = 1) -> PathAssigner:
    """An assigner whose table is `scores` of (item, path)."""
    size = max(count, *(sum(v == item for v, _ in scores) for item in range(items)))
    assigner = PathAssigner(np.tile(np.arange(count), (items, 1)), size, 1.0)
    for v in range(items):
        own = [(path, score) for (item, path), score in scores.items() if item == v]
        assigner._candidates[v] = -1 if own else assigner._candidates[v]
        assigner._candidates[v, : len(own)] = [path for path, _ in own]
        assigner._scores[v, : len(own)] = [score for _, score in own]
    assigner.clicks[:] = clicks
    return assigner


def slow_objective(paths: list[tuple[int, ...]], scores: dict[tuple[int, int], float], alpha: float) -> float:
    """Sum of N_v log sum_j s[v, path_j] less alpha times the sum of |c|^4 / 4, with N_v = 1."""
    gain = sum(float(np.log(sum(scores[v, path] for path in chosen))) for v, chosen in enumerate(paths))
    sizes = [sum(path in chosen for chosen in paths) for path in {p for chosen in paths for p in chosen}]
    return gain - alpha * sum(size**4 / 4 for size in sizes)


def random_clicks(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` clicks of 6 items, each with 5 of 9 paths (-1: none) and their probabilities."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(6, size=count).astype(np.int32),
        rng.integers(-1, 9, size=(count, 5)),
        rng.random((count, 5)).astype(np.float32),
    )


@given(seed=st.integers(0, 999), cut=st.integers(0, 40))
@settings(max_examples=50, deadline=None)
def test_two_halves_observed_equal_the_whole(seed: int, cut: int) -> None:
    """Streaming: how the clicks are cut into batches changes nothing."""
    items, paths, probs = random_clicks(seed, 40)
    whole, halves = (PathAssigner(np.zeros((6, 2), np.int64), 4, 0.9) for _ in range(2))

    whole.observe(items, paths, probs)
    for part in (slice(None, cut), slice(cut, None)):
        halves.observe(items[part], paths[part], probs[part])

    assert np.array_equal(whole._candidates, halves._candidates)
    assert np.array_equal(whole._scores, halves._scores)
    assert np.array_equal(whole.clicks, halves.clicks)


@given(seed=st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_observing_equals_the_slow_twin(seed: int) -> None:
    """Decay all, add to the known, start new ones from eta times the least, keep the best S (Sec. 3.3).

    And the present paths, 3 and 7, whatever their scores.
    """
    items, paths, probs = random_clicks(seed, 60)
    eta, size = 0.9, 4
    assigner = PathAssigner(np.tile([3, 7], (6, 1)), size, eta)
    assigner.observe(items, paths, probs)
    tables: list[dict[int, float]] = [{} for _ in range(6)]
    present: list[dict[int, float]] = [{3: 0.0, 7: 0.0} for _ in range(6)]
    for v, row, values in zip(items, paths.tolist(), probs.astype(float).tolist(), strict=True):
        table = tables[v]
        least = min(table.values()) if len(table) == size else 0.0
        first = dict(reversed(list(zip(row, values, strict=True))))
        present[v] = {path: eta * score + first.get(path, 0) for path, score in present[v].items()}
        new: dict[int, float] = {}
        for path, value in zip(row, values, strict=True):
            if path >= 0 and path not in new and path not in present[v]:
                new[path] = value
        merged = {path: eta * score + new.get(path, 0) for path, score in table.items()}
        merged |= {path: eta * least + value for path, value in new.items() if path not in table}
        tables[v] = dict(sorted(merged.items(), key=lambda pair: -pair[1])[:size])

    for v, table in enumerate(tables):
        found = {int(c): float(s) for c, s in zip(assigner._candidates[v], assigner._scores[v], strict=True) if c >= 0}
        assert found == pytest.approx(table | present[v])


def test_the_four_cases_by_hand() -> None:
    """Both, only new, only old, and pushed out, with eta = 0.5 and S = 2."""
    assigner = PathAssigner(np.full((1, 1), 9), 2, 0.5)  # path 9, the present one, has no part in it
    one = np.zeros(1, np.int32)
    assigner.observe(one, np.array([[1, 2]]), np.array([[0.8, 0.4]], np.float32))
    assigner.observe(one, np.array([[1, 3]]), np.array([[0.1, 0.3]], np.float32))

    # 1: 0.5 * 0.8 + 0.1; 2: 0.5 * 0.4, pushed out by 3: 0.5 * 0.4 + 0.3.
    assert sorted(assigner._candidates[0].tolist()) == [1, 3, 9]
    assert sorted(assigner._scores[0].tolist()) == pytest.approx([0, 0.5, 0.5])


@given(seed=st.integers(0, 999), alpha=st.sampled_from([0.0, 0.01, 0.1, 1.0, 100.0]))
@settings(max_examples=50, deadline=None)
def test_no_sweep_lowers_the_objective(seed: int, alpha: float) -> None:
    """More sweeps on the same scores never end lower."""
    items, paths, probs = random_clicks(seed, 60)
    assigner = PathAssigner(np.tile(np.arange(2), (6, 1)), 6, 1.0)
    assigner.observe(items, paths, probs)

    values = [assigner.objective(assigner.descend(alpha, sweeps), alpha) for sweeps in range(1, 6)]

    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(values))


def test_the_objective_is_the_definition() -> None:
    """Checked on numbers worked out by hand."""
    scores = {(0, 1): 0.5, (0, 2): 0.25, (1, 1): 0.2, (1, 2): 0.1}
    assigner = assigner_with(scores, items=2, count=1)
    paths = np.array([[1], [1]])

    assert assigner.objective(paths, 0.1) == pytest.approx(np.log(0.5) + np.log(0.2) - 0.1 * 2**4 / 4)
    assert assigner.objective(paths, 0.1) == pytest.approx(slow_objective([(1,), (1,)], scores, 0.1))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("alpha", [0.0, 0.02, 0.5, 10.0])
def test_descent_finds_what_exhaustive_search_finds(count: int, alpha: float) -> None:
    """On three items and four paths whose preferences differ clearly, with weak and strong penalties."""
    scores = {
        (v, path): value
        for v, row in enumerate([[0.60, 0.20, 0.02, 0.01], [0.50, 0.02, 0.30, 0.01], [0.55, 0.01, 0.02, 0.25]])
        for path, value in enumerate(row)
    }
    assigner = assigner_with(scores, items=3, count=count)
    choices = list(itertools.combinations(range(4), count))
    best = max(slow_objective(list(paths), scores, alpha) for paths in itertools.product(choices, repeat=3))

    assert assigner.objective(assigner.descend(alpha, 5), alpha) == pytest.approx(best)


@given(seed=st.integers(0, 999), alpha=st.sampled_from([0.0, 0.01, 0.1, 1.0]))
@settings(max_examples=50, deadline=None)
def test_no_item_alone_could_do_better(seed: int, alpha: float) -> None:
    """Descent ends where exhaustive search over any one item's paths, the others fixed, finds nothing better."""
    rng = np.random.default_rng(seed)
    scores = {(v, path): float(rng.random()) for v in range(5) for path in range(4)}
    found = assigner_with(scores, items=5, count=1).descend(alpha, 50)
    reached = slow_objective([tuple(row) for row in found.tolist()], scores, alpha)
    for v, path in itertools.product(range(5), range(4)):
        changed = found.copy()
        changed[v] = path

        assert slow_objective([tuple(row) for row in changed.tolist()], scores, alpha) <= reached + 1e-9


def test_without_penalty_all_go_where_the_score_is() -> None:
    """The collapse that the penalty prevents: one path for everybody (Sec. 3.2)."""
    scores = {(v, path): 0.9 if path == 0 else 0.01 for v in range(8) for path in range(8)}
    assigner = assigner_with(scores, items=8, count=1)

    assert Occupancy.of(assigner.descend(0.0, 5)).used == 1
    assert Occupancy.of(assigner.descend(10.0, 5)).largest == 1


def test_paths_of_an_item_differ() -> None:
    """J different paths for each item, clicked or not."""
    items, paths, probs = random_clicks(3, 200)
    assigner = PathAssigner(np.tile(np.arange(3), (9, 1)), 6, 1.0)  # items 6, 7, 8 are never clicked
    assigner.observe(items, paths, probs)

    assigner.reassign(0.1, 5)

    assert (assigner.paths >= 0).all()
    assert (np.diff(np.sort(assigner.paths, axis=1), axis=1) > 0).all()


def test_items_never_clicked_keep_their_paths_and_crowd_them() -> None:
    """Two unclicked items on path 0 leave it to no clicked one, unless it is worth the crowd."""
    scores = {(0, 0): 1.0, (0, 5): 0.9}
    assigner = assigner_with(scores, items=3, count=1)
    assigner.clicks[1:] = 0

    assert assigner.descend(0.1, 3).tolist() == [[5], [0], [0]]
    assert assigner.descend(0.0, 3).tolist() == [[0], [0], [0]]


def test_too_few_scored_paths_are_filled_up() -> None:
    """With the least crowded path in use that the item is not on."""
    scores = {(0, 5): 1.0, (1, 5): 1.0, (1, 6): 1.0, (2, 5): 1.0, (2, 6): 1.0, (3, 6): 1.0, (3, 7): 1.0}
    paths = assigner_with(scores, items=4, count=2).descend(0.0, 3)

    assert sorted(paths[0].tolist()) == [5, 7]


@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_what_the_ids_are_does_not_matter(seed: int) -> None:
    """Loads are kept by id where ids are small, by rank where they are large: the same paths are found."""
    items, paths, probs = random_clicks(seed, 40)
    found = []
    for stride in (1, 10**15):
        assigner = PathAssigner(np.tile(stride * np.arange(2), (6, 1)), 4, 0.9)
        assigner.observe(items, np.where(paths < 0, -1, stride * paths), probs)
        found.append(assigner.descend(0.1, 3))

    assert (found[1] == 10**15 * found[0]).all()


def test_the_penalty_of_a_very_crowded_path_is_a_number() -> None:
    """((c + 1)^4 - c^4) / 4 is about c^3: 10^15 at 100,000 items, whose fourth power no int64 holds."""
    assert _marginal(np.int32(100_000)) == pytest.approx(100_000**3, rel=1e-4)


def test_without_any_click_nothing_moves() -> None:
    """Nothing observed, nothing known."""
    paths = np.array([[1, 2], [2, 3]])

    assert PathAssigner(paths, 4, 1.0).descend(0.1, 3).tolist() == paths.tolist()


def test_reassigning_forgets_the_scores() -> None:
    """The next network's scores start from nothing."""
    items, paths, probs = random_clicks(1, 50)
    assigner = PathAssigner(np.tile(np.arange(2), (6, 1)), 6, 1.0)
    assigner.observe(items, paths, probs)
    assigner.reassign(0.1, 3)

    assert assigner.clicks.sum() == assigner._scores.sum() == 0
    assert set(assigner._candidates[0].tolist()) == {-1, *assigner.paths[0].tolist()}


def test_occupancy_of_known_sizes() -> None:
    """Sizes 1, 1, 2: used, largest, mean, Gini and entropy by hand."""
    occupancy = Occupancy.of_sizes(np.array([2, 1, 1]))

    assert (occupancy.used, occupancy.largest) == (3, 2)
    assert occupancy.mean_size == pytest.approx(4 / 3)
    assert occupancy.gini == pytest.approx(1 / 6)
    assert occupancy.entropy == pytest.approx(1.5)
    assert Occupancy.of_sizes(np.full(10, 4)).gini == pytest.approx(0)
