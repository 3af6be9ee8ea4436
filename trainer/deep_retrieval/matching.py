"""spread(): match each row of a cost matrix to cheap columns, so that all columns get similar numbers of rows.

This is immediate acceptance with capacities. In each round, every row without a column proposes to its cheapest column
that has room. A column accepts the proposals with the lowest cost until it is full. Accepted rows stay, even if a
cheaper row proposes in a later round; in deferred acceptance (Gale and Shapley 1962) they would be replaced. Because
rows skip full columns, this is the adaptive Boston mechanism (Mennle and Seuken, "Trade-offs in School Choice"). At
equal costs, a column accepts the row with the lower index, and a row proposes to the column with the lower index.

The code is compiled, because a tree over a large catalogue needs a hundred thousand small matchings. With numpy, the
overhead of its calls would take most of the time.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

SLACK = 1.3  # a column has room for SLACK times its even share of the rows, rounded up
LISTED = 16  # number of cheapest columns that are listed at once for a rejected row


@njit(cache=True)
def spread(cost, count):  # type: ignore[no-untyped-def]
    """Match every row to `count` different columns. Returns columns, int64 (N, count), in the order of matching.

    cost: float32 (N, k), with count <= k; it is overwritten. A row gets a column twice only if all others are full.
    """
    columns = np.empty((len(cost), count), np.int64)
    for turn in range(count):
        columns[:, turn] = _match(cost)
        for row in range(len(cost)):
            cost[row, columns[row, turn]] = 1e30  # not infinite, so that a repeated column remains possible
    return columns


@njit(cache=True)
def _match(cost):  # type: ignore[no-untyped-def]
    """A column for each row, (N,), by immediate acceptance."""
    rows, columns = cost.shape
    room = np.full(columns, math.ceil(SLACK * rows / columns), np.int64)
    matched, proposal = np.empty(rows, np.int64), np.empty(rows, np.int64)
    # For a rejected row: its cheapest columns (listed), their number (known), and the number already tried (used).
    listed, known, used = np.empty((rows, LISTED), np.int32), np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    free = np.arange(rows)
    for row in free:
        proposal[row] = _cheapest(cost[row])
    while True:
        # Sort the free rows by the column they propose to; those of column c end at ends[c + 1].
        ends = np.zeros(columns + 1, np.int64)
        for row in free:
            ends[proposal[row] + 1] += 1
        ends = np.cumsum(ends)
        proposers, place = np.empty(len(free), np.int64), ends[:-1].copy()
        for row in free:
            proposers[place[proposal[row]]] = row
            place[proposal[row]] += 1
        rejected = np.empty(len(free), np.int64)
        count = 0
        for column in range(columns):
            own = proposers[ends[column] : ends[column + 1]]
            if len(own) > room[column]:
                costs = np.empty(len(own), cost.dtype)
                for i, row in enumerate(own):
                    costs[i] = cost[row, column]
                own = own[np.argsort(costs, kind="mergesort")]
            for i, row in enumerate(own):
                if i < room[column]:
                    matched[row] = column
                else:
                    rejected[count] = row
                    count += 1
            room[column] = max(0, room[column] - len(own))
        if not count:
            return matched
        free = np.sort(rejected[:count])
        for row in free:
            while used[row] < known[row] and not room[listed[row, used[row]]]:
                used[row] += 1
            if used[row] == known[row]:
                known[row], used[row] = _list_cheapest(cost[row], room, listed[row]), 0
            proposal[row] = listed[row, used[row]]


@njit(cache=True, fastmath={"nnan", "nsz"})
def _cheapest(costs):  # type: ignore[no-untyped-def]
    """The first index of the least cost."""
    least = costs[0]
    for cost in costs:
        least = min(least, cost)
    place = 0
    while place < len(costs) - 1 and costs[place] != least:
        place += 1
    return place


@njit(cache=True)
def _list_cheapest(costs, room, listed):  # type: ignore[no-untyped-def]
    """Fill `listed` (LISTED,) with a row's cheapest columns that have room, cheapest first; returns their number."""
    count = 0
    for column, cost in enumerate(costs):
        if not room[column] or (count == LISTED and not cost < costs[listed[LISTED - 1]]):
            continue
        count = min(count + 1, LISTED)
        place = count - 1
        while place and cost < costs[listed[place - 1]]:
            listed[place] = listed[place - 1]
            place -= 1
        listed[place] = column
    return count
