"""How healthy an index is, and the gate that keeps a collapsed one from being published.

An index collapses when most items end on few paths (the paper saw it, Sec. 3.3): then a request reads either most of
the catalogue or, capped, the same few items for everybody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.retrieval import Index
from index_store.version import Version
from trainer.assignment import Occupancy
from trainer.config import TrainConfig
from trainer.requests import Requests

REACH_USERS = 10_000  # training users whose requests are made to see which items they reach


@dataclass(frozen=True)
class Health:
    """What `dr-trainer fit` and `dr-index show` report of an index.

    perplexity: of each layer's nodes, 1 to K: over how many of them the postings are spread, as if evenly. reach: the
    share of items that some training user's request reads at the default beam; of `reach_users` users. churn: the
    share of postings that the previous version has not, None where their paths cannot be compared.
    """

    occupancy: Occupancy
    perplexity: list[float]
    reach: float
    reach_users: int
    churn: float | None
    previous: str | None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.occupancy.to_json(),
            "entropy": self.occupancy.entropy,
            "perplexity": self.perplexity,
            "reach": self.reach,
            "reach_users": self.reach_users,
            "churn": self.churn,
            "previous": self.previous,
        }

    def describe(self) -> str:
        """Two lines for people."""
        o, spread = self.occupancy, ", ".join(f"{p:.1f}" for p in self.perplexity)
        moved = "" if self.churn is None else f"; {self.churn:.0%} of the postings are new since {self.previous}"
        return (
            f"index: {o.used} paths, largest {o.largest}, mean {o.mean_size:.2f}, gini {o.gini:.2f}; nodes in use a "
            f"layer, as if evenly: {spread}\n{self.reach:.1%} of the items are in reach of {self.reach_users} training "
            f"users at the default beam{moved}"
        )

    def faults(self, config: TrainConfig) -> list[str]:
        """What the gate refuses the index for; empty if it is healthy."""
        found = collapse(self.occupancy, config)
        if self.reach < config.gate_reach:
            found.append(
                f"{self.reach:.1%} of the items are in reach of {self.reach_users} training users at the default beam, "
                f"expected gate_reach = {config.gate_reach:.1%} at least"
            )
        return found


def collapse(occupancy: Occupancy, config: TrainConfig) -> list[str]:
    """What is wrong with how the postings are spread."""
    found = []
    postings = occupancy.used * occupancy.mean_size
    items = postings / config.paths_per_item
    most = max(10 * config.k, config.gate_largest * items)
    if occupancy.largest > most:
        found.append(
            f"the largest path holds {occupancy.largest} of {items:.0f} items, expected {most:.0f} at most "
            f"(10 k, or gate_largest = {config.gate_largest:.1%} of them)"
        )
    least = config.gate_entropy * math.log2(items)
    if occupancy.entropy < least:
        found.append(
            f"the paths have an entropy of {occupancy.entropy:.1f} bits, expected {least:.1f} at least "
            f"(gate_entropy = {config.gate_entropy} of the items' {math.log2(items):.1f})"
        )
    return found


def measure_health(
    index: Index,
    session: Any,
    requests: Requests,
    config: TrainConfig,
    reach: tuple[int, int],
    paths: NDArray[np.int64],
    width: int,
    previous: Version | None,
    item_ids: NDArray[Any],
) -> Health:
    """reach: the default beam and items per path. paths: (V, J), of the items item_ids (V,). width: K."""
    beam, per_path = reach
    read = np.zeros(len(paths), bool)
    for beams in requests.beams(session, config.history, beam):
        read[index.lookup(np.unique(beams.path_ids), per_path).items] = True
    return Health(
        Occupancy.of(paths),
        [_perplexity(paths // width ** (config.depth - 1 - d) % width) for d in range(config.depth)],
        float(read.mean()),
        len(requests.histories),
        churn(paths, item_ids, width, config.depth, previous) if previous else None,
        previous.manifest.version if previous else None,
    )


def churn(paths: NDArray[np.int64], item_ids: NDArray[Any], width: int, depth: int, previous: Version) -> float | None:
    """The share of the postings `paths` (V, J) that `previous` has not, among the items that it knows.

    None where it has other nodes or none of the items: a path's number means nothing there.
    """
    if (previous.manifest.width, previous.manifest.depth) != (width, depth):
        return None
    place = {item: i for i, item in enumerate(np.asarray(item_ids).tolist())}
    known = np.array([place.get(item, -1) for item in np.asarray(previous.item_ids).tolist()])
    both = np.unique(known[known >= 0])
    if not len(both):
        return None
    index = previous.index
    item, path = known[index.path_items], np.repeat(index.path_ids, np.diff(index.path_offsets))
    ids = np.unique(np.concatenate([path, paths.ravel()]))  # their places are small, so that a pair fits in int64
    before = item * len(ids) + np.searchsorted(ids, path)
    now = both[:, None] * len(ids) + np.searchsorted(ids, paths[both])
    return float(1 - np.isin(now, before[item >= 0]).mean())


def _perplexity(nodes: NDArray[np.int64]) -> float:
    share = np.unique(nodes, return_counts=True)[1] / nodes.size
    return float(np.exp(-(share * np.log(share)).sum()))
