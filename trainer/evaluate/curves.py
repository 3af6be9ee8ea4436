"""Two curves by items read: the share of brute force's answer, and of the true items, that is among the items read.

Structures are compared at equal reads, because an index that reads everything finds everything.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.config import TrainConfig
from trainer.data.requests import Requests
from trainer.evaluate.evaluate import MeasuredVersion
from trainer.publish.frontier import best_within, frontier

#: The items read per request at which the shares are reported.
READS = (20, 25, 50, 100, 200, 500, 1000)
FEWEST = 15  # items read by the narrowest search that is measured, so that the shares at 20 can be interpolated


def shares_by_reads(measured: MeasuredVersion, training: Requests, config: TrainConfig) -> list[dict[str, Any]]:
    """For each of READS: {"reads", "brute_force", "truths"}, the two shares over the held-out requests of `measured`.

    For each number of reads, beam and items per path are chosen on `training`, requests of training users. Held-out
    users may read more or fewer items with them, so the shares are interpolated linearly to exactly the stated reads.
    Where no wider search finds more, the share stays the same. A share is None if every search reads more items.
    """
    points = list(frontier(measured.structure, training, config.k, READS[-1]))
    chosen = [best_within(points, reads) for reads in (FEWEST, *READS)]
    searches = dict.fromkeys((point.beam, point.per_path) for point in chosen)
    found = sorted((measured.reads(config.k, *search) for search in searches), key=lambda reads: reads.mean)
    means = [point.mean for point in found]

    def at(reads: int, shares: list[float | None]) -> float | None:
        known = None not in shares and means[0] <= reads
        return float(np.interp(reads, means, shares)) if known else None  # type: ignore[arg-type]

    exact, truths = [point.exact for point in found], [point.truths for point in found]
    return [{"reads": reads, "brute_force": at(reads, exact), "truths": at(reads, truths)} for reads in READS]
