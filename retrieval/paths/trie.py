"""The trie of the paths in use: an input of the network, so that its beam follows only prefixes that lead to an item.

It is made when a version is opened and is not part of the ONNX file. So a new path needs no new network, and a trie
with fewer children keeps the beam, in every layer, to the paths that are left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index_store.errors import VersionDamaged

#: The most entries of a trie, of 4 bytes each. A version of few paths could ask for much more than its own size.
MAX_ENTRIES = 2**28


def path_trie(path_ids: NDArray[np.int64], depth: int, width: int) -> NDArray[np.int32]:
    """The trie of `path_ids` (P,), ascending, as a table (R, K): a row for each prefix of 0 to D - 1 nodes in use.

    Row 0 is the empty prefix; the prefixes of one node follow, ascending, then those of two, and so on. Entry [r, c]
    says where prefix r goes with node c: to the row of the longer prefix; for a prefix of D - 1 nodes, to the path's
    place in `path_ids`; -1 where no item lies. The last row, which is also row -1, stands for no prefix and leads
    nowhere. Memory: 4 * K bytes a row. Raises VersionDamaged for more than MAX_ENTRIES.
    """
    prefixes = [np.unique(path_ids // width ** (depth - layer)) for layer in range(depth + 1)]  # of 0 to D nodes
    starts = np.cumsum([0, *map(len, prefixes[:-1])])
    if (int(starts[-1]) + 1) * width > MAX_ENTRIES:
        raise VersionDamaged(
            f"path_ids: their trie would have {starts[-1] + 1} rows of {width}, over {MAX_ENTRIES} entries"
        )
    table = np.full((starts[-1] + 1, width), -1, np.int32)
    for layer in range(depth):
        shorter, longer = prefixes[layer], prefixes[layer + 1]
        row = starts[layer] + np.searchsorted(shorter, longer // width)
        first = starts[layer + 1] if layer + 1 < depth else 0
        table[row, longer % width] = first + np.arange(len(longer))
    return table
