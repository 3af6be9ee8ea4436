"""Choose beam width and items per path together: the pair that reads the largest share of brute force's answer within
a budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.paths.index import PathIndex
from retrieval.paths.rerank import Beams
from retrieval.paths.structure import PathStructure
from retrieval.query import Limits
from trainer.config import TrainConfig
from trainer.data.requests import Requests
from trainer.deep_retrieval.reads import SERVED_READS

BEAMS = (
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    10,
    12,
    15,
    18,
    20,
    25,
    30,
    36,
    40,
    45,
    50,
    60,
    75,
    90,
    100,
    125,
    150,
    175,
    200,
    225,
    250,
    256,
)
CAPS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500)


class Point(NamedTuple):
    """The measured effect of a beam width and of a cap on the items read per path.

    reads: the mean number of items that a request reads. share: the share of brute force's k best items among these.
    """

    share: float
    reads: float
    beam: int  # W
    per_path: int  # n


def choose_beam(
    structure: PathStructure, requests: Requests, config: TrainConfig, budget: float = SERVED_READS
) -> tuple[int, int]:
    """(beam, per_path) with the largest share among the pairs that read at most `budget` k items on average.

    If no pair is within the budget, the pair that reads least. A value that the config sets is not changed.
    """
    beams = BEAMS if config.beam == "auto" else (config.beam,)
    caps = CAPS if config.per_path == "auto" else (config.per_path,)
    best = best_within(frontier(structure, requests, config.k, budget * config.k, beams, caps), budget * config.k)
    return best.beam, best.per_path


def best_within(points: Iterable[Point], reads: float) -> Point:
    """The point with the largest share among those with at most `reads` reads; if none has, the one that reads least.

    Points with more reads than a request is allowed are not chosen either.
    """
    points = list(points)
    affordable = [p for p in points if p.reads <= reads and p.beam * p.per_path <= Limits.READS]
    if affordable:
        return max(affordable, key=lambda point: (point.share, -point.reads, point.beam, point.per_path))
    return min(points, key=lambda point: (point.reads, point.beam, point.per_path))


def frontier(
    structure: PathStructure,
    requests: Requests,
    k: int,
    reads: float,
    beams: Iterable[int] = BEAMS,
    caps: Sequence[int] = CAPS,
) -> Iterator[Point]:
    """Points by rising beam, then rising cap. For each beam, the last point is the first that reads too much.

    A point reads too much if it has more than `reads` items on average, or more than a request is allowed to read.
    Brute force's k best items are those with the highest logits of the softmax head.
    """
    exact: list[NDArray[np.int64]] = []
    index = structure.index
    for beam in beams:
        searched = list(requests.beams(structure, beam))
        exact = exact or [_exact_top(index.logits(part.user), k) for part in searched]
        for cap in caps:
            keys = [_keys_read(index, part, cap) for part in searched]
            read = sum(map(len, keys)) / len(requests.histories)
            hits = sum(int(np.isin(top, among).sum()) for top, among in zip(exact, keys, strict=True))
            yield Point(hits / sum(top.size for top in exact), read, beam, cap)
            if read > reads or beam * cap > Limits.READS:
                break  # a larger cap reads more


def _keys_read(index: PathIndex, beams: Beams, cap: int) -> NDArray[np.int64]:
    """A key (request * V + item) for every item that a batch of beams reads; an item on two paths has two keys."""
    batch, width = beams.paths.shape
    postings = index.read(beams.paths.ravel(), cap)
    request = np.repeat(np.arange(batch), postings.lengths.reshape(batch, width).sum(axis=1))
    keys: NDArray[np.int64] = request * index.items + postings.items
    return keys


def _exact_top(logits: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """A key (request * V + item) for each of a user's k best items by the softmax head."""
    k = min(k, logits.shape[1])
    top = np.argpartition(-logits, k - 1, axis=1)[:, :k]
    keys: NDArray[np.int64] = np.arange(len(top))[:, None] * logits.shape[1] + top
    return keys
