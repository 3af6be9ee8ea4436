"""The number of items that a request reads for each of the k candidates that it returns. The paper has 5 to 10."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Training chooses the size of the paths so that a request reads about 7.5 k items, the middle of the paper's range.
#: During training the number of reads is only estimated (`expected_reads`).
TRAINED_READS = 7.5
#: After training, the default `beam` and `per_path` are chosen so that a request reads at most 9 k items on average, as
#: measured on training users.
SERVED_READS = 9


def expected_reads(paths: NDArray[np.int64], beams: NDArray[np.int64], beam: int) -> float:
    """The expected number of items on a beam of `beam` paths: `beam` times the mean size of the paths in `beams`.

    Paths without items are left out of the mean; the result is 0 if no path has items. paths: (V, J), the assignment.
    beams: (R, S), the path ids of the beams of R requests.
    """
    used, sizes = np.unique(paths, return_counts=True)
    searched = beams.ravel()
    place = np.minimum(np.searchsorted(used, searched), len(used) - 1)
    has_items = used[place] == searched
    return beam * float(sizes[place[has_items]].mean()) if has_items.any() else 0.0
