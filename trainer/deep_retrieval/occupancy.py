"""Measure how the items are spread over the paths, and whether the index is collapsing (Sec. 3.3)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.config import TrainConfig


@dataclass(frozen=True)
class Occupancy:
    """The spread of the V J postings over the paths. A posting is a pair of an item and one of its paths.

    used: the number of paths with items. largest: the number of items on the largest path. mean_size: the mean number
    of items on a used path. gini: 0 if all used paths have the same number of items, near 1 if one path has nearly all
    items. entropy: the entropy of the path of a random posting, in bits.
    """

    used: int
    largest: int
    mean_size: float
    gini: float
    entropy: float

    @classmethod
    def of(cls, paths: NDArray[np.int64]) -> Occupancy:
        """The occupancy of an assignment (V, J)."""
        return cls.of_sizes(np.unique(paths, return_counts=True)[1])

    @classmethod
    def of_sizes(cls, sizes: NDArray[np.int64]) -> Occupancy:
        """The occupancy for the sizes of the paths in use, (P,)."""
        sizes = np.sort(sizes)
        share = sizes / sizes.sum()
        ranks = np.arange(1, len(sizes) + 1)
        gini = float((2 * ranks - len(sizes) - 1) @ share / len(sizes))
        return cls(len(sizes), int(sizes[-1]), float(sizes.mean()), gini, float(-(share * np.log2(share)).sum()))

    def to_json(self) -> dict[str, Any]:
        """The fields, for metrics.jsonl and the manifest."""
        return dataclasses.asdict(self)


def collapse(occupancy: Occupancy, config: TrainConfig) -> list[str]:
    """Messages about signs of a collapse: a path that is too large, an entropy that is too low. Empty if healthy."""
    faults = []
    postings = occupancy.used * occupancy.mean_size
    items = postings / config.paths_per_item
    most = max(10 * config.k, config.gate_largest * items)
    if occupancy.largest > most:
        faults.append(
            f"the largest path holds {occupancy.largest} of {items:.0f} items, expected at most {most:.0f} "
            f"(10 k, or gate_largest = {config.gate_largest:.1%} of them)"
        )
    least = config.gate_entropy * math.log2(items)
    if occupancy.entropy < least:
        faults.append(
            f"the paths have an entropy of {occupancy.entropy:.1f} bits, expected at least {least:.1f} "
            f"(gate_entropy = {config.gate_entropy} of the items' {math.log2(items):.1f})"
        )
    return faults
