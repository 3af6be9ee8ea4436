"""One loaded version: verified, warmed up, and timed. A request keeps its Retriever, so one version answers it.

The records of the log are applied to it while it answers.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.errors import IndexStoreError, VersionDamaged
from index_store.log import Place
from index_store.manifest import naming
from index_store.version import Version
from retrieval.golden import replay
from retrieval.query import Query
from retrieval.searcher import Searcher
from service.serving.pace import Pace

SLOTS = 100_000  # new items, by default


class Retriever:
    """A version in service: its searcher, and the predicted time of a search. Only this and the overlay ever change."""

    def __init__(self, version: Version, slots: int = SLOTS) -> None:
        """Load the model, replay the golden queries and warm up. Raises VersionDamaged.

        slots: the most new items for which there is room.
        """
        self.searcher = Searcher.open(version, slots)
        self.manifest = version.manifest
        self.name = version.manifest.version
        self.max_beam = self.searcher.facts.max_beam
        self.remote = version.read_paths is not None  # each answer needs path lists from the store
        with naming(self.name):
            try:
                replay(self.searcher, version.document("golden.json"))
                self.pace = self._warm_up()
            except IndexStoreError:
                raise
            except Exception as error:  # noqa: BLE001 -- any error of the runtime, for a model of wrong shape
                raise VersionDamaged(f"model.onnx cannot be run ({type(error).__name__})") from None

    @property
    def place(self) -> Place:
        """The last record of the log that is applied."""
        assert self.searcher.overlay
        return self.searcher.overlay.place

    @property
    def fullness(self) -> float:
        """The share of the room for new items that is in use."""
        assert self.searcher.overlay
        return self.searcher.overlay.fullness

    @property
    def room(self) -> int:
        """How many items can be put now. A tenth is kept for writers on other replicas."""
        assert self.searcher.overlay
        return int((0.9 - self.fullness) * self.searcher.overlay.room)

    def _warm_up(self) -> Pace:
        """Search batches of 1 and 8, so that no request is slowed by the runtime's first use; then measure the pace."""
        empty = np.empty(0, np.int64)
        longest = np.zeros(self.manifest.history, np.int64)
        categories, numbers, _ = self.searcher.schema.encode({})
        facts = self.searcher.facts
        beam, per_path = facts.beam, facts.per_path

        def search(history: NDArray[np.int64], queries: int, beam: int) -> None:
            query = Query(history, categories, numbers, self.manifest.k, beam, per_path, history, widen=False)
            self.searcher.answer([query] * queries)

        for queries in (1, 8, 1):
            search(empty, queries, beam)
            search(longest, queries, beam)
        return Pace.measured(functools.partial(search, longest), beam)

    def info(self) -> dict[str, Any]:
        """The version's shape, defaults and context features, for /v1/info."""
        m, facts, schema = self.manifest, self.searcher.facts, self.searcher.schema
        return {
            "version": self.name,
            "created": m.created,
            "model": {
                "kind": m.kind,
                "depth": facts.depth,
                "width": facts.width,
                "paths_per_item": facts.paths_per_item,
                "embedding": m.embedding,
                "history": m.history,
                "items": m.items,
                "paths": facts.paths,
                "item_id_type": self.searcher.vocabulary.kind,
                "rerank": self.searcher.structure.reranker.kind,
            },
            "defaults": {"k": m.k, "beam": facts.beam, "per_path": facts.per_path},
            "context": {
                "categorical": {category.name: len(category.values) for category in schema.categories},
                "numeric": [number.name for number in schema.numbers],
            },
        }
