"""The scores of an M-step, against their definition (Sec. 3.3)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.deep_retrieval.scores import PathScores


def random_clicks(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` clicks of 6 items, each with 5 of 9 paths (-1: no path) and their probabilities."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(6, size=count).astype(np.int32),
        rng.integers(-1, 9, size=(count, 5)),
        rng.random((count, 5)).astype(np.float32),
    )


def scores_of(scores: PathScores, item: int) -> dict[int, float]:
    """The score of each candidate path of an item."""
    pairs = zip(scores.candidates[item].tolist(), scores.values[item].tolist(), strict=True)
    return {path: value for path, value in pairs if path >= 0}


@given(seed=st.integers(0, 999), cut=st.integers(0, 40))
@settings(max_examples=50, deadline=None)
def test_batches_of_clicks_give_the_scores_of_all_at_once(seed: int, cut: int) -> None:
    """How the stream of clicks is cut into batches makes no difference."""
    items, paths, probs = random_clicks(seed, 40)
    whole, halves = (PathScores(np.zeros((6, 2), np.int64), 4, 0.9) for _ in range(2))

    whole.observe(items, paths, probs)
    for part in (slice(None, cut), slice(cut, None)):
        halves.observe(items[part], paths[part], probs[part])

    assert np.array_equal(whole.candidates, halves.candidates)
    assert np.array_equal(whole.values, halves.values)
    assert np.array_equal(whole.clicks, halves.clicks)


@given(seed=st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_observing_equals_the_slow_reference(seed: int) -> None:
    """Scores decay, kept paths gain, new paths start from eta times the lowest score, and the best S stay (Sec. 3.3).

    The present paths, 3 and 7, stay whatever their scores.
    """
    items, paths, probs = random_clicks(seed, 60)
    eta, size = 0.9, 4
    scores = PathScores(np.tile([3, 7], (6, 1)), size, eta)
    scores.observe(items, paths, probs)
    others: list[dict[int, float]] = [{} for _ in range(6)]
    present: list[dict[int, float]] = [{3: 0.0, 7: 0.0} for _ in range(6)]
    for v, row, values in zip(items, paths.tolist(), probs.astype(float).tolist(), strict=True):
        kept = others[v]
        lowest = min(kept.values()) if len(kept) == size else 0.0
        first = dict(reversed(list(zip(row, values, strict=True))))
        present[v] = {path: eta * score + first.get(path, 0) for path, score in present[v].items()}
        new = {path: value for path, value in first.items() if path >= 0 and path not in present[v]}
        merged = {path: eta * score + new.get(path, 0) for path, score in kept.items()}
        merged |= {path: eta * lowest + value for path, value in new.items() if path not in kept}
        others[v] = dict(sorted(merged.items(), key=lambda pair: -pair[1])[:size])

    for v in range(6):
        assert scores_of(scores, v) == pytest.approx(others[v] | present[v])
        assert scores.clicks[v] == (items == v).sum()


def test_the_four_cases_by_hand() -> None:
    """A path is kept and observed again, only observed, only kept, or pushed out, with eta = 0.5 and S = 2."""
    scores = PathScores(np.full((1, 1), 9), 2, 0.5)  # the present path, 9, is not observed
    item = np.zeros(1, np.int32)
    scores.observe(item, np.array([[1, 2]]), np.array([[0.8, 0.4]], np.float32))
    scores.observe(item, np.array([[1, 3]]), np.array([[0.1, 0.3]], np.float32))

    # 1: 0.5 * 0.8 + 0.1; 2: 0.5 * 0.4, pushed out by 3: 0.5 * 0.4 + 0.3.
    assert scores_of(scores, 0) == pytest.approx({9: 0, 1: 0.5, 3: 0.5})
