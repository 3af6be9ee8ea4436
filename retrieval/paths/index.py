"""The path lists and the item vectors of a version, and the reading of path lists.

Shapes: P paths in use, W paths that are read, V items of the version, C slots for new items, E numbers in a vector.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index_store.errors import StoreUnavailable
from index_store.version import LISTS, PathReader, Version
from retrieval.paths import lists
from retrieval.paths.overlay import NO_END, NO_LATE, Late, Overlay


class Postings(NamedTuple):
    """The items of several paths, concatenated.

    items: int32 (total,), the first path's items, then the second path's items, ...
    lengths: int64 (W,), or (B, W) for B requests: the number of items of each path; 0 for a path not in use.
    seq: the last record that was applied when the paths were read.
    """

    items: NDArray[np.int32]
    lengths: NDArray[np.int64]
    seq: int = 0


class Neighbours(NamedTuple):
    """For each item, two lists of M items, most similar first: clicked by the same users, and clicked soon after it.

    items: int32 (2, V, M), -1 after the last. similarities: uint16 (2, V, M), in units of 1 / 65535.
    """

    items: NDArray[np.int32]
    similarities: NDArray[np.uint16]


#: The state, heads, chain and used of an index without an overlay; see lists.py.
NO_OVERLAY = np.empty(0, np.int64), np.empty(0, np.int32), np.empty((0, 4), np.int32), np.zeros(0, np.int64)
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
    item_ends: NDArray[np.uint32] | None = None  # (V,), see `index_store.version`; None: no item ends
    late: Late = NO_LATE
    overlay: Overlay | None = None
    clock: Callable[[], float] = lambda: time.time()  # noqa: PLW0108 -- tests replace time.time

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
            version.array("item_ends.npy"),
            Late(*(version.array(f"late_{part}.npy") for part in ("items", "neighbours", "similarities"))),
        )

    @property
    def items(self) -> int:
        """V and the number of new items; item indices are below it. Some of these items may be deleted."""
        return len(self.item_bias) + (self.overlay.slots if self.overlay else 0)

    @property
    def live_items(self) -> int:
        """The number of items that were not deleted."""
        return self.overlay.live_items if self.overlay else int(np.count_nonzero(self.ends))

    @property
    def seq(self) -> int:
        """The last record that is applied."""
        return self.overlay.place.seq if self.overlay else 0

    def paths_of(self, item: int) -> list[int]:
        """The ids of the paths that have the item, ascending. Those in remote lists are not known."""
        rows = self.overlay.rows_of(item) if self.overlay else None
        if rows is None:
            rows = np.searchsorted(self.path_offsets, np.flatnonzero(self.path_items == item), side="right") - 1
        paths: list[int] = self.path_ids[rows].tolist()
        return paths

    def live(self, items: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """Which of `items`, or of all items, are neither deleted nor expired."""
        return self.end_of(np.arange(self.items) if items is None else items) > self.clock()

    def end_of(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """The second since 1970 at which each item ends; 0 for an item that was deleted."""
        return self.overlay.end_of(items) if self.overlay else self.ends[items].astype(np.int64)

    def since(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """When each item was put, ms since 1970; 0 for one that the version was trained with."""
        return self.overlay.since(items) if self.overlay else np.zeros(len(items), np.int64)

    def places_of(self, item: int) -> list[tuple[int, int, int]]:
        """The id of each path that has the item, the item's place in the path's list, from 1 on, and the list's length.

        Items that are not live do not count. Paths in remote lists are not known.
        """
        paths = self.paths_of(item)
        rows = np.searchsorted(self.path_ids, paths)
        postings = self.read(rows, self.sizes[rows] + (self.overlay.crowd[rows] if self.overlay else 0))
        parts = np.split(postings.items, np.cumsum(postings.lengths)[:-1]) if paths else []
        found = ((path, np.flatnonzero(part == item), len(part)) for path, part in zip(paths, parts, strict=True))
        return [(path, int(place[0]) + 1, length) for path, place, length in found if len(place)]

    def neighbours_of(self, item: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The live items that are clicked by the same users, most similar first, and their similarities, 0 to 1.

        Of an item that came after the training: the items that it is a neighbour of.
        """
        rows = self._late_rows
        row = item - len(self.item_bias) + len(self.late.items)
        if item < len(self.item_bias):
            row = int(rows[item]) if len(rows) else -1
        source = self.overlay or self.late
        items, similarities = (
            (source.neighbours[0, row], source.similarities[0, row])
            if row >= 0
            else (self.neighbours.items[0, item], self.neighbours.similarities[0, item])
        )
        known = (items >= 0) & ((similarities > 0) | (row < 0)) & self.live(np.maximum(items, 0).astype(np.int64))
        order = np.argsort(-similarities[known].astype(np.int64), kind="stable")
        return items[known][order], similarities[known][order] / 65535

    @property
    def item_arrays(self) -> tuple[NDArray[Any], ...]:
        """What a kernel needs to score an item: vectors (V, E), new vectors (C, E), bias (V + C,), the neighbours and
        their similarities, the rows of late items, and their neighbours and similarities.
        """
        vectors = self.item_vectors.view(np.uint16)
        if self.overlay is None:
            return vectors, vectors[:0], self.item_bias, *self.neighbours, self._late_rows, *self.late[1:]
        over = self.overlay
        return vectors, over.vectors, over.bias, *self.neighbours, self._late_rows, over.neighbours, over.similarities

    @cached_property
    def ends(self) -> NDArray[np.uint32]:
        """The second at which each item of the version ends, (V,), as in item_ends.npy."""
        return np.full(len(self.item_bias), NO_END, np.uint32) if self.item_ends is None else self.item_ends

    @cached_property
    def _late_rows(self) -> NDArray[np.int32]:
        """The row of each item among the late items, (V,), -1 for others; empty if there are no late items."""
        if not len(self.late.items):
            return self.late.items
        rows = np.full(len(self.item_bias), -1, np.int32)
        rows[self.late.items] = np.arange(len(self.late.items))
        return rows

    @cached_property
    def _vectors(self) -> NDArray[np.float32]:
        return self.item_vectors.astype(np.float32)

    def logits(self, user: NDArray[np.float32]) -> NDArray[np.float32]:
        """The softmax head's logit of every item, (N, V): brute force. user: (N, E)."""
        logits: NDArray[np.float32] = user @ self._vectors.T + self.item_bias
        return logits

    @property
    def late_sizes(self) -> NDArray[np.int32]:
        """The number of late items of each path, (P,); 0 if the lists are remote."""
        late = self._late_rows[self.path_items] >= 0 if len(self._late_rows) else np.zeros(len(self.path_items), bool)
        sums = np.concatenate([[0], np.cumsum(late)])
        return np.diff(sums[np.minimum(self.path_offsets, len(late))]).astype(np.int32)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The number of items of each path, (P,)."""
        return np.diff(self.path_offsets)

    def read(self, rows: NDArray[np.integer[Any]], n: int | NDArray[np.int64]) -> Postings:
        """The first `n` live items of each of W paths.

        rows: (W,), indices in `path_ids`; -1 stands for no path, without items. n: a number for all paths, or (W,).
        Raises StoreUnavailable if the lists are in a store that does not answer.
        """
        places: NDArray[np.int64] = rows.astype(np.int64)
        limits = np.full(len(rows), n) if isinstance(n, int) else n
        if not self.read_paths:
            return self._live(self.path_offsets, self.path_items, places, limits, places)
        used = np.maximum(places, 0)
        sizes = np.where(places < 0, 0, self.path_offsets[used + 1] - self.path_offsets[used])
        fetched = np.where(places < 0, -1, np.arange(len(places)))
        wanted = np.minimum(sizes, limits)
        postings = self._live(*self._fetch(places, wanted), fetched, limits, places)
        short = (postings.lengths < limits) & (wanted < sizes)  # some of the items that were fetched are not live
        if not short.any():
            return postings
        return self._live(*self._fetch(places, np.where(short, sizes, wanted)), fetched, limits, places)

    def _fetch(
        self, rows: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The first lengths[i] items of the list of each path, from the store: offsets (W + 1,), and the items."""
        assert self.read_paths
        used = lengths > 0
        items = self.read_paths(self.path_ids[rows[used]], lengths[used])
        if len(items) and (items.min() < 0 or items.max() >= len(self.item_bias)):
            raise StoreUnavailable(
                f"a path list names an item outside 0..{len(self.item_bias) - 1}; publish the version again"
            )
        return np.concatenate([[0], np.cumsum(lengths)]), items

    def _live(
        self,
        offsets: NDArray[np.int64],
        items: NDArray[np.int32],
        places: NDArray[np.int64],
        limits: NDArray[np.int64],
        rows: NDArray[np.int64],
    ) -> Postings:
        """The live items of paths: see `lists.read_lists`."""
        overlay = self.overlay.arrays if self.overlay else NO_OVERLAY
        return Postings(*lists.read_lists(offsets, items, places, limits, rows, *overlay, int(self.clock())))
