"""How many items a request reads for each of the k candidates that it returns. The paper has 5 to 10."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Training makes paths of such a size that a request reads about 7.5 k items, the middle of the paper's range.
TRAINED_READS = 7.5
#: The default beam and items per path are chosen among those that read at most 9 k items. 9 limits the reads that are
#: measured after training; 7.5 is the aim during training, when there is only an estimate (`expected_reads`).
SERVED_READS = 9


def expected_reads(paths: NDArray[np.int64], beams: NDArray[np.int64], beam: int) -> float:
    """Items on a beam of `beam` paths: W times the mean size of those paths of the beams that have items.

    paths: (V, J), the assignment. beams: (R, S), the path ids of R requests' beams. 0 if no path of them has items.
    """
    used, sizes = np.unique(paths, return_counts=True)
    searched = beams.ravel()
    place = np.minimum(np.searchsorted(used, searched), len(used) - 1)
    has_items = used[place] == searched
    return beam * float(sizes[place[has_items]].mean()) if has_items.any() else 0.0
