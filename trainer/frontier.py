"""Beam width and items per path, chosen together: the most of brute force's answer for the reads allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.retrieval import MAX_READS, Beams, Index
from trainer.config import TrainConfig
from trainer.requests import Requests

BEAMS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 256)
CAPS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500)
READS = 9  # items read per candidate returned, on average; the paper has 5 to 10


def choose_beam(index: Index, session: Any, requests: Requests, config: TrainConfig) -> tuple[int, int]:
    """(beam, per_path) among those that read at most 9 k items a request on average; else the pair that reads least.

    Measured: the share of the k best items by the softmax head, over all items, that are among those read. What
    the config fixes stays fixed.
    """
    k = config.k
    budget = READS * k * len(requests.histories)
    measured: list[tuple[float, int, int, int]] = []  # share, -reads, beam, cap: of the affordable
    dear: list[tuple[int, int, int]] = []  # reads, beam, cap: of the others
    exact: list[NDArray[np.int64]] = []
    for beam in BEAMS if config.beam == "auto" else (config.beam,):
        searched = list(requests.beams(session, config.history, beam))
        exact = exact or [_exact_top(index, beams.user, k) for beams in searched]
        for cap in CAPS if config.per_path == "auto" else (config.per_path,):
            keys = [_keys_read(index, beams, cap) for beams in searched]
            reads = sum(map(len, keys))
            if reads > budget or beam * cap > MAX_READS:
                dear.append((reads, beam, cap))
                break  # a larger cap reads more
            hits = sum(int(np.isin(top, read).sum()) for top, read in zip(exact, keys, strict=True))
            measured.append((hits / sum(top.size for top in exact), -reads, beam, cap))
    return max(measured)[2:] if measured else min(dear)[1:]


def _keys_read(index: Index, beams: Beams, cap: int) -> NDArray[np.int64]:
    """Keys (request * V + item) of what a batch of beams reads, an item as often as it is on a path."""
    batch, width = beams.path_ids.shape
    postings = index.lookup(beams.path_ids.ravel(), cap)
    request = np.repeat(np.arange(batch), postings.lengths.reshape(batch, width).sum(axis=1))
    keys: NDArray[np.int64] = request * len(index.item_bias) + postings.items
    return keys


def _exact_top(index: Index, user: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Keys (request * V + item) of each user's k best items by the softmax head."""
    logits = user @ index.item_vectors.T + index.item_bias
    k = min(k, logits.shape[1])
    top = np.argpartition(-logits, k - 1, axis=1)[:, :k]
    keys: NDArray[np.int64] = np.arange(len(top))[:, None] * logits.shape[1] + top
    return keys
