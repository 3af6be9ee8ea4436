"""Loads a version by name: the store verifies all parts, the model is tried, and the Retriever is warmed up."""

from __future__ import annotations

import asyncio

from index_store.errors import StoreFull, StoreMisconfigured, StoreUnavailable, VersionNotFound
from index_store.store import IndexStore
from retrieval.searcher import require_known_kind
from service.metrics import Metrics
from service.serving.holding import Holding
from service.serving.retriever import Retriever
from service.serving.trial import sizes, try_model

#: Failures of a load that are no fault of the version: the next load may succeed.
TRANSIENT = (StoreUnavailable, StoreMisconfigured, StoreFull, VersionNotFound)


class Loader:
    """Loads one version at a time, in a thread. refused: for the name of each refused version, the reason."""

    def __init__(self, store: IndexStore, holding: Holding, metrics: Metrics, slots: int) -> None:
        """slots: see Retriever."""
        self._store, self._holding, self._metrics, self._slots = store, holding, metrics, slots
        self.refused: dict[str, str] = {}
        self._loading = asyncio.Lock()
        self._tried: set[tuple[str, ...]] = set()  # digests of models that passed their trial, with its input sizes

    async def load(self, name: str, *, again: bool = False) -> Retriever:
        """Return the version, at once if it is in memory. Raises the errors of `IndexStore.load`.

        again: load it even if it is in memory, without the records that were applied to it there.
        """
        if not again and (retriever := self._holding.find(name)):
            return retriever
        async with self._loading:
            if not again and (retriever := self._holding.find(name)):  # another caller has loaded it meanwhile
                return retriever
            self._holding.loading = name
            try:
                await self._holding.renew()
                retriever = await asyncio.to_thread(self._open, name)
            except TRANSIENT:
                raise
            except Exception as error:
                self.refused[name] = str(error)
                self._metrics.swaps.labels("refused").inc()
                raise
            finally:
                self._holding.loading = None
            self.refused.pop(name, None)
            self._holding.add(retriever)
            return retriever

    def _open(self, name: str) -> Retriever:
        version = self._store.load(name)
        manifest = version.manifest
        require_known_kind(manifest)  # the trial can run only models of a known kind
        trial = manifest.parts["model.onnx"].sha256, *map(str, sizes(manifest).values())
        if trial not in self._tried:
            try_model(version)
            self._tried.add(trial)
        return Retriever(version, self._slots)
