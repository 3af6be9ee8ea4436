"""Where training starts: item vectors from who clicked what, and paths from the item vectors.

The paper starts from random paths (Sec. 3.2). From there the network must first learn by heart which items a path
has; from a tree over the item vectors it learns which kinds of item a user wants, and what it learned of one item
holds for its neighbours (docs/log.md).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from trainer.deep_retrieval.paths import random_paths, repeating_rows

Vectors = NDArray[np.float32]
Nodes = NDArray[np.int64]

SAMPLE = 256  # vectors a node, from which its centre is found
ROUNDS = 8  # of k-means
SLACK = 1.3  # a cluster takes at most so many times its share
BLOCK = 50_000_000  # distances held at once
AHEAD = 16  # nodes that one looks for at once which has been refused


def tree_paths(
    vectors: Vectors, count: int, depth: int, width: int, leaf: int, generator: np.random.Generator
) -> Nodes:
    """`count` different paths for each of V items, (V, J), from balanced k-means in each layer. vectors: (V, E).

    An item enters at its `count` nearest first nodes. Below, who shares a prefix is divided again; in the last layer
    into so many nodes that each has about `leaf` items, if there are as many. Time: V J K E for each layer and round,
    of a sample.
    """
    first = _nearest(vectors, _centres(vectors, width, generator), min(count, width, len(vectors)), generator)
    first = np.concatenate([first] * count, axis=1)[:, :count]
    item = np.repeat(np.arange(len(vectors)), count)
    paths = first.ravel()
    for layer in range(1, depth):
        order = np.lexsort((generator.random(len(paths)), paths))
        starts = np.flatnonzero(np.diff(paths[order], prepend=-1))
        sizes = np.diff(starts, append=len(order))
        # A node each, in a random order from a random one on, so that all nodes of the layer are used alike.
        place = np.arange(len(order)) + np.repeat(generator.integers(width, size=len(starts)) - starts, sizes)
        nodes = np.empty(len(paths), np.int64)
        nodes[order] = place % width
        last = layer == depth - 1
        for start, size in zip(starts, sizes, strict=True) if not last or leaf > 1 else ():
            group = order[start : start + size]
            members = vectors[item[group]]
            labels = generator.permutation(width)
            parts = min(width, -(-size // leaf)) if last else width
            nodes[group] = labels[_nearest(members, _centres(members, parts, generator), 1, generator)[:, 0]]
        paths = paths * width + nodes
    found = paths.reshape(len(vectors), count)
    clash = repeating_rows(found)
    found[clash] = random_paths(len(clash), count, depth, width, generator)
    return found


def _centres(vectors: Vectors, width: int, generator: np.random.Generator) -> Vectors:
    """Centres (k, E) of at most `width` clusters of like sizes: k-means on a sample."""
    sample = vectors
    if len(vectors) > SAMPLE * width:
        sample = vectors[generator.choice(len(vectors), SAMPLE * width, replace=False)]
    k = min(width, len(sample))
    centres = sample[generator.choice(len(sample), k, replace=False)].astype(np.float32)
    squares = (sample**2).sum(axis=1)
    for _ in range(ROUNDS):
        member = _spread(_distances(sample, squares, centres), 1)[:, 0]
        sums, size = _sums(sample, member, k)
        centres[size > 0] = (sums / np.maximum(size, 1)[:, None])[size > 0]
    return centres


def _nearest(vectors: Vectors, centres: Vectors, count: int, generator: np.random.Generator) -> Nodes:
    """`count` centres of each vector, (N, count), near and none much more crowded than another, nearest first."""
    rows = max(1, BLOCK // len(centres))
    found = np.empty((len(vectors), count), np.int64)
    for block in np.array_split(generator.permutation(len(vectors)), -(-len(vectors) // rows)):
        members = vectors[block]
        found[block] = _spread(_distances(members, (members**2).sum(axis=1), centres), count)
    return found


# A large catalogue has a hundred thousand prefixes to divide, each small: numpy's calls would take most of the time.


@njit(cache=True)
def _sums(vectors, member, clusters):  # type: ignore[no-untyped-def]
    """The sum of each cluster's vectors, (k, E), and how many they are, (k,). member: (N,), the cluster of each."""
    sums, size = np.zeros((clusters, vectors.shape[1])), np.zeros(clusters, np.int64)
    for i in range(len(vectors)):
        size[member[i]] += 1
        for e in range(vectors.shape[1]):
            sums[member[i], e] += vectors[i, e]
    return sums, size


