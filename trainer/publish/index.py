"""Make the path lists, item vectors and neighbours of a version from a trained network, its assignment and clicks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.paths.index import NO_NEIGHBOURS, Neighbours, PathIndex
from trainer.data.dataset import Dataset
from trainer.data.neighbours import following_items, nearest_items
from trainer.data.split import Split, clicked_items
from trainer.deep_retrieval.layers import PathModel
from trainer.errors import ExportRefused


def make_index(model: PathModel, paths: NDArray[np.int64], neighbours: Neighbours = NO_NEIGHBOURS) -> PathIndex:
    """The path lists of an assignment (V, J), with each path's items by descending bias, and the item vectors."""
    bias = model.item_bias.detach().numpy()
    return PathIndex(*path_lists(paths, bias), _half(model.item_vectors.detach().numpy()), bias, neighbours)


def neighbours(dataset: Dataset, split: Split, count: int) -> Neighbours:
    """The neighbours and followers of each item, at most `count` of each, from what training sees."""
    clicked = clicked_items(dataset, split.train_users, split.train_length)
    lists = nearest_items(clicked, count), following_items(dataset, split, count)
    values = np.stack([values for _, values in lists])
    return Neighbours(np.stack([items for items, _ in lists]), np.rint(65535 * np.minimum(values, 1)).astype(np.uint16))


def path_lists(
    paths: NDArray[np.int64], bias: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """path_ids (P,), path_offsets (P + 1,) and path_items (V J,) of an assignment (V, J); bias: (V,)."""
    flat = paths.ravel()
    items = np.repeat(np.arange(len(paths), dtype=np.int32), paths.shape[1])
    order = np.lexsort((items, -bias[items], flat))
    path_ids, starts = np.unique(flat[order], return_index=True)
    return path_ids, np.append(starts, len(flat)), items[order]


def _half(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    """The vectors in float16, to halve the memory. Raises ExportRefused if a value is too large for float16.

    The rounding changes results less than a different seed does.
    """
    largest = float(np.abs(vectors).max(initial=0))
    if not largest <= float(np.finfo(np.float16).max):
        raise ExportRefused(f"an item vector has {largest:.3g}, float16 holds 65504 at most; lower learning_rate")
    return vectors.astype(np.float16)
