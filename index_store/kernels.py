"""The loops over items that a request waits for, compiled: what numpy needs forty calls for takes one.

They take microseconds a request, 5 ms for one of 50,000 items, and keep the interpreter's lock: to let go of it and
wait for it again takes longer, and the service bounds what is read together. The first import compiles them (seconds),
later ones read what numba kept beside Python's own compiled files or in NUMBA_CACHE_DIR; where it can write nowhere,
every process compiles. Their slow twins are in tests/test_retrieval.py.

Shapes as in retrieval.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numba import njit, types
from numba.core.types import float32, int32, int64, uint16

#: Of a float16 whose bits are moved to their places in a float32, what its exponent is short of (127 - 15).
HALF = np.float32(2.0**112)


def _array(kind: Any, dimensions: int = 1, layout: Literal["C", "A"] = "C") -> Any:
    """An array that is only read, so one that cannot be written fits too."""
    return types.Array(kind, dimensions, layout, readonly=True)


def _compiled(*arguments: Any, fastmath: frozenset[str] = frozenset()) -> Callable[[Callable[..., Any]], Any]:
    """Compile for these argument types, and keep the result where that is possible."""

    def compile_one(function: Callable[..., Any]) -> Any:
        try:
            return njit([arguments], cache=True, fastmath=set(fastmath))(function)
        except RuntimeError:  # no folder that can be written
            return njit([arguments], fastmath=set(fastmath))(function)

    return compile_one


@_compiled(_array(int32, 2), int64, int64)
def all_within(numbers, least, end):  # type: ignore[no-untyped-def]
    """Whether `least` <= each number < `end`."""
    inside = True
    for number in numbers.ravel():
        inside &= least <= number < end
    return inside


@_compiled(_array(int64), _array(int32), _array(int64), _array(int64))
def read_lists(offsets, items, rows, n):  # type: ignore[no-untyped-def]
    """The first n[i] items of each of the paths in `rows`, end to end, and how many each has; row -1 is no path."""
    lengths = np.zeros(len(rows), np.int64)
    for i in range(len(rows)):
        if rows[i] >= 0:
            lengths[i] = min(n[i], offsets[rows[i] + 1] - offsets[rows[i]])
    taken = np.empty(lengths.sum(), np.int32)
    end = 0
    for i in range(len(rows)):
        for j in range(lengths[i]):
            taken[end] = items[offsets[rows[i]] + j]
            end += 1
    return taken, lengths


@_compiled(_array(int32), _array(int64, 2), _array(float32, 2))
def join(items, lengths, log_probs):  # type: ignore[no-untyped-def]
    """Each request's items once, ascending: request, item (N,), log of the paths' summed probability, how many (N,).

    items: (total,), those of the paths end to end. lengths, log_probs: (B, W), of each path.
    """
    batch, width = lengths.shape
    total = len(items)
    request, item = np.empty(total, np.int64), np.empty(total, np.int64)
    log_prob, paths = np.empty(total, np.float32), np.empty(total, np.float32)
    count = start = 0
    for b in range(batch):
        keys = np.empty(lengths[b].sum(), np.int64)  # by item, then by the paths' probability
        place = 0
        for w in range(width):
            for _ in range(lengths[b, w]):
                keys[place] = np.int64(items[start + place]) * width + w
                place += 1
        start += place
        keys.sort()
        i = 0
        while i < place:
            found = keys[i] // width
            most = log_probs[b, keys[i] - found * width]
            end, total_prob = i + 1, 1.0
            while end < place and keys[end] < (found + 1) * width:
                total_prob += np.exp(np.float64(log_probs[b, keys[end] - found * width] - most))
                end += 1
            request[count], item[count] = b, found
            log_prob[count], paths[count] = (most + np.log(total_prob) if end > i + 1 else most), end - i
            count += 1
            i = end
    return request[:count], item[:count], log_prob[:count], paths[:count]


@_compiled(
    _array(uint16, 2),
    _array(float32),
    _array(float32, 2),
    _array(int64),
    _array(int64),
    _array(float32),
    _array(float32),
    fastmath=frozenset({"reassoc", "contract", "nsz"}),
)
def features(vectors, bias, user, request, item, log_prob, paths):  # type: ignore[no-untyped-def]
    """What the reranker sees of N candidates, (N, 4); see FEATURES.

    vectors: the bits of float16 (V, E). user: (B, E). The products are summed in float32.
    """
    size = vectors.shape[1]
    found = np.empty((len(item), 4), np.float32)
    bits = np.empty(size, np.uint32)
    numbers = bits.view(np.float32)
    # Looks at each vector once before: they lie anywhere in memory, and so the processor waits for many at a time.
    touched = np.uint32(0)
    for i in range(len(item)):
        for e in range(0, size, 32):  # a cache line
            touched += vectors[item[i], e]
    bits[0] = touched
    for i in range(len(item)):
        vector, other = vectors[item[i]], user[request[i]]
        for e in range(size):
            half = np.uint32(vector[e])
            bits[e] = (half & np.uint32(0x8000)) << np.uint32(16) | (half & np.uint32(0x7FFF)) << np.uint32(13)
        total = np.float32(0)
        for e in range(size):
            total += numbers[e] * other[e]
        found[i, 0] = total * HALF + bias[item[i]]
        found[i, 1] = bias[item[i]]
        found[i, 2] = log_prob[i]
        found[i, 3] = paths[i]
    return found


@_compiled(float32)
def _descending(score):  # type: ignore[no-untyped-def]
    """An int64 that falls as a float32 rises; 0 and -0 are one."""
    number = np.empty(1, np.float32)
    number[0] = score + np.float32(0)
    bits = np.int64(number.view(np.int32)[0])
    return ~(bits ^ 0x7FFFFFFF if bits < 0 else bits)


@_compiled(
    _array(int64),
    _array(int64),
    _array(float32),
    _array(float32, layout="A"),
    _array(int64),
    _array(int64),
    _array(int64),
)
def best(request, item, scores, log_prob, k, excluded, bounds):  # type: ignore[no-untyped-def]
    """Each request's k[b] best candidates that are not among excluded[bounds[b] : bounds[b + 1]].

    Returns their items, scores and log_probs, best first and equal ones by item, where each request's end among
    them (B,), and how many candidates it had (B,).
    """
    batch = len(k)
    chosen, ends, had = np.empty(len(item), np.int64), np.empty(batch, np.int64), np.empty(batch, np.int64)
    count = start = 0
    for b in range(batch):
        end = start
        while end < len(request) and request[end] == b:
            end += 1
        keep = np.ones(end - start, np.bool_)
        for i in range(bounds[b], bounds[b + 1]):
            place = start + np.searchsorted(item[start:end], excluded[i])
            if place < end and item[place] == excluded[i]:
                keep[place - start] = False
        order = np.empty(keep.sum(), np.int64)
        kept = 0
        for i in range(start, end):
            if keep[i - start]:
                order[kept] = _descending(scores[i]) << 32 | i
                kept += 1
        order.sort()
        for i in range(min(k[b], kept)):
            chosen[count] = order[i] & 0xFFFFFFFF
            count += 1
        ends[b], had[b] = count, end - start
        start = end
    chosen = chosen[:count]
    return item[chosen], scores[chosen], log_prob[chosen], ends, had
