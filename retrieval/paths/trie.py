"""The trie of the paths in use. With this input, the network's beam search follows only prefixes that lead to an item.

The trie is made when a version is opened and is not part of the ONNX file. So new paths need no new network, and with a
trie of fewer paths the beam search follows only the paths in that trie.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index_store.errors import VersionDamaged

#: The most entries of a trie, of 4 bytes each. Without this limit, a version with few paths and a large K could need
#: much more memory than its own size.
MAX_ENTRIES = 2**28


def path_trie(path_ids: NDArray[np.int64], depth: int, width: int) -> NDArray[np.int32]:
    """The trie of `path_ids` (P,), ascending, as a table (R, K): a row for each prefix in use, of 0 to D - 1 nodes,
    and a last row of -1.

    Row 0 is the empty prefix. Then follow the prefixes of one node, ascending, the prefixes of two nodes, and so on.
    Entry [r, c] is the row of prefix r extended by node c. If prefix r has D - 1 nodes, the extension is a path and the
    entry is its index in `path_ids`. An entry is -1 if no path in use begins with the extension; used as a row index,
    -1 selects the last row, whose entries are all -1, so the search never leaves it. Memory: 4 * K bytes per row.
    Raises VersionDamaged for more than MAX_ENTRIES.
    """
    prefixes = [_distinct(path_ids // width ** (depth - layer)) for layer in range(depth + 1)]  # of 0 to D nodes
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


def _distinct(ascending: NDArray[np.int64]) -> NDArray[np.int64]:
    """The different numbers. np.unique takes 20 times longer, because it does not know their order."""
    distinct: NDArray[np.int64] = ascending[np.concatenate([[True], ascending[1:] != ascending[:-1]])]
    return distinct
