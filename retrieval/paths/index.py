"""What a version answers from: the path lists, the item vectors, and the reranker's weights.

Shapes: W paths, V items, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index_store.errors import StoreUnavailable, VersionDamaged

#: What the reranker sees of a candidate, in this order.
FEATURES = ("logit", "bias", "path_log_prob", "paths")


class Postings(NamedTuple):
    """The items of some paths, end to end.

    items: int32 (total,), the first path's items, then the second's, ...
    lengths: int64 (W,), or (B, W) of `retrieval.fetch`: how many of them belong to each path; 0 for one not in use.
    """

    items: NDArray[np.int32]
    lengths: NDArray[np.int64]


#: Reads path lists where they are kept, if not here: (path_ids int64 (W,), all in use, lengths int64 (W,)) to the
#: first lengths[w] items of each path, end to end, int32.
PathReader = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int32]]


@dataclass(frozen=True)
class Index:
    """The path lists and what is needed to score an item. See version.py for the arrays."""

    path_ids: NDArray[np.int64]  # (P,) ascending
    path_offsets: NDArray[np.int64]  # (P + 1,)
    path_items: NDArray[np.int32]  # (postings,); (0,) where `read_paths` reads them
    item_vectors: NDArray[np.float16]  # (V, E)
    item_bias: NDArray[np.float32]  # (V,)
    read_paths: PathReader | None = None

    def lookup(self, path_ids: NDArray[np.int64], n: int | NDArray[np.int64]) -> Postings:
        """The first `n` items of each of `path_ids`, int64 (W,); a path not in use has none. n: one, or (W,)."""
        rows = np.minimum(np.searchsorted(self.path_ids, path_ids), len(self.path_ids) - 1)
        return self.read(np.where(self.path_ids[rows] == path_ids, rows, -1), n)

    def read(self, rows: NDArray[np.integer[Any]], n: int | NDArray[np.int64]) -> Postings:
        """The first `n` items of each of the paths in these rows, (W,); -1 is no path and has none. n: one, or (W,)."""
        if self.read_paths:
            lengths = np.clip(self.path_offsets[rows + 1] - self.path_offsets[rows], 0, n)  # of row -1: below 0
            used = lengths > 0
            items = self.read_paths(self.path_ids[rows[used]], lengths[used])
            if len(items) and (items.min() < 0 or items.max() >= len(self.item_bias)):
                raise StoreUnavailable(f"a path list names an item outside 0..{len(self.item_bias) - 1}; publish again")
            return Postings(items, lengths)
        # Here, because the commands that only move versions need not wait for the compiler's library.
        from retrieval.paths.kernels import read_lists

        limits = np.full(len(rows), n) if isinstance(n, int) else n
        return Postings(*read_lists(self.path_offsets, self.path_items, rows.astype(np.int64), limits))


@dataclass(frozen=True)
class Reranker:
    """A linear score of a candidate's features; higher is better.

    lr: log-odds of a click; softmax: the unnormalised log-probability.
    """

    kind: str  # "lr" or "softmax"
    weights: NDArray[np.float32]  # (4,)
    intercept: float

    def to_json(self) -> dict[str, Any]:
        weights = dict(zip(FEATURES, map(float, self.weights), strict=True))
        return {"kind": self.kind, "weights": weights, "intercept": self.intercept}

    @classmethod
    def from_json(cls, document: Any) -> Reranker:
        """Raises VersionDamaged for other features or numbers that are not finite."""
        try:
            weights = np.array([document["weights"][name] for name in FEATURES], np.float32)
            reranker = cls(document["kind"], weights, float(document["intercept"]))
        except (KeyError, TypeError, ValueError):
            raise VersionDamaged(f"reranker.json: expected weights of {', '.join(FEATURES)}") from None
        if not np.isfinite(weights).all() or not np.isfinite(reranker.intercept):
            raise VersionDamaged("reranker.json: a weight is not finite")
        return reranker


#: The softmax head alone: its logit is the score.
SOFTMAX = Reranker("softmax", np.array([1, 0, 0, 0], np.float32), 0.0)
#: No rerank: the most probable paths' items first.
BY_PATH = Reranker("path", np.array([0, 0, 1, 0], np.float32), 0.0)