@njit(cache=True)
def _spread(cost, count):  # type: ignore[no-untyped-def]
    """`count` different columns for each row of `cost` (N, k), cheap, and each column about as often: (N, count).

    A column takes the rows to which it is cheapest, up to its capacity; who is refused asks the next. Overwrites cost.
    """
    found = np.empty((len(cost), count), np.int64)
    for place in range(count):
        found[:, place] = _spread_once(cost)
        for row in range(len(cost)):
            cost[row, found[row, place]] = 1e30  # not infinite: rather twice than where there is no room
    return found


@njit(cache=True)
def _spread_once(cost):  # type: ignore[no-untyped-def]
    """A column for each row, (N,); see _spread."""
    rows, columns = cost.shape
    left = np.full(columns, math.ceil(SLACK * rows / columns), np.int64)
    chosen, asked = np.empty(rows, np.int64), np.empty(rows, np.int64)
    # Of a row that was refused, the next columns that it will ask: how many are known, and how many it has asked.
    ranked, known, done = np.empty((rows, AHEAD), np.int32), np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    waiting = np.arange(rows)
    for row in waiting:
        asked[row] = _cheapest(cost[row])
    while True:
        ends = np.zeros(columns + 1, np.int64)  # of those who ask a column, among all by what they ask
        for row in waiting:
            ends[asked[row] + 1] += 1
        ends = np.cumsum(ends)
        asking, place = np.empty(len(waiting), np.int64), ends[:-1].copy()
        for row in waiting:
            asking[place[asked[row]]] = row
            place[asked[row]] += 1
        refused = np.empty(len(waiting), np.int64)
        count = 0
        for column in range(columns):
            ours = asking[ends[column] : ends[column + 1]]
            if len(ours) > left[column]:
                costs = np.empty(len(ours), cost.dtype)
                for i, row in enumerate(ours):
                    costs[i] = cost[row, column]
                ours = ours[np.argsort(costs, kind="mergesort")]
            for i, row in enumerate(ours):
                if i < left[column]:
                    chosen[row] = column
                else:
                    refused[count] = row
                    count += 1
            left[column] = max(0, left[column] - len(ours))
        if not count:
            return chosen
        waiting = np.sort(refused[:count])
        for row in waiting:
            while done[row] < known[row] and not left[ranked[row, done[row]]]:
                done[row] += 1
            if done[row] == known[row]:
                known[row], done[row] = _rank(cost[row], left, ranked[row]), 0
            asked[row] = ranked[row, done[row]]


@njit(cache=True, fastmath={"nnan", "nsz"})
def _cheapest(offers):  # type: ignore[no-untyped-def]
    """The first of the least."""
    least = offers[0]
    for offer in offers:
        least = min(least, offer)
    place = 0
    while place < len(offers) - 1 and offers[place] != least:
        place += 1
    return place


@njit(cache=True)
def _rank(offers, left, ranked):  # type: ignore[no-untyped-def]
    """Fill `ranked` (AHEAD,) with the cheapest columns that have room, cheapest first; returns how many there are."""
    count = 0
    for column, offer in enumerate(offers):
        if not left[column] or (count == AHEAD and not offer < offers[ranked[AHEAD - 1]]):
            continue
        count = min(count + 1, AHEAD)
        place = count - 1
        while place and offer < offers[ranked[place - 1]]:
            ranked[place] = ranked[place - 1]
            place -= 1
        ranked[place] = column
    return count


def _distances(vectors: Vectors, squares: Vectors, centres: Vectors) -> Vectors:
    """Squared, (N, k). squares: (N,), the vectors' squared lengths."""
    distances: Vectors = squares[:, None] + (centres**2).sum(axis=1)
    distances += vectors @ (-2 * centres.T)
    return distances
