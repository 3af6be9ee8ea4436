"""The most similar items of each item, by the users who clicked both."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

BLOCK = 1000  # items whose cosines with all items are in memory at once


def nearest_items(clicked: scipy.sparse.csr_array, count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The `count` items with the largest cosines for each item, largest first: (V, count) indices, -1 after the last.

    Also their cosines (V, count), 0 after the last. The cosine of two items is that of their columns of the click
    matrix (U, V) of 0 and 1. Equal cosines are ordered by item index. Time: the sum over users of the square of the
    number of their items.
    """
    items = clicked.shape[1]
    norm = np.sqrt(clicked.sum(axis=0))
    unit = scipy.sparse.csr_array(clicked @ scipy.sparse.diags_array(1 / np.maximum(norm, 1)))
    columns = scipy.sparse.csc_array(unit)
    nearest, cosines = np.full((items, count), -1, np.int32), np.zeros((items, count), np.float32)
    for start in range(0, items if count else 0, BLOCK):
        block = scipy.sparse.coo_array(columns[:, start : start + BLOCK].T @ unit)
        row, column, cosine = block.row, block.col, block.data
        other = row + start != column
        row, column, cosine = row[other], column[other], cosine[other]
        order = np.lexsort((column, -cosine, row))
        row, column, cosine = row[order], column[order], cosine[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)  # position within the row
        kept = place < count
        nearest[start + row[kept], place[kept]] = column[kept]
        cosines[start + row[kept], place[kept]] = cosine[kept]
    return nearest, cosines
