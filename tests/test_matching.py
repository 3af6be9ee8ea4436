"""Matching rows to columns by immediate acceptance, compared with a slow reference."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.deep_retrieval.matching import SLACK, spread


@given(
    rows=st.integers(1, 120),
    columns=st.integers(1, 40),
    count=st.integers(1, 3),
    costs=st.sampled_from([1, 3, 100, 10**6]),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_spreading_equals_proposing_in_rounds(rows: int, columns: int, count: int, costs: int, seed: int) -> None:
    """Many costs may be equal, and many rows may be rejected again and again."""
    rng = np.random.default_rng(seed)
    cost = (rng.integers(costs, size=(rows, columns)) + rng.integers(costs, size=columns)).astype(np.float32)

    chosen = spread(cost.copy(), min(count, columns))

    for turn in range(min(count, columns)):
        assert chosen[:, turn].tolist() == immediate_acceptance(cost)
        cost[np.arange(rows), chosen[:, turn]] = 1e30


def immediate_acceptance(cost: np.ndarray) -> list[int]:
    """The slow reference: rows propose to their cheapest column with room, which keeps the cheapest rows for good."""
    rows, columns = cost.shape
    capacity = math.ceil(SLACK * rows / columns)
    accepted: list[list[int]] = [[] for _ in range(columns)]
    free = list(range(rows))
    while free:
        proposals: dict[int, list[int]] = {}
        with_room = [c for c in range(columns) if len(accepted[c]) < capacity]
        for row in free:
            proposals.setdefault(min(with_room, key=lambda c: cost[row, c]), []).append(row)
        free = []
        for column, proposing in proposals.items():
            proposing.sort(key=lambda row: cost[row, column])
            room = capacity - len(accepted[column])
            accepted[column] += proposing[:room]
            free += proposing[room:]
        free.sort()
    return [next(c for c in range(columns) if row in accepted[c]) for row in range(rows)]


def test_an_accepted_row_keeps_its_column() -> None:
    """Immediate, not deferred acceptance, with six rows and two places in each of four columns.

    In the first round rows 0 and 1 fill column 0, and column 1 rejects row 4, which costs more than rows 2 and 3. Row 4
    would cost column 0 less than rows 0 and 1 do, but they stay.
    """
    cost = np.array([[2, 9, 9, 9], [2, 9, 9, 9], [9, 0, 9, 9], [9, 0, 9, 9], [1.5, 1, 5, 9], [9, 9, 9, 0]], np.float32)

    assert spread(cost, 1)[:, 0].tolist() == [0, 0, 1, 1, 2, 3]


def test_spreading_gives_each_row_different_columns() -> None:
    """Three rows have the same costs: each column is matched twice, and no row gets a column twice."""
    cost = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2]], np.float32)

    first, second = spread(cost, 2).T

    assert sorted(np.bincount(first, minlength=3)) == [0, 1, 2]
    assert (first != second).all()
