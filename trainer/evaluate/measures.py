"""P/R/F@k (Sec. 4.1): per user, then the unweighted mean, so F is the mean of the users' F.

With history filtered, items of the history are neither answered nor asked for; users who then have nothing left to
find are not counted. A figure is None where nobody is counted, a ratio where the reference is 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.requests import Requests

Items = NDArray[np.int64]
#: A float for each of MEASURES, or None.
Figures = dict[str, Any]
MEASURES = ("precision", "recall", "f_measure")


@dataclass(frozen=True)
class Answers:
    """What a method answers to R requests: with the items of the history left out, and with them.

    reads: items it scored for each, (R,). seconds: for all of the former, from histories to items.
    """

    filtered: list[Items]
    unfiltered: list[Items]
    reads: NDArray[np.int64]
    seconds: float

    def figures(self, requests: Requests, k: int) -> dict[str, Figures]:
        """P/R/F@k, {"filtered": ..., "unfiltered": ...}."""
        return {
            "filtered": precision_recall_f(self.filtered, new_items(requests), k),
            "unfiltered": precision_recall_f(self.unfiltered, requests.truths, k),
        }


def precision_recall_f(answers: Iterable[Items], truths: Iterable[Items], k: int) -> Figures:
    """Means over the users who have a truth. An answer counts an item once; precision is out of k."""
    rows = by_user(answers, truths, k)
    means = rows.mean(axis=0).tolist() if len(rows) else [None] * len(MEASURES)
    return dict(zip(MEASURES, means, strict=True))


def by_user(answers: Iterable[Items], truths: Iterable[Items], k: int) -> NDArray[np.float64]:
    """P/R/F@k of each user who has a truth, (N, 3)."""
    rows = []
    for answer, truth in zip(answers, truths, strict=True):
        if not len(truth):
            continue
        wanted = np.unique(truth)
        hits = len(np.intersect1d(answer, wanted))
        precision, recall = hits / k, hits / len(wanted)
        rows.append((precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0))
    return np.array(rows, float).reshape(-1, len(MEASURES))


def ratios(measured: Figures, reference: Figures) -> Figures:
    """Each of P, R and F over the reference's; None where that found nothing, or nothing was measured."""

    def ratio(value: float | None, base: float | None) -> float | None:
        return value / base if value is not None and base else None

    return {key: ratio(measured[key], reference[key]) for key in MEASURES}


def no_new_items(split: str = "") -> str:
    """The message for when no held-out user has a new item. split: of TrainConfig, if it is known."""
    item = {"users": "an item in the second half", "last-out": "a last item"}.get(split, "a held-out item")
    return f"nobody has {item} that is not in the history, so nobody can be measured with the history filtered"


def new_items(requests: Requests) -> list[Items]:
    """The truths without items of the history."""
    return [np.setdiff1d(truth, history) for truth, history in zip(requests.truths, requests.histories, strict=True)]


def recall_by_popularity(answers: list[Items], truths: list[Items], clicks: Items, groups: int) -> list[float | None]:
    """The share of wanted items that was answered, for items of `groups` kinds: rarely to often clicked.

    Each kind has as many of the clicks (V,) in training as another. None where nothing of a kind was wanted.
    """
    kind = popularity_groups(clicks, groups)
    hits, wanted = np.zeros(groups), np.zeros(groups)
    for answer, truth in zip(answers, map(np.unique, truths), strict=True):
        wanted += np.bincount(kind[truth], minlength=groups)
        hits += np.bincount(kind[np.intersect1d(answer, truth)], minlength=groups)
    return [float(h / w) if w else None for h, w in zip(hits, wanted, strict=True)]


def popularity_groups(clicks: Items, groups: int) -> Items:
    """The kind of each item, (V,): 0 the most rarely clicked. All kinds have about as many clicks."""
    order = np.argsort(clicks, kind="stable")
    before = np.cumsum(clicks[order]) - clicks[order] / 2
    kind = np.empty(len(clicks), np.int64)
    kind[order] = np.minimum(before * groups / max(clicks.sum(), 1), groups - 1).astype(np.int64)
    return kind


def tops(scores: NDArray[Any], k: int, histories: list[Items] | None = None) -> list[Items]:
    """Each request's k best of all items; items of the history are left out if `histories` is given. scores: (R, V).

    Ties go by item index.
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
