"""From the items read to an answer: merge equal items, compute features and scores, keep the k best.

Shapes: B requests, W paths per request, N candidates of all requests, E numbers in an item vector, V items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.errors import VersionDamaged
from retrieval.paths import kernels
from retrieval.paths.index import PathIndex, Postings
from retrieval.query import Answer

#: The features of a candidate, in this order: the softmax head's logit, the item's bias, the log of the summed
#: probability of the searched paths from which the item was read, the number of these paths, and the roots of four
#: sums over the items of the history. These have the similarities of the items that have the candidate among their
#: neighbours, and of the items that have it among their followers; each once as it is, and once times
#: kernels.RECENCY^age, where the last item of the history has the age 0. The roots keep a few candidates with very
#: many similar items from deciding the fit.
FEATURES = (
    "logit", "bias", "path_log_prob", "paths", "neighbours", "recent_neighbours", "followers", "recent_followers",
)  # fmt: skip


@dataclass(frozen=True)
class Beams:
    """The network's outputs for B requests, and the histories that it has read.

    user: float32 (B, E), the user vectors. paths: int32 (B, W), rows of `path_ids`, most probable first; -1 stands for
    no path. log_probs: float32 (B, W), the log-probabilities of these paths. history: int64, the item indices of all
    histories, concatenated; lengths: int64 (B,), of each. Without these two, no candidate has a neighbour.
    """

    user: NDArray[np.float32]
    paths: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    history: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True)
class Candidates:
    """The different items found for each of B requests, N in all, ordered by request, then item.

    request, item: int64 (N,). features: float32 (N, 8), see FEATURES.
    """

    request: NDArray[np.int64]
    item: NDArray[np.int64]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Reranker:
    """A linear score of a candidate's features; higher is better (Sec. 3.4).

    kind: "lr", "softmax" or "path". "lr" is a logistic regression on features minus their mean over the candidates of
    a request; its score is the log-odds of a click plus an unknown constant that differs from request to request. The
    score of "softmax" is the head's unnormalised log-probability, and that of "path" the paths' log-probability.
    Scores order the candidates of one answer and cannot be compared between answers.
    """

    kind: str
    weights: NDArray[np.float32]  # (8,), in the order of FEATURES
    intercept: float

    def to_json(self) -> dict[str, Any]:
        """The content of reranker.json."""
        weights = dict(zip(FEATURES, map(float, self.weights), strict=True))
        return {"kind": self.kind, "weights": weights, "intercept": self.intercept}

    @classmethod
    def from_json(cls, document: Any) -> Reranker:
        """The reranker in reranker.json. Raises VersionDamaged for missing features or numbers that are not finite."""
        try:
            weights = np.array([document["weights"][name] for name in FEATURES], np.float32)
            reranker = cls(document["kind"], weights, float(document["intercept"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise VersionDamaged(f"reranker.json: expected weights of {', '.join(FEATURES)}") from None
        if not np.isfinite(weights).all() or not np.isfinite(reranker.intercept):
            raise VersionDamaged("reranker.json: a weight is not finite")
        return reranker


#: The softmax head alone: the logit is the score.
SOFTMAX = Reranker("softmax", np.array([1, 0, 0, 0, 0, 0, 0, 0], np.float32), 0.0)
#: Without a reranker: items of the most probable paths first.
BY_PATH = Reranker("path", np.array([0, 0, 1, 0, 0, 0, 0, 0], np.float32), 0.0)


def candidates(index: PathIndex, beams: Beams, postings: Postings) -> Candidates:
    """The candidates among the items read for B beams. postings: with lengths (B, W)."""
    request, item, log_prob, paths = kernels.join(
        postings.items, postings.lengths, np.ascontiguousarray(beams.log_probs)
    )
    features = kernels.features(
        *index.item_arrays,
        np.ascontiguousarray(beams.user),
        beams.history,
        beams.lengths,
        request,
        item,
        log_prob,
        paths,
    )
    return Candidates(request, item, features)


def rerank(
    index: PathIndex,
    beams: Beams,
    postings: Postings,
    reranker: Reranker,
    k: Sequence[int],
    excluded: Sequence[NDArray[np.int64]],
) -> list[Answer]:
    """The k[b] best of the items read for each request b, without the item indices in excluded[b].

    Excluded items are removed before the k best are chosen. Equal scores are ordered by item index.
    """
    assert len(k) == len(excluded) == len(beams.paths)
    items, scores, log_probs, counts = kernels.rerank(
        postings.items,
        postings.lengths,
        np.ascontiguousarray(beams.log_probs),
        *index.item_arrays,
        np.ascontiguousarray(beams.user),
        beams.history,
        beams.lengths,
        reranker.weights,
        reranker.intercept,
        np.array(k, np.int64),
        excluded[0] if len(excluded) == 1 else np.concatenate([np.empty(0, np.int64), *excluded]),
        np.array([0, *accumulate(map(len, excluded))]),
    )
    answers = []
    start = 0
    for wanted, (end, paths, read, different) in zip(k, counts.T.tolist(), strict=True):
        best = slice(start, end)
        short = end - start < wanted
        found = items[best], scores[best], log_probs[best]
        answers.append(Answer(*found, short, paths, read, different, seq=postings.seq))
        start = end
    return answers
