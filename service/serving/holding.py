"""Keeps the versions that this process uses from being deleted, by leases in the store."""

from __future__ import annotations

import asyncio
import logging
import weakref
from contextlib import suppress

from index_store.store import IndexStore
from service.serving.failure_log import FailureLog
from service.serving.retriever import Retriever

log = logging.getLogger(__name__)

HOLD_SECONDS = 5.0  # between two renewals of the leases


class Holding:
    """Protects from deletion all versions that are in memory, and the version that is being loaded.

    In memory are the version served, the version served before it, and versions that a request still uses.
    """

    def __init__(self, store: IndexStore) -> None:
        self._store = store
        self._loaded: weakref.WeakSet[Retriever] = weakref.WeakSet()
        self.loading: str | None = None
        self._renewing = asyncio.Lock()  # an older set of names must not reach the store after a newer set
        self._failures = FailureLog(log)

    def add(self, retriever: Retriever) -> None:
        """Hold the version until nothing refers to `retriever` any more."""
        self._loaded.add(retriever)

    def find(self, name: str) -> Retriever | None:
        """The version of this name, if it is in memory."""
        return next((retriever for retriever in self._loaded if retriever.name == name), None)

    async def renew(self) -> None:
        """Tell the store which versions are held now. Never raises: a version can be served without a lease."""
        try:
            async with self._renewing:
                names = {retriever.name for retriever in self._loaded}
                if self.loading:
                    names.add(self.loading)
                await asyncio.to_thread(self._store.hold, names)
        except Exception as error:  # noqa: BLE001
            self._failures.failed(f"versions in use cannot be held: {type(error).__name__}: {error}")
        else:
            self._failures.over()

    async def keep(self, seconds: float = HOLD_SECONDS) -> None:
        """Renew the leases every `seconds` until cancelled, also during a long load."""
        while True:
            await self.renew()
            await asyncio.sleep(seconds)

    async def release(self) -> None:
        """Release all versions, because the process ends. Never raises: without a renewal, leases expire."""
        with suppress(Exception):
            await asyncio.to_thread(self._store.hold, [])
