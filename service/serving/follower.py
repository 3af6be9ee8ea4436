"""Keeps the version in service up to date with the log of the catalogue.

All reading and applying is done in one thread, one call after another. During a swap both versions get the records, the
new one first, so that the last record seen by answers never goes back.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from index_store.errors import LogBroken
from index_store.store import IndexStore
from service.errors import Overloaded
from service.metrics import Metrics
from service.serving.failure_log import FailureLog
from service.serving.retriever import Retriever

log = logging.getLogger(__name__)

SECONDS = 0.05  # between two looks at the log
READ = 1000  # records read at once
PREPARED = 100  # records applied at once to a version that will be served; the one in service waits for these
WAITING = 1000  # requests that wait for a record, at most


class Follower:
    """Applies the records of the log. `problem` is the reason why it cannot, or None."""

    def __init__(self, store: IndexStore, metrics: Metrics) -> None:
        self._store, self._metrics = store, metrics
        self._thread = ThreadPoolExecutor(1, "log")
        self._serving: Retriever | None = None
        self._coming: Retriever | None = None  # will be served next
        self._waiting = 0
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
        return self._serving.place.seq if self._serving else 0

    async def prepare(self, retriever: Retriever) -> None:
        """Apply all records to `retriever`, and from now on all later ones too, until `serve` or `give_up`.

        Raises LogBroken if the log does not continue the version, and the errors of `IndexStore.read`.
        """
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(self._thread, self._apply_some, retriever, PREPARED):
            await self.advance()
        self._coming = retriever
        await self.advance()  # it has at least the records of the version in service
        if retriever.place.seq < self.seq and self.problem and not isinstance(self.problem, LogBroken):
            self._coming = None
            raise self.problem

    def serve(self, retriever: Retriever) -> None:
        """From now on, only `retriever` gets records, and `seq` is its."""
        self._serving, self._coming = retriever, None
        self._tell()

    def give_up(self) -> None:
        """Forget the version that was prepared."""
        self._coming = None

    async def advance(self) -> None:
        """Apply all records that are in the log now. Never raises: a failure is logged and becomes `problem`."""
        if self._serving is None and self._coming is None:
            return
        before = self.seq
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._advance)
        except Exception as error:  # noqa: BLE001 -- whatever is wrong with the log, answers go on
            self.problem = error
            self._failures.failed(f"the log cannot be followed: {type(error).__name__}: {error}")
        else:
            self.problem = None
            self._failures.over()
        if self.seq > before:
            self._tell()

    async def wait_for(self, seq: int, seconds: float) -> bool:
        """Wait until the version in service has all records up to `seq`, at most `seconds`. Whether it has.

        Raises Overloaded if WAITING others wait already.
        """
        if self.seq >= seq:
            return True
        if self._waiting >= WAITING:
            raise Overloaded("too many requests wait for the record that their min_seq names; try again later")
        self._waiting += 1
        try:
            async with asyncio.timeout(seconds):
                while self.seq < seq:
                    await self._advanced.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1
        return True

    def _advance(self) -> None:
        coming, serving = self._coming, self._serving
        if coming is not None:
            self._apply(coming)
        if serving is not None:
            self._apply(serving, coming.place.seq if coming else None)
            self._metrics.log(serving.place.seq, serving.fullness)

    def _apply(self, retriever: Retriever, last: int | None = None) -> None:
        """Apply records, those after the record `last` excepted."""
        while (last is None or retriever.place.seq < last) and self._apply_some(retriever, READ, last):
            pass

    def _apply_some(self, retriever: Retriever, most: int, last: int | None = None) -> bool:
        """Apply about `most` records. Returns whether there were any."""
        records = self._store.read(retriever.place, most)
        if last is not None:
            records = [record for record in records if record.seq <= last]
        left_out = retriever.searcher.apply(records) if records else 0
        if left_out:
            log.error(
                "%s: no room for %d puts or moves of items; fold it with dr-index fold, or raise DR_NEW_ITEMS",
                retriever.name,
                left_out,
            )
        return bool(records)

    def _tell(self) -> None:
        self._advanced.set()
        self._advanced = asyncio.Event()
