"""spread(): each row of a cost matrix gets cheap columns, and no column gets many more rows than another.

This is immediate acceptance with capacities: in each round every row without a column proposes to its cheapest column
that has room, and a column accepts the proposals of least cost until it is full. What is accepted stays; a column never
lets a row go for a cheaper one that proposes later. That is the difference from deferred acceptance (Gale and Shapley
1962). Rows skip full columns, so it is the adaptive Boston mechanism (Mennle and Seuken, "Trade-offs in School
Choice"). Where several rows cost a column the same, those with the lower index are accepted; where several columns
cost a row the same, it proposes to the one with the lower index.

Compiled, because a tree over a large catalogue needs a hundred thousand small matchings, and numpy's calls would take
most of the time.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

SLACK = 1.3  # a column takes at most so many times its even share of the rows, rounded up
AHEAD = 16  # columns that a rejected row ranks at once


@njit(cache=True)
def spread(cost, count):  # type: ignore[no-untyped-def]
    """Match every row `count` times, each time to another column: columns, int64 (N, count), in the order of matching.

    cost: float32 (N, k), with count <= k; it is overwritten. A row gets a column twice only if no other has room.
    """
    columns = np.empty((len(cost), count), np.int64)
    for turn in range(count):
        columns[:, turn] = _match(cost)
        for row in range(len(cost)):
            cost[row, columns[row, turn]] = 1e30  # not infinite, so that the row can still be matched to it at last
    return columns


@njit(cache=True)
def _match(cost):  # type: ignore[no-untyped-def]
    """A column for each row, (N,), by immediate acceptance."""
    rows, columns = cost.shape
    room = np.full(columns, math.ceil(SLACK * rows / columns), np.int64)
    matched, proposal = np.empty(rows, np.int64), np.empty(rows, np.int64)
    # The next proposals of a row that was rejected: its cheapest columns, how many are listed, how many are used up.
    listed, known, used = np.empty((rows, AHEAD), np.int32), np.zeros(rows, np.int64), np.zeros(rows, np.int64)
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
    """Fill `listed` (AHEAD,) with a row's cheapest columns that have room, cheapest first; returns how many."""
    count = 0
    for column, cost in enumerate(costs):
        if not room[column] or (count == AHEAD and not cost < costs[listed[AHEAD - 1]]):
            continue
        count = min(count + 1, AHEAD)
        place = count - 1
        while place and cost < costs[listed[place - 1]]:
            listed[place] = listed[place - 1]
            place -= 1
        listed[place] = column
    return count
