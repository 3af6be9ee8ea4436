"""tree_paths(): the first paths, from a tree over vectors of the items (audience.py).

The paper starts from random paths (Sec. 3.2). The network then has to memorise the items of each path. With a tree,
similar items share prefixes, so whatever the network learns about an item helps for similar items too
(docs/log-paths.md).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from trainer.deep_retrieval.matching import spread
from trainer.deep_retrieval.paths import random_paths, repeating_rows

Vectors = NDArray[np.float32]
Nodes = NDArray[np.int64]

SAMPLE = 256  # vectors per cluster in the sample that the centres are computed from
ROUNDS = 8  # rounds of k-means
BLOCK = 50_000_000  # most distances in memory at once


def tree_paths(
    vectors: Vectors, count: int, depth: int, width: int, leaf: int, generator: np.random.Generator
) -> Nodes:
    """`count` different paths for each of V items, (V, J), from balanced k-means in each layer. vectors: (V, E).

    The `count` nearest clusters of an item are the first nodes of its paths. In each further layer, the items that
    share a prefix are clustered again. In the last layer, a prefix gets at most K clusters of about `leaf` items; if
    `leaf` is 1, its items are assigned to nodes in turn instead. Time: at most V J K E for each layer, to assign items
    to clusters. The rounds of k-means run on a sample.
    """
    first = _nearest(vectors, _centres(vectors, width, generator), min(count, width, len(vectors)), generator)
    first = np.concatenate([first] * count, axis=1)[:, :count]  # repeats first nodes if there are fewer clusters than J
    item = np.repeat(np.arange(len(vectors)), count)
    prefixes = first.ravel()  # (V J,)
    for layer in range(1, depth):
        order = np.lexsort((generator.random(len(prefixes)), prefixes))
        starts = np.flatnonzero(np.diff(prefixes[order], prepend=-1))
        sizes = np.diff(starts, append=len(order))
        # Items that share a prefix are assigned to the nodes in turn, in random order and starting at a random node, so
        # that all nodes of a layer are used equally often. If the loop below clusters the items, it overwrites these
        # nodes.
        turn = np.arange(len(order)) + np.repeat(generator.integers(width, size=len(starts)) - starts, sizes)
        nodes = np.empty(len(prefixes), np.int64)
        nodes[order] = turn % width
        last = layer == depth - 1
        for start, size in zip(starts, sizes, strict=True) if not last or leaf > 1 else ():
            group = order[start : start + size]
            members = vectors[item[group]]
            labels = generator.permutation(width)
            clusters = min(width, -(-size // leaf)) if last else width
            nodes[group] = labels[_nearest(members, _centres(members, clusters, generator), 1, generator)[:, 0]]
        prefixes = prefixes * width + nodes
    paths = prefixes.reshape(len(vectors), count)
    repeating = repeating_rows(paths)
    paths[repeating] = random_paths(len(repeating), count, depth, width, generator)
    return paths


def _centres(vectors: Vectors, width: int, generator: np.random.Generator) -> Vectors:
    """Centres (k, E) of at most `width` clusters of similar sizes: balanced k-means on a sample."""
    sample = vectors
    if len(vectors) > SAMPLE * width:
        sample = vectors[generator.choice(len(vectors), SAMPLE * width, replace=False)]
    k = min(width, len(sample))
    centres = sample[generator.choice(len(sample), k, replace=False)].astype(np.float32)
    squares = (sample**2).sum(axis=1)
    for _ in range(ROUNDS):
        cluster = spread(_distances(sample, squares, centres), 1)[:, 0]
        sums, sizes = _sums(sample, cluster, k)
        centres[sizes > 0] = (sums / np.maximum(sizes, 1)[:, None])[sizes > 0]
    return centres


def _nearest(vectors: Vectors, centres: Vectors, count: int, generator: np.random.Generator) -> Nodes:
    """The `count` nearest centres of each vector that have room for the vector, nearest first, (N, count)."""
    rows = max(1, BLOCK // len(centres))
    nearest = np.empty((len(vectors), count), np.int64)
    for block in np.array_split(generator.permutation(len(vectors)), -(-len(vectors) // rows)):
        members = vectors[block]
        nearest[block] = spread(_distances(members, (members**2).sum(axis=1), centres), count)
    return nearest


@njit(cache=True)
def _sums(vectors, cluster, clusters):  # type: ignore[no-untyped-def]
    """The sum of each cluster's vectors, (k, E), and their number, (k,). cluster: (N,), the cluster of each vector."""
    sums, sizes = np.zeros((clusters, vectors.shape[1])), np.zeros(clusters, np.int64)
    for i in range(len(vectors)):
        sizes[cluster[i]] += 1
        for e in range(vectors.shape[1]):
            sums[cluster[i], e] += vectors[i, e]
    return sums, sizes


def _distances(vectors: Vectors, squares: Vectors, centres: Vectors) -> Vectors:
    """Squared distances, (N, k). squares: (N,), the vectors' squared lengths."""
    distances: Vectors = squares[:, None] + (centres**2).sum(axis=1)
    distances += vectors @ (-2 * centres.T)
    return distances
