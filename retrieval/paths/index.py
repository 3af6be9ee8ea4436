"""The path lists and the item vectors of a version, and the reading of path lists.

Shapes: P paths in use, W paths that are read, V items, E numbers in an item vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index_store.errors import StoreUnavailable
from index_store.version import LISTS, PathReader, Version
from retrieval.paths import kernels


class Postings(NamedTuple):
    """The items of several paths, concatenated.

    items: int32 (total,), the first path's items, then the second path's items, ...
    lengths: int64 (W,), or (B, W) for B requests: the number of items of each path; 0 for a path not in use.
    """

    items: NDArray[np.int32]
    lengths: NDArray[np.int64]


class Neighbours(NamedTuple):
    """For each item, two lists of M items, most similar first: clicked by the same users, and clicked soon after it.

    items: int32 (2, V, M), -1 after the last. similarities: uint16 (2, V, M), in units of 1 / 65535.
    """

    items: NDArray[np.int32]
    similarities: NDArray[np.uint16]


NO_NEIGHBOURS = Neighbours(np.empty((2, 0, 0), np.int32), np.empty((2, 0, 0), np.uint16))


@dataclass(frozen=True)
class PathIndex:
    """The path lists, and the arrays that score an item. `index_store.version` describes all arrays."""

    path_ids: NDArray[np.int64]  # (P,) ascending
    path_offsets: NDArray[np.int64]  # (P + 1,)
    path_items: NDArray[np.int32]  # (postings,); (0,) if `read_paths` reads the lists
    item_vectors: NDArray[np.float16]  # (V, E)
    item_bias: NDArray[np.float32]  # (V,)
    neighbours: Neighbours = NO_NEIGHBOURS
    read_paths: PathReader | None = None

    @classmethod
    def of(cls, version: Version) -> PathIndex:
        """The index of a version, as views of its parts. Raises VersionDamaged if a part is missing."""
        return cls(
            version.array("path_ids.npy"),
            version.array("path_offsets.npy"),
            np.empty(0, np.int32) if version.read_paths else version.array(LISTS),
            version.array("item_vectors.npy"),
            version.array("item_bias.npy"),
            Neighbours(version.array("neighbours.npy"), version.array("similarities.npy")),
            version.read_paths,
        )

    @property
    def items(self) -> int:
        """V, the number of items."""
        return len(self.item_bias)

    @cached_property
    def _vectors(self) -> NDArray[np.float32]:
        return self.item_vectors.astype(np.float32)

    def logits(self, user: NDArray[np.float32]) -> NDArray[np.float32]:
        """The softmax head's logit of every item, (N, V): brute force. user: (N, E)."""
        logits: NDArray[np.float32] = user @ self._vectors.T + self.item_bias
        return logits

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The number of items of each path, (P,)."""
        return np.diff(self.path_offsets)

    def read(self, rows: NDArray[np.integer[Any]], n: int | NDArray[np.int64]) -> Postings:
        """The first `n` items of each of W paths.

        rows: (W,), indices in `path_ids`; -1 stands for no path, without items. n: a number for all paths, or (W,).
        Raises StoreUnavailable if the lists are in a store that does not answer.
        """
        if self.read_paths:
            # For row -1 the difference is negative, so its length is 0.
            lengths = np.clip(self.path_offsets[rows + 1] - self.path_offsets[rows], 0, n)
            used = lengths > 0
            items = self.read_paths(self.path_ids[rows[used]], lengths[used])
            if len(items) and (items.min() < 0 or items.max() >= self.items):
                raise StoreUnavailable(f"a path list names an item outside 0..{self.items - 1}; publish again")
            return Postings(items, lengths)
        limits = np.full(len(rows), n) if isinstance(n, int) else n
        return Postings(*kernels.read_lists(self.path_offsets, self.path_items, rows.astype(np.int64), limits))
