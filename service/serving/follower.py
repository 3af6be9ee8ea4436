"""Keeps the version in service up to date with the log of the catalogue.

All reading and applying is done in one thread, one call after another. At a swap, the new version catches up in this
thread, and from then on only the new version gets records. So the last record seen by answers never goes back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from index_store.errors import IndexStoreError
from index_store.store import IndexStore
from retrieval.paths.overlay import OverlayFull
from service.metrics import Metrics
from service.serving.failure_log import FailureLog
from service.serving.retriever import Retriever

log = logging.getLogger(__name__)

SECONDS = 0.05  # between two looks at the log
READ = 1000  # records read at once


class Follower:
    """Applies the records of the log. `problem` is the reason why it cannot, or None."""

    def __init__(self, store: IndexStore, metrics: Metrics) -> None:
        self._store, self._metrics = store, metrics
        self._thread = ThreadPoolExecutor(1, "log")
        self._target: Retriever | None = None
        self._advanced = asyncio.Event()  # replaced each time that records were applied
        self.problem: Exception | None = None
        self._failures = FailureLog(log)

    async def run(self) -> None:
        """Follow the log until cancelled."""
        try:
            while True:
                await self.advance()
                await asyncio.sleep(SECONDS)
        finally:
            self._thread.shutdown(wait=False)

    @property
    def seq(self) -> int:
        """The last record that is applied."""
        return self._target.place.seq if self._target else 0

    async def turn_to(self, retriever: Retriever) -> None:
        """Apply all records to `retriever`, and from now on only to it.

        Raises LogBroken if the log does not continue the version, OverlayFull, and the errors of `IndexStore.read`;
        then the records still go to the retriever before.
        """

        def turn() -> None:
            self._apply(retriever)
            self._target = retriever

        await asyncio.get_running_loop().run_in_executor(self._thread, turn)
        self._tell()

    async def advance(self) -> None:
        """Apply all records that are in the log now. Never raises: a failure is logged and becomes `problem`."""
        target = self._target
        if target is None:
            return
        before = target.place.seq
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._apply, target)
        except (IndexStoreError, OverlayFull) as error:
            self.problem = error
            self._failures.failed(f"{target.name} cannot follow the log: {type(error).__name__}: {error}")
        else:
            self.problem = None
            self._failures.over()
        if target.place.seq > before:
            self._tell()

    async def wait_for(self, seq: int, seconds: float) -> bool:
        """Wait until the version in service has all records up to `seq`, at most `seconds`. Whether it has."""
        end = time.monotonic() + seconds
        while self.seq < seq:
            advanced = self._advanced
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + end - time.monotonic()):
                    await advanced.wait()
            except TimeoutError:
                return False
        return True

    def _apply(self, retriever: Retriever) -> None:
        while records := self._store.read(retriever.place, READ):
            retriever.searcher.apply(records)
        self._metrics.log(retriever.place.seq, retriever.fullness)

    def _tell(self) -> None:
        self._advanced.set()
        self._advanced = asyncio.Event()
