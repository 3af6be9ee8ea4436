"""The similar items of each item after new clicks.

A similarity is a sum over pairs of clicks, divided by both items' clicks (trainer.data.neighbours). So the sums are
recovered from the similarities that a version has, the pairs with a new click are added, and the result is divided
again. Only the sums of pairs that were in no list are lost.

Shapes: N clicks of sessions, U sessions, V items, M neighbours of an item.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from retrieval.paths.index import Neighbours, PathIndex
from trainer.data.neighbours import GAPS, RARE, Nearest, following, largest
from trainer.living.sessions import Clicks

BLOCK = 1000  # items whose sums with all items are in memory at once


class _Kind(NamedTuple):
    """One of the two kinds of lists. new: the sums of the pairs with a new click, for a block of items, (B, V). norm:
    by what a sum is divided for one of its two items, from the items' clicks.
    """

    new: Callable[[slice], scipy.sparse.csr_array]
    norm: Callable[[NDArray[np.float64]], NDArray[np.float64]]


def joined_neighbours(
    index: PathIndex, data: Clicks, before: NDArray[np.float64], after: NDArray[np.float64]
) -> Neighbours:
    """The lists of the version with the new clicks of sessions; late items are in no list, but may have lists.

    before, after: (V,), the clicks of each item. If they add up to less than the clicks before and the new ones
    together, the oldest clicks do not count any more.
    """
    known, count = index.neighbours, index.neighbours.items.shape[2]
    if not count:
        return known
    late = np.zeros(len(before), bool)
    late[index.late.items] = True
    fading = float(after.sum() / (before.sum() + data.fresh.sum()))
    lists = []
    for kind, (new, norm) in enumerate((_together(data), _following(data))):
        scale, divisor = norm(before), norm(after)
        blocks: list[Nearest] = []
        for start in range(0, len(before), BLOCK):
            rows = slice(start, min(start + BLOCK, len(before)))
            items, amounts = known.items[kind, rows], known.similarities[kind, rows] / 65535
            row, place = np.nonzero(items >= 0)
            column = items[row, place]
            sums = amounts[row, place] * scale[rows][row] * scale[column]
            known_sums = scipy.sparse.csr_array((sums, (row, column)), shape=(rows.stop - start, len(before)))
            pairs = scipy.sparse.coo_array(fading * (known_sums + new(rows)))
            listed = (pairs.row + start != pairs.col) & ~late[pairs.col]
            row, column = pairs.row[listed], pairs.col[listed]
            similar = pairs.data[listed] / (divisor[rows][row] * divisor[column])
            blocks.append(largest(row, column, np.minimum(similar, 1), rows.stop - start, count))
        lists.append([np.concatenate(parts) for parts in zip(*blocks, strict=True)])
    items, amounts = (np.stack(parts) for parts in zip(*lists, strict=True))
    return Neighbours(items, np.rint(65535 * amounts).astype(np.uint16))


def _together(data: Clicks) -> _Kind:
    """Items that the same users clicked: in how many sessions both are, and at least one of them only by new clicks."""
    shape = len(data.dataset.user_ids), len(data.dataset.item_ids)
    owner = np.repeat(np.arange(shape[0]), np.diff(data.dataset.offsets))

    def clicked(those: NDArray[np.bool_]) -> scipy.sparse.csr_array:
        ones = np.ones(int(those.sum()), np.float32)
        matrix: scipy.sparse.csr_array = scipy.sparse.csr_array(
            (ones, (owner[those], data.dataset.items[those])), shape=shape
        )
        matrix.data[:] = 1  # an item that was clicked twice counts once
        return matrix

    everything, old = clicked(np.ones(len(owner), bool)), clicked(~data.fresh)
    new = scipy.sparse.csr_array(everything - old)
    new.eliminate_zeros()
    all_columns, new_columns = scipy.sparse.csc_array(everything), scipy.sparse.csc_array(new)

    def pairs(rows: slice) -> scipy.sparse.csr_array:
        """A pair of two new items is in both products, so it is taken off once."""
        twice = new_columns[:, rows].T @ everything + all_columns[:, rows].T @ new
        return scipy.sparse.csr_array(twice - new_columns[:, rows].T @ new)

    return _Kind(pairs, lambda clicks: np.sqrt(np.maximum(clicks, 1)))


def _following(data: Clicks) -> _Kind:
    """Items that come soon after one another, the later of them by a new click."""
    owner = np.repeat(np.arange(len(data.dataset.user_ids)), np.diff(data.dataset.offsets))
    sums = following(owner, data.dataset.items, len(data.dataset.item_ids), data.fresh)
    most = float(np.sum(1 / np.array(GAPS)))
    return _Kind(lambda rows: sums[rows], lambda clicks: np.sqrt((clicks + RARE) * most))
