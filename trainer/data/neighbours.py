"""The most similar items of each item: clicked by the same users, and clicked by users soon after it."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from trainer.data.dataset import Dataset
from trainer.data.split import Split, trained_items

BLOCK = 1000  # items whose cosines with all items are in memory at once
GAPS = (1, 2, 3)  # an item follows another if it is so many places after it; it counts 1 / gap
RARE = 5  # clicks that are added to both items of a pair, so that two rare items are not similar by chance

#: For each item the indices of the most similar items, int32 (V, M), -1 after the last; and how similar they are,
#: float32 (V, M), 0 after the last.
Nearest = tuple[NDArray[np.int32], NDArray[np.float32]]


def nearest_items(clicked: scipy.sparse.csr_array, count: int) -> Nearest:
    """The `count` items with the largest cosines for each item, largest first.

    The cosine of two items is that of their columns of the click matrix (U, V) of 0 and 1. Equal cosines are ordered by
    item index. Time: the sum over users of the square of the number of their items.
    """
    items = clicked.shape[1]
    norm = np.sqrt(clicked.sum(axis=0))
    unit = scipy.sparse.csr_array(clicked @ scipy.sparse.diags_array(1 / np.maximum(norm, 1)))
    columns = scipy.sparse.csc_array(unit)
    blocks = []
    for start in range(0, items, BLOCK):
        block = scipy.sparse.coo_array(columns[:, start : start + BLOCK].T @ unit)
        other = block.row + start != block.col
        blocks.append(_largest(block.row[other], block.col[other], block.data[other], block.shape[0], count))
    return np.concatenate([nearest for nearest, _ in blocks]), np.concatenate([cosine for _, cosine in blocks])


def following_items(dataset: Dataset, split: Split, count: int) -> Nearest:
    """The `count` items that most often follow each item in the sequences that training sees, most often first.

    An item counts 1 / gap if it comes `gap` of GAPS places later. The sum over all users is divided by the root of the
    product of both items' clicks, RARE added to each, and by the largest possible sum of a click.
    """
    users, sequence = trained_items(dataset, split)
    items = len(dataset.item_ids)
    follows = scipy.sparse.csr_array((items, items), dtype=np.float32)
    for gap in GAPS:
        same = users[gap:] == users[:-gap]
        pairs = sequence[:-gap][same], sequence[gap:][same]
        follows += scipy.sparse.csr_array((np.full(len(pairs[0]), 1 / gap, np.float32), pairs), shape=(items, items))
    follows.sum_duplicates()
    pair = scipy.sparse.coo_array(follows)
    other = pair.row != pair.col
    row, column, value = pair.row[other], pair.col[other], pair.data[other]
    clicks = np.bincount(sequence, minlength=items) + RARE
    return _largest(
        row, column, value / np.sqrt(clicks[row] * clicks[column]) / np.sum(1 / np.array(GAPS)), items, count
    )


def _largest(
    row: NDArray[np.integer], column: NDArray[np.integer], value: NDArray[np.floating], rows: int, count: int
) -> Nearest:
    """The `count` largest values of each row, largest first, and their columns; equal values by column."""
    nearest, values = np.full((rows, count), -1, np.int32), np.zeros((rows, count), np.float32)
    order = np.lexsort((column, -value, row))
    row, column, value = row[order], column[order], value[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)  # position within the row
    kept = place < count
    nearest[row[kept], place[kept]] = column[kept]
    values[row[kept], place[kept]] = value[kept]
    return nearest, values
