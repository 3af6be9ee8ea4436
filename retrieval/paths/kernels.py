"""The loops over items that run during a request, compiled by numba.

The loops take microseconds per request (5 ms for 50,000 items) and hold the interpreter's lock, because releasing the
lock and acquiring it again would take longer. A batch reads at most Limits.READS items, so the lock is held only
briefly. A wider search of remote lists may read more. A call from Python costs 8 us, mostly for its arguments, so the
single call `rerank` does all the work after the lists are read.

The first import compiles the loops, which takes seconds. Numba keeps the compiled code beside Python's own compiled
files or in NUMBA_CACHE_DIR, and later imports load it from there. If neither folder is writable, every process
compiles.
tests/test_paths.py compares the loops with slow versions in plain Python.

The letters for shapes are those of structure.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.core.types import float32, int32, int64, uint16

#: `features` shifts the bits of a float16 to their positions in a float32. The result is too small by the factor HALF,
#: because the exponent of a float16 has the bias 15 and the exponent of a float32 the bias 127.
HALF = np.float32(2.0**112)
RECENCY = 0.8  # the weight of an item of the history relative to that of the next item
HASH = 0x9E3779B1  # an odd number; items times it are spread over the lowest bits


def array_type(kind: Any, dimensions: int = 1) -> Any:
    """The type of a read-only array. Writable arrays are accepted too."""
    return types.Array(kind, dimensions, "C", readonly=True)


def compiled(*arguments: Any, fastmath: frozenset[str] = frozenset()) -> Callable[[Callable[..., Any]], Any]:
    """Compile for these argument types, and cache the result if a folder is writable."""

    def compile_one(function: Callable[..., Any]) -> Any:
        try:
            return njit([arguments], cache=True, fastmath=set(fastmath))(function)
        except RuntimeError:  # no cache folder is writable
            return njit([arguments], fastmath=set(fastmath))(function)

    return compile_one


@compiled(array_type(int32, 2), int64, int64)
def all_within(numbers, least, end):  # type: ignore[no-untyped-def]
    """Whether every number is >= `least` and < `end`."""
    inside = True
    for number in numbers.ravel():
        inside &= least <= number < end
    return inside


@compiled(array_type(uint16, 2), array_type(uint16, 2), array_type(int64), array_type(int64))
def padded(vectors, new, items, lengths):  # type: ignore[no-untyped-def]
    """The item vectors of B histories, (B, T, E), with zeros after each history's end.

    T: the longest length, at least 1. vectors: (V, E). new: (C, E), the vectors of the items from V on. items: the item
    indices of all histories, concatenated; each must be below V + C, which is not checked. lengths: (B,).
    """
    histories = np.zeros((len(lengths), max(1, lengths.max()), vectors.shape[1]), np.uint16)
    start = 0
    for b in range(len(lengths)):
        for t in range(lengths[b]):
            item = items[start + t]
            histories[b, t] = vectors[item] if item < len(vectors) else new[item - len(vectors)]
        start += lengths[b]
    return histories


@compiled(array_type(int32), array_type(int64, 2), array_type(float32, 2))
def join(items, lengths, log_probs):  # type: ignore[no-untyped-def]
    """The different items of each request, N in all, ordered by request, then item.

    items: (total,), the items of all paths, concatenated. lengths, log_probs: (B, W), of each path. Returns four arrays
    (N,): request, item, log_prob, paths. The last two are of the searched paths from which the item was read: the log
    of their summed probability, and their number.
    """
    batch, width = lengths.shape
    total = len(items)
    request, item = np.empty(total, np.int64), np.empty(total, np.int64)
    log_prob, paths = np.empty(total, np.float32), np.empty(total, np.float32)
    count = start = 0
    for b in range(batch):
        keys = np.empty(lengths[b].sum(), np.int64)  # sort by item, then by path; the most probable path comes first
        place = 0
        for w in range(width):
            for _ in range(lengths[b, w]):
                keys[place] = np.int64(items[start + place]) << 32 | w
                place += 1
        start += place
        keys.sort()
        i = 0
        while i < place:
            candidate = keys[i] >> 32
            most = log_probs[b, keys[i] & 0xFFFFFFFF]
            end, total_prob = i + 1, 1.0
            while end < place and keys[end] >> 32 == candidate:
                total_prob += np.exp(np.float64(log_probs[b, keys[end] & 0xFFFFFFFF] - most))
                end += 1
            request[count], item[count] = b, candidate
            log_prob[count], paths[count] = (most + np.log(total_prob) if end > i + 1 else most), end - i
            count += 1
            i = end
    return request[:count], item[:count], log_prob[:count], paths[:count]


@compiled(
    array_type(int32, 3),
    array_type(uint16, 3),
    array_type(int64),
    array_type(int64),
    array_type(int64),
    array_type(int64),
    float32[:, :],
)
def sum_similarities(neighbours, similarities, history, lengths, request, item, values):  # type: ignore[no-untyped-def]
    """Write the squares of the last four features to columns 4 to 7 of values (N, 8); see FEATURES in rerank.py.

    The candidates of a request are put in a hash table. Then each item of the history is looked up once, with all its
    neighbours, so the time grows with the history times M and not with the number of candidates.
    """
    place = begin = 0
    for b in range(len(lengths)):
        end = begin
        while end < len(request) and request[end] == b:
            end += 1
        size = 16
        while size < 2 * (end - begin):
            size *= 2
        slots = np.full(size, -1, np.int64)
        for i in range(begin, end):
            slot = item[i] * HASH & size - 1
            while slots[slot] >= 0:
                slot = slot + 1 & size - 1
            slots[slot] = i
        for t in range(lengths[b]):
            seen = history[place + t]
            if seen >= neighbours.shape[1]:  # a new item
                continue
            recency = RECENCY ** (lengths[b] - 1 - t)
            for kind in range(2):
                for m in range(neighbours.shape[2]):
                    other = np.int64(neighbours[kind, seen, m])
                    if other < 0:
                        break
                    slot = other * HASH & size - 1
                    while slots[slot] >= 0 and item[slots[slot]] != other:
                        slot = slot + 1 & size - 1
                    if slots[slot] >= 0:
                        similarity = similarities[kind, seen, m] / 65535
                        values[slots[slot], 4 + 2 * kind] += similarity
                        values[slots[slot], 5 + 2 * kind] += similarity * recency
        place += lengths[b]
        begin = end


@compiled(
    array_type(int32),
    int64,
    int64,
    array_type(int32, 3),
    array_type(uint16, 3),
    array_type(int64),
    array_type(int64),
    array_type(int64),
    array_type(int64),
    float32[:, :],
)
def sum_late_similarities(  # type: ignore[no-untyped-def]  # noqa: PLR0917 -- as below
    late, items, first, neighbours, similarities, history, lengths, request, item, values
):
    """The same for items that came after the training, which are in no list of sum_similarities.

    Each has a row of neighbours, similarities (2, R, N) with the items that have it among their neighbours, and among
    their followers. These few are looked up in the history. late: (V,), the row of each item of the version, -1 for
    none; empty if none has a row. items: V. first: the row of item V; those of the later items follow.
    """
    place = b = 0
    for i in range(len(item)):
        while b < request[i] and b < len(lengths):
            place += lengths[b]
            b += 1
        slot = first + item[i] - items
        if item[i] < items:
            slot = np.int64(late[item[i]]) if len(late) else -1
        if slot < 0 or b >= len(lengths):
            continue
        for t in range(lengths[b]):
            recency = RECENCY ** (lengths[b] - 1 - t)
            for kind in range(2):
                for m in range(neighbours.shape[2]):
                    if neighbours[kind, slot, m] == history[place + t]:
                        similarity = similarities[kind, slot, m] / 65535
                        values[i, 4 + 2 * kind] += similarity
                        values[i, 5 + 2 * kind] += similarity * recency


@compiled(
    array_type(uint16, 2),
    array_type(uint16, 2),
    array_type(float32),
    array_type(int32, 3),
    array_type(uint16, 3),
    array_type(int32),
    array_type(int32, 3),
    array_type(uint16, 3),
    array_type(float32, 2),
    array_type(int64),
    array_type(int64),
    array_type(int64),
    array_type(int64),
    array_type(float32),
    array_type(float32),
    fastmath=frozenset({"reassoc", "contract", "nsz"}),
)
def features(  # type: ignore[no-untyped-def]  # noqa: PLR0917 -- to pass them by name would take too long
    vectors,
    new,
    bias,
    neighbours,
    similarities,
    late,
    late_neighbours,
    late_similarities,
    user,
    history,
    lengths,
    request,
    item,
    log_prob,
    paths,
):
    """The reranker's features of N candidates, (N, 8); see FEATURES in rerank.py.

    vectors: the bits of float16 (V, E); new: (C, E), those of the items from V on. bias: (V + C,). neighbours,
    similarities: (2, V, M). late (V,), late_neighbours, late_similarities (2, R, N): see `sum_late_similarities`; the
    last C rows are those of the items from V on. user: (B, E). history, lengths: see Beams.
    The products of vectors are summed in float32.
    """
    size = vectors.shape[1]
    values = np.zeros((len(item), 8), np.float32)
    bits = np.empty(size, np.uint32)
    numbers = bits.view(np.float32)
    # Touch every vector first: the vectors are scattered in memory, and the processor can fetch many at once.
    touched = np.uint32(0)
    for i in range(len(item)):
        touched += np.uint32(bias[item[i]] > 0)
        vector = vectors[item[i]] if item[i] < len(vectors) else new[item[i] - len(vectors)]
        for e in range(0, size, 32):  # a cache line
            touched += vector[e]
    bits[0] = touched
    for i in range(len(item)):
        vector = vectors[item[i]] if item[i] < len(vectors) else new[item[i] - len(vectors)]
        other = user[request[i]]
        for e in range(size):
            half = np.uint32(vector[e])
            bits[e] = (half & np.uint32(0x8000)) << np.uint32(16) | (half & np.uint32(0x7FFF)) << np.uint32(13)
        total = np.float32(0)
        for e in range(size):
            total += numbers[e] * other[e]
        values[i, 0] = total * HALF + bias[item[i]]
        values[i, 1] = bias[item[i]]
        values[i, 2] = log_prob[i]
        values[i, 3] = paths[i]
    if neighbours.shape[2]:
        sum_similarities(neighbours, similarities, history, lengths, request, item, values)
        if late_neighbours.shape[1]:
            first = late_neighbours.shape[1] - len(new)
            sum_late_similarities(
                late, len(vectors), first, late_neighbours, late_similarities, history, lengths, request, item, values
            )
        for i in range(len(item)):
            for feature in range(4, 8):
                values[i, feature] = np.sqrt(values[i, feature])
    return values


@compiled(int32)
def _descending(bits):  # type: ignore[no-untyped-def]
    """An int64 that is smaller for a larger float32. bits: the bits of the float32. Equal for 0 and -0."""
    wide = np.int64(bits)
    return ~(np.int64(-0x80000000) - wide if wide < 0 else wide)


@compiled(
    array_type(int32),
    array_type(int64, 2),
    array_type(float32, 2),
    array_type(uint16, 2),
    array_type(uint16, 2),
    array_type(float32),
    array_type(int32, 3),
    array_type(uint16, 3),
    array_type(int32),
    array_type(int32, 3),
    array_type(uint16, 3),
    array_type(float32, 2),
    array_type(int64),
    array_type(int64),
    array_type(float32),
    float32,
    array_type(int64),
    array_type(int64),
    array_type(int64),
)
def rerank(  # type: ignore[no-untyped-def]  # noqa: PLR0917 -- to pass them by name would take too long
    items, lengths, log_probs, vectors, new, bias, neighbours, similarities, late, late_neighbours, late_similarities,
    user, history, history_lengths, weights, intercept, k, excluded, bounds
):  # fmt: skip
    """The k[b] best candidates of each request b, without the items in excluded[bounds[b] : bounds[b + 1]].

    items, lengths, log_probs: see `join`. vectors to history_lengths: see `features`. weights (8,), intercept: the
    reranker's.
    Returns the items, scores and log_probs of all answers, concatenated. An answer is ordered by descending score, then
    by item. Also returns counts (4, B), four numbers for each request: the end of its answer in these arrays, the paths
    with items, the items read, and the different items among the items read.
    """
    request, item, log_prob, paths = join(items, lengths, log_probs)
    asked = len(history_lengths) if np.any(weights[4:] != 0) else 0  # else no feature needs the histories
    seen = features(
        vectors, new, bias, neighbours, similarities, late, late_neighbours, late_similarities, user, history,
        history_lengths[:asked], request, item, log_prob, paths,
    )  # fmt: skip
    scores = np.empty(len(item), np.float32)
    for i in range(len(item)):
        scores[i] = intercept
        for f in range(len(weights)):
            scores[i] += weights[f] * seen[i, f]
    batch = len(k)
    chosen, counts = np.empty(len(item), np.int64), np.empty((4, batch), np.int64)
    bits = scores.view(np.int32)
    count = start = 0
    for b in range(batch):
        end = start
        while end < len(request) and request[end] == b:
            end += 1
        keep = np.ones(end - start, np.bool_)
        # Looked up one by one: sorting the excluded items in an order that an attacker chose can take quadratic time.
        for i in range(bounds[b], bounds[b + 1]):
            low, high = start, end
            while low < high:
                middle = (low + high) // 2
                if item[middle] < excluded[i]:
                    low = middle + 1
                else:
                    high = middle
            if low < end and item[low] == excluded[i]:
                keep[low - start] = False
        order = np.empty(end - start, np.int64)
        kept = 0
        for i in range(start, end):
            if keep[i - start]:
                order[kept] = _descending(bits[i]) << 32 | i
                kept += 1
        order = order[:kept]
        order.sort()
        for i in range(min(k[b], kept)):
            chosen[count] = order[i] & 0xFFFFFFFF
            count += 1
        counts[0, b], counts[1, b] = count, (lengths[b] > 0).sum()
        counts[2, b], counts[3, b] = lengths[b].sum(), end - start
        start = end
    chosen = chosen[:count]
    return item[chosen], scores[chosen], log_prob[chosen], counts
