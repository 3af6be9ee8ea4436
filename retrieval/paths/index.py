"""The path lists and the item vectors of a version, and reading from them.

Shapes: P paths in use, W paths that are read, V items, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index_store.errors import StoreUnavailable
from index_store.version import LISTS, PathReader, Version
from retrieval.paths import kernels


class Postings(NamedTuple):
    """The items of some paths, end to end.

    items: int32 (total,), the first path's items, then the second's, ...
    lengths: int64 (W,), or (B, W) for B requests: how many of them belong to each path; 0 for a path not in use.
    """

    items: NDArray[np.int32]
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class PathIndex:
    """The path lists and what is needed to score an item; `index_store.version` has the arrays."""

    path_ids: NDArray[np.int64]  # (P,) ascending
    path_offsets: NDArray[np.int64]  # (P + 1,)
    path_items: NDArray[np.int32]  # (postings,); (0,) where `read_paths` reads them
    item_vectors: NDArray[np.float16]  # (V, E)
    item_bias: NDArray[np.float32]  # (V,)
    read_paths: PathReader | None = None

    @classmethod
    def of(cls, version: Version) -> PathIndex:
        """Views of a version's parts. Raises VersionDamaged where one is missing."""
        return cls(
            version.array("path_ids.npy"),
            version.array("path_offsets.npy"),
            np.empty(0, np.int32) if version.read_paths else version.array(LISTS),
            version.array("item_vectors.npy"),
            version.array("item_bias.npy"),
            version.read_paths,
        )

    @property
    def items(self) -> int:
        """V."""
        return len(self.item_bias)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many items each path has, (P,)."""
        return np.diff(self.path_offsets)

    def read(self, rows: NDArray[np.integer[Any]], n: int | NDArray[np.int64]) -> Postings:
        """The first `n` items of the paths in these rows of `path_ids`, (W,); row -1 is no path and has no items.

        n: a number for all paths, or (W,). Raises StoreUnavailable where the lists are in a store that does not answer.
        """
        if self.read_paths:
            lengths = np.clip(self.path_offsets[rows + 1] - self.path_offsets[rows], 0, n)  # of row -1: below 0
            used = lengths > 0
            items = self.read_paths(self.path_ids[rows[used]], lengths[used])
            if len(items) and (items.min() < 0 or items.max() >= self.items):
                raise StoreUnavailable(f"a path list names an item outside 0..{self.items - 1}; publish again")
            return Postings(items, lengths)
        limits = np.full(len(rows), n) if isinstance(n, int) else n
        return Postings(*kernels.read_lists(self.path_offsets, self.path_items, rows.astype(np.int64), limits))
