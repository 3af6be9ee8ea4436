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

from index_store.version import Version
from retrieval.paths.index import Index
from trainer.config import TrainConfig
from trainer.data.requests import Requests
from trainer.deep_retrieval.occupancy import Occupancy, collapse
from trainer.deep_retrieval.scores import Paths

PAIRS = 100_000  # of neighbours, drawn to see how many still are
REACH_USERS = 10_000  # training users whose requests are made to see which items they reach


@dataclass(frozen=True)
class Health:
    """What `dr-trainer fit` and `dr-index show` report of an index.

    perplexity: of each layer's nodes, 1 to K: over how many of them the postings are spread, as if evenly. reach: the
    share of the items with clicks that some training user's request reads at the default beam; of `reach_users` users,
    who make `reads` reads together. churn: see `churn`; None without a previous version to compare with.
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
        """Two lines for people."""
        o, spread = self.occupancy, ", ".join(f"{p:.1f}" for p in self.perplexity)
        moved = "" if self.churn is None else f"; {self.churn:.0%} of the neighbours are others than in {self.previous}"
        return (
            f"index: {o.used} paths, largest {o.largest}, mean {o.mean_size:.2f}, gini {o.gini:.2f}; nodes in use a "
            f"layer, as if evenly: {spread}\n{self.reach:.1%} of the clicked items are in reach of {self.reach_users} "
            f"training users at the default beam{moved}"
        )

    def faults(self, config: TrainConfig) -> list[str]:
        """What the gate refuses the index for; empty if it is healthy."""
        found = collapse(self.occupancy, config)
        # What as many reads would find if they fell anywhere: few users cannot reach much.
        possible = 1 - math.exp(-self.reads / max(self.clicked, 1))
        if self.reach < config.gate_reach * possible:
            found.append(
                f"{self.reach:.1%} of the clicked items are in reach of {self.reach_users} training users at the "
                f"default beam, expected {config.gate_reach * possible:.1%} at least (gate_reach = "
                f"{config.gate_reach:.1%} of what as many reads could reach)"
            )
        return found


def measure_health(
    index: Index,
    session: Any,
    requests: Requests,
    config: TrainConfig,
    reach: tuple[int, int],
    paths: Paths,
    width: int,
    clicks: NDArray[np.int64],
) -> Health:
    """reach: the default beam and items per path. paths: (V, J). width: K. clicks: (V,), of each item in training."""
    beam, per_path = reach
    read, reads = np.zeros(len(paths), bool), 0
    for beams in requests.beams(session, index, config.history, beam):
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
    """How many of an item's neighbours are others than before, 0 to 1; None where no pair can be compared.

    Neighbours share a first node, whatever its number: a training numbers its nodes anew. Of pairs that were
    neighbours in `previous`, the share that are so no longer. last_layers: K^(D-1), paths below a first node.
    """
    place = {item: i for i, item in enumerate(np.asarray(item_ids).tolist())}
    known = np.array([place.get(item, -1) for item in np.asarray(previous.item_ids).tolist()])
    manifest, index = previous.manifest, previous.index
    item = known[index.path_items]
    node = np.repeat(index.path_ids, np.diff(index.path_offsets)) // manifest.width ** (manifest.depth - 1)
    item, node = item[item >= 0], node[item >= 0]  # by rising node, as path ids are
    if not len(item):
        return None
    generator = np.random.default_rng(0)
    one = generator.integers(len(item), size=PAIRS)
    starts, ends = np.searchsorted(node, node[one]), np.searchsorted(node, node[one], "right")
    other = generator.integers(starts, ends)
    pairs = np.stack([item[one], item[other]], axis=1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if not len(pairs):
        return None
    first = paths // last_layers  # (V, J)
    together = (first[pairs[:, 0]][:, :, None] == first[pairs[:, 1]][:, None, :]).any(axis=(1, 2))
    return float(1 - together.mean())


def _perplexity(nodes: NDArray[np.int64]) -> float:
    share = np.unique(nodes, return_counts=True)[1] / nodes.size
    return float(np.exp(-(share * np.log(share)).sum()))
