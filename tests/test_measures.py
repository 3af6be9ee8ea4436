"""The measures by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.measures import mean_figures, popularity_groups, ratios, recall_by_popularity, tops


def test_precision_recall_f_by_hand() -> None:
    """F is the mean over users, not the F of the means; a repeated item counts once, a user without truth never."""
    answers = [np.array([1, 2]), np.array([3, 3]), np.array([9, 8])]
    truths = [np.array([1, 2, 5, 6]), np.array([3, 3]), np.array([], np.int64)]

    measured = mean_figures(answers, truths, k=2)

    assert measured["precision"] == pytest.approx((1.0 + 0.5) / 2)
    assert measured["recall"] == pytest.approx((0.5 + 1.0) / 2)
    assert measured["f_measure"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_ratios_to_zero() -> None:
    """There is no ratio if the reference finds nothing, or if no user is measured."""
    shares = ratios(
        {"precision": 0.2, "recall": 0.0, "f_measure": 0.1}, {"precision": 0.4, "recall": 0.0, "f_measure": 0.1}
    )

    assert shares == {"precision": 0.5, "recall": None, "f_measure": 1.0}
    unmeasured = mean_figures([np.array([1])], [np.array([], np.int64)], k=1)
    assert unmeasured == dict.fromkeys(("precision", "recall", "f_measure", "hit_rate", "ndcg"))
    assert ratios(unmeasured, unmeasured) == {"precision": None, "recall": None, "f_measure": None}


def test_hit_rate_and_ndcg_by_hand() -> None:
    """Ranks 2 and 4 are true of three: DCG 1/log2(3) + 1/log2(5), at best 1 + 1/log2(3) + 1/log2(4)."""
    answers, truths = [np.array([7, 1, 8, 2, 9])] * 2, [np.array([1, 2, 3]), np.array([5])]

    measured = mean_figures(answers, truths, k=4)

    gain = 1 / np.log2(3) + 1 / np.log2(5)
    assert measured["hit_rate"] == 1 / 2
    assert measured["ndcg"] == pytest.approx(gain / (1 + 1 / np.log2(3) + 1 / 2) / 2)
    # The first item alone is wrong; of two, the second is right, and two true items would have been possible.
    assert mean_figures(answers[:1], truths[:1], k=1)["ndcg"] == 0
    assert mean_figures(answers[:1], truths[:1], k=2)["ndcg"] == pytest.approx(1 / np.log2(3) / (1 + 1 / np.log2(3)))


def test_recall_by_popularity_by_hand() -> None:
    """Items with 1, 2 and 1 clicks form two groups with 2 clicks each: the two rare items and the frequent one."""
    clicks = np.array([1, 2, 1])

    assert popularity_groups(clicks, 2).tolist() == [0, 1, 0]
    answers, truths = [np.array([1, 0]), np.array([1])], [np.array([0, 2, 1]), np.array([1, 1])]
    assert recall_by_popularity(answers, truths, clicks, 2) == [0.5, 1.0]
    assert recall_by_popularity([np.array([1])], [np.array([1])], clicks, 2) == [None, 1.0]


@given(clicks=st.lists(st.integers(0, 9), min_size=1, max_size=40), groups=st.integers(1, 6))
def test_groups_rise_with_popularity(clicks: list[int], groups: int) -> None:
    """An item with more clicks is never in a group of rarer items."""
    group = popularity_groups(np.array(clicks), groups)

    assert group.min() >= 0
    assert group.max() < groups
    assert (np.diff(group[np.argsort(clicks, kind="stable")]) >= 0).all()


def test_tops_with_and_without_history() -> None:
    """Equal scores go by item index; with a history its items are left out; the scores stay as they are."""
    scores = np.array([[1.0, 3.0, 2.0, 3.0]])

    assert [top.tolist() for top in tops(scores, 3, [np.array([1])])] == [[3, 2, 0]]
    assert [top.tolist() for top in tops(scores, 3)] == [[1, 3, 2]]


def test_a_catalogue_smaller_than_k() -> None:
    """The answer has fewer than k items."""
    scores = np.array([[1.0, 2.0]])

    assert [top.tolist() for top in tops(scores, 5, [np.array([0])])] == [[1]]
    assert [top.tolist() for top in tops(scores, 5)] == [[1, 0]]
