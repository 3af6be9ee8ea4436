"""Beam width and items per path, chosen together: the most of brute force's answer for the reads allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.retrieval import MAX_READS, Index, fetch
from trainer.config import TrainConfig
from trainer.requests import Requests

BEAMS = (3, 5, 7, 10, 15, 20, 25, 35, 50, 75, 100, 150, 200, 256)
CAPS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500)
READS = 8  # items read per candidate returned, on average; the paper has 5 to 10


def choose_beam(index: Index, session: Any, requests: Requests, config: TrainConfig) -> tuple[int, int]:
    """(beam, per_path) among those that read at most 8 k items a request on average; else the pair that reads least.

    Measured: the share of the k best items by the softmax head, over all items, that are among those read. What
    the config fixes stays fixed.
    """
    items, k = len(index.item_bias), config.k
    measured: list[tuple[bool, float, int, int, int]] = []  # affordable, share, -reads, beam, cap
    exact: list[NDArray[np.int64]] = []
    for beam in BEAMS if config.beam == "auto" else (config.beam,):
        searched = list(requests.beams(session, config.history, beam))
        exact = exact or [_exact_top(index, beams.user, k) for beams in searched]
        wanted = sum(top.size for top in exact)
        for cap in CAPS if config.per_path == "auto" else (config.per_path,):
            reads, hits = 0, 0
            for beams, top in zip(searched, exact, strict=True):
                candidates, read = fetch(index, beams, cap)
                reads += int(read.sum())
                hits += int(np.isin(top, candidates.request * items + candidates.item).sum())
            affordable = reads <= READS * k * len(requests.histories) and beam * cap <= MAX_READS
            measured.append((affordable, hits / wanted, -reads, beam, cap))
    fitting = [row for row in measured if row[0]]
    best = max(fitting) if fitting else max(measured, key=lambda row: row[2])
    return best[3], best[4]


def _exact_top(index: Index, user: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Keys (request * V + item) of each user's k best items by the softmax head."""
    logits = user @ index.item_vectors.T + index.item_bias
    k = min(k, logits.shape[1])
    top = np.argpartition(-logits, k - 1, axis=1)[:, :k]
    keys: NDArray[np.int64] = np.arange(len(top))[:, None] * logits.shape[1] + top
    return keys
