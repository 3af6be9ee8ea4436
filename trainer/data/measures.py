"""Measures of answers at k, computed per user and then averaged: P, R and F (Sec. 4.1), hit rate (HR) and NDCG.

F is the mean of users' F. The hit rate is the share of users with at least one true item in their answer. NDCG is the
sum of 1 / log2(1 + rank) over the true items in the answer (best item: rank 1), divided by the largest possible sum.

If the history is filtered, items of the history are removed from the answers and from the truths; users whose truth is
then empty are left out. A figure is None if no user is left. A ratio is None if the reference is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.paths.rerank import Candidates
from trainer.data.requests import Requests

Items = NDArray[np.int64]
#: A float for each of MEASURES, or None.
Figures = dict[str, Any]
MEASURES = ("precision", "recall", "f_measure", "hit_rate", "ndcg")
RATIOS = MEASURES[:3]  # measures whose ratio to brute force is reported
TITLES = {"precision": "P", "recall": "R", "f_measure": "F", "hit_rate": "HR", "ndcg": "NDCG"}
#: The measures that the tables show for each value of the setting `split`: those of the publications that use it.
SHOWN = {"users": RATIOS, "last-out": ("hit_rate", "ndcg")}


@dataclass(frozen=True)
class Answers:
    """The answers of a method to R requests: without the items of the history (filtered), and with them (unfiltered).

    reads: (R,), the number of items scored for each request. seconds: the time for all filtered answers, from histories
    to items.
    """

    filtered: list[Items]
    unfiltered: list[Items]
    reads: NDArray[np.int64]
    seconds: float

    def figures(self, requests: Requests, k: int) -> dict[str, Figures]:
        """The measures of the first k items of each answer, as {"filtered": ..., "unfiltered": ...}."""
        return {
            "filtered": mean_figures(self.filtered, new_items(requests), k),
            "unfiltered": mean_figures(self.unfiltered, requests.truths, k),
        }


def mean_figures(answers: Iterable[Items], truths: Iterable[Items], k: int) -> Figures:
    """The mean of each measure over the users whose truth is not empty; see `by_user`."""
    rows = by_user(answers, truths, k)
    return dict(zip(MEASURES, rows.mean(axis=0).tolist() if len(rows) else [None] * len(MEASURES), strict=True))


def by_user(answers: Iterable[Items], truths: Iterable[Items], k: int) -> NDArray[np.float64]:
    """MEASURES of the first k items of each answer, for each user whose truth is not empty, (N, 5).

    A repeated item counts once; precision is hits / k, also for answers of fewer items.
    """
    gains = 1 / np.log2(np.arange(k) + 2)
    rows = []
    for answer, truth in zip(answers, truths, strict=True):
        if not len(truth):
            continue
        wanted = np.unique(truth)
        items, ranks = np.unique(answer[:k], return_index=True)
        found = ranks[np.isin(items, wanted)]
        hits = len(found)
        precision, recall = hits / k, hits / len(wanted)
        f_measure = 2 * precision * recall / (precision + recall) if hits else 0.0
        rows.append((precision, recall, f_measure, min(hits, 1), gains[found].sum() / gains[: len(wanted)].sum()))
    return np.array(rows, float).reshape(-1, len(MEASURES))


def ratios(measured: Figures, reference: Figures) -> Figures:
    """P, R and F divided by the reference's values; None if the reference is 0 or if one of the two is missing."""

    def ratio(value: float | None, base: float | None) -> float | None:
        return value / base if value is not None and base else None

    return {key: ratio(measured[key], reference[key]) for key in RATIOS}


def no_new_items(split: str = "") -> str:
    """The message if no held-out user has a new item. split: the setting `split` of TrainConfig, if it is known."""
    item = {"users": "an item in the second half", "last-out": "a last item"}.get(split, "a held-out item")
    return f"nobody has {item} that is not in the history, so nobody can be measured with the history filtered"


def new_items(requests: Requests) -> list[Items]:
    """The truth of each request without the items of its history."""
    return [np.setdiff1d(truth, history) for truth, history in zip(requests.truths, requests.histories, strict=True)]


def recall_by_popularity(answers: list[Items], truths: list[Items], clicks: Items, groups: int) -> list[float | None]:
    """Recall over all users for each of `groups` groups of items, from rarely to often clicked.

    It is None if no truth has an item of the group. clicks: (V,), each item's clicks in training. All groups have about
    the same number of clicks.
    """
    kind = popularity_groups(clicks, groups)
    hits, wanted = np.zeros(groups), np.zeros(groups)
    for answer, truth in zip(answers, map(np.unique, truths), strict=True):
        wanted += np.bincount(kind[truth], minlength=groups)
        hits += np.bincount(kind[np.intersect1d(answer, truth)], minlength=groups)
    return [float(h / w) if w else None for h, w in zip(hits, wanted, strict=True)]


def popularity_groups(clicks: Items, groups: int) -> Items:
    """The group of each item, (V,): group 0 has the most rarely clicked items. All groups have about equal clicks."""
    order = np.argsort(clicks, kind="stable")
    before = np.cumsum(clicks[order]) - clicks[order] / 2
    kind = np.empty(len(clicks), np.int64)
    kind[order] = np.minimum(before * groups / max(clicks.sum(), 1), groups - 1).astype(np.int64)
    return kind


def count_read(answers: Sequence[Items], read: Candidates, items: int) -> int:
    """The number of answers that are among the items that the same requests read. items: V."""
    keys = np.concatenate([row * items + answer for row, answer in enumerate(answers)])
    return int(np.isin(keys, read.request * items + read.item).sum())


def tops(scores: NDArray[Any], k: int, histories: list[Items] | None = None) -> list[Items]:
    """Each request's k best of all items; items of the history are left out if `histories` is given. scores: (R, V).

    Items with equal scores are ordered by item index.
    """
    scores = np.array(scores, np.float32)
    for row, history in zip(scores, histories or (), strict=False):
        row[history] = -np.inf
    return [_top(row, k) for row in scores]


def _top(scores: NDArray[np.float32], k: int) -> Items:
    k = min(k, len(scores))
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    best = np.flatnonzero(scores >= threshold)
    best = best[np.argsort(-scores[best], kind="stable")][:k]
    return best[np.isfinite(scores[best])]
