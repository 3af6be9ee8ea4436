"""Convert path ids to nodes, and draw random paths. The id of the path c_1 .. c_D is the sum of c_d K^(D-d)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def path_nodes(paths: Tensor, depth: int, width: int) -> list[Tensor]:
    """The nodes c_1 .. c_D of path ids: D tensors, each of the shape of `paths`."""
    return [paths // width ** (depth - 1 - d) % width for d in range(depth)]


def random_paths(items: int, count: int, depth: int, width: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`count` different paths for each item, (V, J), drawn uniformly (Sec. 3.2)."""
    total = width**depth
    paths = generator.integers(total, size=(items, count))
    while len(repeating := repeating_rows(paths)):
        # If there are many paths, few rows have a repeated path, and these rows are drawn again. If there are few
        # paths, draw without replacement.
        if total <= 4 * count:
            paths[repeating] = np.argsort(generator.random((len(repeating), total)), axis=1)[:, :count]
        else:
            paths[repeating] = generator.integers(total, size=(len(repeating), count))
    return paths


def repeating_rows(paths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices of the rows that have a path twice."""
    ordered = np.sort(paths, axis=1)
    return np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
