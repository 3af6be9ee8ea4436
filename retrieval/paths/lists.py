"""The loops over path lists and over the postings of new items, compiled by numba as in kernels.py.

A path's items are those of its chain, newest first, and then those of its list in the version. A posting counts only
while its item is live and has not moved to other paths since the posting was made. Each call holds the interpreter's
lock, so a search sees all of the records that were applied together, or nothing of them.

The state of an item is one number, so that a look at it is one access of memory: (the second at which it ends) << 16 |
(its generation). An item that was deleted ends at 0, one that does not expire at NEVER. The generation is that of its
valid postings: 0 for those of the version's lists, then one more for each move. A new item begins with 1.

Shapes: P paths in use, W paths that are read, V items of the version, C slots for new items, Q postings in chains, J
paths of an item.
"""

from __future__ import annotations

import numpy as np
from numba.core.types import float32, int32, int64

from retrieval.paths.kernels import array_type, compiled

NEVER = 2**46  # seconds
GENERATIONS = 0xFFFF  # of an item, at most
SWEPT = 16  # postings that are added to a chain before it is swept again, at least; and as many as it has
#: What a change does to an item.
PUT, DELETE, MOVE, BIAS, END = range(5)
#: Positions in `used`: the slots and the postings in use, the number of the last record applied, and that of the items
#: that were not deleted.
SLOTS, POSTINGS, SEQ, LIVE = range(4)


@compiled(
    array_type(int64), array_type(int32), array_type(int64), array_type(int64), array_type(int64),
    array_type(int64), array_type(int32), array_type(int32, 2), array_type(int64), int64,
)  # fmt: skip
def read_lists(  # type: ignore[no-untyped-def]  # noqa: PLR0917 -- to pass them by name would take too long
    offsets, items, lists, n, rows, state, heads, chain, used, now
):
    """The first n[i] live items of each of W paths, concatenated, their number on each path (W,), and `used[SEQ]`.

    offsets, items: the lists of the version. lists: (W,), the list of each path, -1 for none. rows: (W,), its place in
    `heads`. state: (V + C,), or empty if there is no overlay; then all items are live and there are no chains. heads:
    (P,), the first posting of each chain, or -1. chain: (Q, 4), of each posting the next one or -1, the item, the
    generation and the path. now: seconds.
    """
    lengths = np.zeros(len(rows), np.int64)
    most = 0
    for i in range(len(rows)):
        if lists[i] >= 0:
            lengths[i] = min(n[i], offsets[lists[i] + 1] - offsets[lists[i]])
            most += n[i] if len(used) and used[POSTINGS] else lengths[i]
    taken = np.empty(most, np.int32)
    end = 0
    for i in range(len(rows)):
        if lists[i] < 0:
            continue
        first = offsets[lists[i]]
        if not len(state):
            for j in range(lengths[i]):
                taken[end] = items[first + j]
                end += 1
            continue
        start = end
        posting = heads[rows[i]]
        while posting >= 0 and end - start < n[i]:
            item = chain[posting, 1]
            if state[item] & GENERATIONS == chain[posting, 2] and state[item] >> 16 > now:
                taken[end] = item
                end += 1
            posting = chain[posting, 0]
        for j in range(first, offsets[lists[i] + 1]):
            if end - start == n[i]:
                break
            item = items[j]
            if state[item] & GENERATIONS == 0 and state[item] >> 16 > now:
                taken[end] = item
                end += 1
        lengths[i] = end - start
    return taken[:end], lengths, used[SEQ] if len(used) else 0


@compiled(int64, int64[:], int32[:], int32[:, :], int32[:])
def sweep(row, state, heads, chain, crowd):  # type: ignore[no-untyped-def]
    """Take the postings that do not count any more out of the chain of a path."""
    before, posting = -1, heads[row]
    while posting >= 0:
        item, following = chain[posting, 1], chain[posting, 0]
        if state[item] & GENERATIONS == chain[posting, 2] and state[item] >> 16 > 0:
            before = posting
        else:
            crowd[row] -= 1
            if before < 0:
                heads[row] = following
            else:
                chain[before, 0] = following
        posting = following


@compiled(
    array_type(int64), array_type(int64), array_type(int64), array_type(float32), array_type(int32, 2),
    int64[:], float32[:], int64, int32[:], int32[:, :], int32[:], int32[:], int64[:], int64,
)  # fmt: skip
def apply(  # type: ignore[no-untyped-def]  # noqa: PLR0917 -- as above
    kinds, items, ends, biases, rows, state, bias, first, heads, chain, crowd, limits, used, seq
):
    """Make N changes, in order, and set used[SEQ] to `seq`.

    kinds, items: (N,), what happens to which item. ends: (N,), for PUT and END. biases: (N,), for PUT and BIAS. rows:
    (N, J), the places in `heads` of the item's paths, -1 for none, for PUT and MOVE. first: V, the index of the item in
    the first slot. crowd: (P,), the number of late items of each path. limits: (P,), the number at which postings that
    do not count any more are taken out of the chain. The other arrays are the overlay's, with room.
    """
    for i in range(len(kinds)):
        kind, item = kinds[i], items[i]
        if kind == DELETE:
            used[LIVE] -= state[item] >> 16 > 0
            state[item] &= GENERATIONS
        elif kind == END and state[item] >> 16 > 0:  # what was deleted stays deleted
            state[item] = state[item] & GENERATIONS | ends[i] << 16
        if kind in (PUT, BIAS):
            bias[item] = biases[i]
        if kind == PUT:
            state[item] = ends[i] << 16 | 1
            used[SLOTS] = item - first + 1
            used[LIVE] += 1
        elif kind == MOVE:
            state[item] += 1
        if kind in (PUT, MOVE):
            for row in rows[i]:
                if row >= 0:
                    if crowd[row] >= limits[row]:
                        sweep(row, state, heads, chain, crowd)
                        limits[row] = 2 * crowd[row] + SWEPT
                    posting = used[POSTINGS]
                    chain[posting, 0] = heads[row]
                    chain[posting, 1] = item
                    chain[posting, 2] = state[item] & GENERATIONS
                    chain[posting, 3] = row
                    heads[row] = posting
                    crowd[row] += 1
                    used[POSTINGS] += 1
    used[SEQ] = seq
