"""Fold a version and its overlay into a new version with the same network, which answers as both did together.

Every item that has an id keeps its vector, also one that was deleted, because it may be in the histories of users.
Paths stay in use even if they have no live item left, because the beam search passes through them. In a path's list,
the items of its chain come first, as they are read.

Shapes: V items of the version, U items of the new version, S slots in use, P paths in use.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index_store.version import npy
from retrieval.paths.index import Neighbours, PathIndex
from retrieval.paths.overlay import NO_END, Late, Overlay
from retrieval.query import ItemId
from retrieval.vocabulary import Vocabulary

#: An item that has expired so many seconds ago is deleted by a fold, so that the lists do not fill up with such items.
EXPIRED = 86_400


class _Renamed(NamedTuple):
    """The items of the new version. old: (U,), the index that each had. new: (V + S,), the new index, -1 for none."""

    old: NDArray[np.int64]
    new: NDArray[np.int32]


def folded_parts(index: PathIndex, vocabulary: Vocabulary) -> tuple[dict[str, bytes], int, int, list[ItemId]]:
    """The parts of the new version that differ from the old one's, and its numbers of items and of postings.

    Last, the items that are deleted because they have expired.

    index: with an overlay, and with lists that are not remote.
    """
    overlay = index.overlay
    assert overlay
    assert index.read_paths is None
    ids, renamed = _rename(vocabulary, len(index.item_bias) + overlay.slots)
    ends = np.minimum(overlay.end_of(renamed.old), NO_END).astype(np.uint32)
    expired = (ends > 0) & (ends < index.clock() - EXPIRED)
    ends[expired] = 0
    offsets, items = _lists(index, overlay, renamed, ends)
    late = _late(index, overlay, renamed)
    nearest = _neighbours(index.neighbours, renamed, len(index.item_bias))
    arrays: dict[str, NDArray[Any]] = {
        "path_offsets": offsets,
        "path_items": items,
        "item_vectors": _rows(index.item_vectors, overlay.vectors.view(np.float16), renamed.old),
        "item_bias": overlay.bias[renamed.old],
        "item_ends": ends,
        "item_since": overlay.since(renamed.old),
        "neighbours": nearest.items,
        "similarities": nearest.similarities,
        "late_items": late.items,
        "late_neighbours": late.neighbours,
        "late_similarities": late.similarities,
    }
    parts = {f"{name}.npy": npy(array) for name, array in arrays.items()}
    if isinstance(ids, list):
        parts["item_ids.json"] = json.dumps(ids).encode()
    else:
        parts["item_ids.npy"] = npy(ids)
    return parts, len(renamed.old), len(items), vocabulary.names(renamed.old[expired])


def _rename(vocabulary: Vocabulary, count: int) -> tuple[NDArray[np.int64] | list[str], _Renamed]:
    """The ids of the new version, ascending, and the indices. count: V + S."""
    ids = vocabulary.all_ids()
    old = vocabulary.places(ids)
    new = np.full(count, -1, np.int32)
    new[old] = np.arange(len(old))
    return ids, _Renamed(old, new)


def _lists(
    index: PathIndex, overlay: Overlay, renamed: _Renamed, ends: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The offsets (P + 1,) and the items of the lists. ends: (U,), of the new version."""
    paths = len(index.path_ids)
    chained, rows = overlay.postings()
    kept = overlay.listed(index.path_items)
    items = renamed.new[np.concatenate([chained, index.path_items[kept]])]
    rows = np.concatenate([rows, np.repeat(np.arange(paths), index.sizes)[kept]])
    live = ends[items] > 0
    items, rows = items[live], rows[live]
    order = np.argsort(rows, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=paths))])
    return offsets, items[order]


def _late(index: PathIndex, overlay: Overlay, renamed: _Renamed) -> Late:
    """The items that came after the training, with the rows that the overlay has of them."""
    first, count = len(index.item_bias), len(index.late.items)
    olds = np.concatenate([index.late.items.astype(np.int64), first + np.arange(overlay.slots)])
    rows = np.flatnonzero(renamed.new[olds] >= 0)
    rows = rows[np.argsort(renamed.new[olds[rows]])]
    neighbours = renamed.new[overlay.neighbours[:, rows]]
    similarities = np.where(neighbours >= 0, overlay.similarities[:, rows], 0).astype(np.uint16)
    assert len(overlay.neighbours[0]) >= count + overlay.slots
    return Late(renamed.new[olds[rows]], np.maximum(neighbours, 0), similarities)


def _neighbours(nearest: Neighbours, renamed: _Renamed, first: int) -> Neighbours:
    """The lists of all items; those that came after the training have none. first: V."""
    known = renamed.old < first
    shape = (2, len(renamed.old), nearest.items.shape[2])
    items, similarities = np.full(shape, -1, np.int32), np.zeros(shape, np.uint16)
    rows = renamed.old[known]
    listed = nearest.items[:, rows]
    renewed = np.where(listed >= 0, renamed.new[listed], -1)
    weights = nearest.similarities[:, rows]
    # The entry of an item that was put again is gone; those after it move up, because a list ends at its first -1.
    holes = (renewed < 0) & (listed >= 0)
    where = np.nonzero(holes.any(axis=2))
    order = np.argsort(renewed[where] < 0, axis=1, kind="stable")
    for array in (renewed, weights):
        array[where] = np.take_along_axis(array[where], order, axis=1)
    items[:, known], similarities[:, known] = renewed, weights
    return Neighbours(items, similarities)


def _rows(base: NDArray[Any], new: NDArray[Any], old: NDArray[np.int64]) -> NDArray[Any]:
    """The rows `old` of `base` and, from len(base) on, of `new`."""
    rows: NDArray[Any] = np.empty((len(old), *base.shape[1:]), base.dtype)
    known = old < len(base)
    rows[known], rows[~known] = base[old[known]], new[old[~known] - len(base)]
    return rows
