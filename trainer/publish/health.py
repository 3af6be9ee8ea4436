"""Measure the health of an index, and refuse to publish a collapsed index.

An index has collapsed if most items are on few paths (Sec. 3.3). A request then reads most of the catalogue. If the
number of items read per path is limited, all requests read the same few items instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.path_facts import PathFacts
from index_store.version import Version
from retrieval.paths.index import PathIndex
from retrieval.paths.structure import PathStructure
from trainer.config import TrainConfig
from trainer.data.requests import Requests
from trainer.deep_retrieval.occupancy import Occupancy, collapse
from trainer.deep_retrieval.scores import Paths

PAIRS = 100_000  # pairs of neighbours that are drawn to estimate the churn
REACH_USERS = 10_000  # most training users whose requests are used to measure the reach


@dataclass(frozen=True)
class Health:
    """The figures on an index that `dr-trainer fit` and `dr-index show` print.

    perplexity: for each layer, the effective number of nodes in use, 1 to K. reach: the share of the `clicked` items
    that the requests of `reach_users` training users read at the default beam. reads: the number of items that these
    requests read in total. churn: see the function `churn`; None if there is no previous version.
    """

    occupancy: Occupancy
    perplexity: list[float]
    reach: float
    reach_users: int
    reads: int
    clicked: int
    churn: float | None = None
    previous: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields and those of `occupancy`, for the manifest."""
        return {
            **self.occupancy.to_json(),
            "perplexity": self.perplexity,
            "reach": self.reach,
            "reach_users": self.reach_users,
            "reads": self.reads,
            "clicked": self.clicked,
            "churn": self.churn,
            "previous": self.previous,
        }

    def describe(self) -> str:
        """The figures as two lines of text."""
        o, spread = self.occupancy, ", ".join(f"{p:.1f}" for p in self.perplexity)
        moved = "" if self.churn is None else f"; {self.churn:.0%} of the neighbours have changed since {self.previous}"
        return (
            f"index: {o.used} paths, largest {o.largest}, mean {o.mean_size:.2f}, gini {o.gini:.2f}; effective nodes "
            f"in use in each layer: {spread}\n{self.reach:.1%} of the clicked items are in reach of {self.reach_users} "
            f"training users at the default beam{moved}"
        )

    def faults(self, config: TrainConfig) -> list[str]:
        """Why the gate refuses the index; empty if it is healthy."""
        faults = collapse(self.occupancy, config)
        # The share of the clicked items that the same number of reads would reach if each read a random item. With few
        # users this share is small even for a healthy index.
        possible = 1 - math.exp(-self.reads / max(self.clicked, 1))
        if self.reach < config.gate_reach * possible:
            faults.append(
                f"{self.reach:.1%} of the clicked items are in reach of {self.reach_users} training users at the "
                f"default beam, expected at least {config.gate_reach * possible:.1%} (gate_reach = "
                f"{config.gate_reach:.1%} of what the same number of random reads would reach)"
            )
        return faults


def measure_health(
    structure: PathStructure,
    requests: Requests,
    config: TrainConfig,
    default_search: tuple[int, int],
    paths: Paths,
    width: int,
    clicks: NDArray[np.int64],
) -> Health:
    """Measure the index that is about to be published.

    default_search: the default beam and items per path. paths: (V, J). width: K. clicks: (V,), each item's clicks in
    training.
    """
    index, (beam, per_path) = structure.index, default_search
    read, reads = np.zeros(len(paths), bool), 0
    for beams in requests.beams(structure, beam):
        reads += int(index.read(beams.paths.ravel(), per_path).lengths.sum())
        read[index.read(np.unique(beams.paths), per_path).items] = True
    clicked = clicks > 0
    return Health(
        Occupancy.of(paths),
        [_perplexity(paths // width ** (config.depth - 1 - d) % width) for d in range(config.depth)],
        float(read[clicked].mean()),
        len(requests.histories),
        reads,
        int(clicked.sum()),
    )


def churn(paths: Paths, item_ids: NDArray[Any], last_layers: int, previous: Version) -> float | None:
    """The share of pairs of neighbours in `previous` that are not neighbours now, 0 to 1; None if there are no pairs.

    Two items are neighbours if they share a first node. The node's number is not compared, because every training
    numbers its nodes differently. paths: (V, J). last_layers: K^(D-1), the number of paths with the same first node.
    """
    if previous.manifest.kind != "paths":
        return None
    place = {item: i for i, item in enumerate(np.asarray(item_ids).tolist())}
    known = np.array([place.get(item, -1) for item in np.asarray(previous.item_ids).tolist()])
    facts, index = PathFacts.of(previous.manifest.structure), PathIndex.of(previous)
    item = known[index.path_items]
    node = np.repeat(index.path_ids, np.diff(index.path_offsets)) // facts.width ** (facts.depth - 1)
    item, node = item[item >= 0], node[item >= 0]  # in ascending order of node, because path ids are ascending
    if not len(item):
        return None
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(item), size=PAIRS)
    starts, ends = np.searchsorted(node, node[drawn]), np.searchsorted(node, node[drawn], "right")
    other = generator.integers(starts, ends)
    pairs = np.stack([item[drawn], item[other]], axis=1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if not len(pairs):
        return None
    first = paths // last_layers  # (V, J)
    together = (first[pairs[:, 0]][:, :, None] == first[pairs[:, 1]][:, None, :]).any(axis=(1, 2))
    return float(1 - together.mean())


def _perplexity(nodes: NDArray[np.int64]) -> float:
    share = np.unique(nodes, return_counts=True)[1] / nodes.size
    return float(np.exp(-(share * np.log(share)).sum()))
