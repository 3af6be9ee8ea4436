"""Admission and batching without a timer: a batch is whatever queued while the last one was searched.

A lone request waits for nothing; under load batches fill by themselves. The queue is bounded: full means refused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from index_store.errors import IndexStoreError, StoreUnavailable
from index_store.retrieval import Answer, Query
from service.errors import DeadlineExceeded, Overloaded
from service.metrics import Metrics
from service.retriever import Retriever


@dataclass(frozen=True)
class _Entry:
    retriever: Retriever
    query: Query
    result: asyncio.Future[Answer]

    def fits(self, other: _Entry) -> bool:
        """Whether the two can be searched together: one version, one beam width, one score."""
        return (
            self.retriever is other.retriever
            and self.query.beam == other.query.beam
            and self.query.rerank == other.query.rerank
        )


class Batcher:
    """Searches one batch at a time in a thread of its own. Start `run` as a task; cancel it to stop."""

    def __init__(self, max_queue: int, max_batch: int, metrics: Metrics) -> None:
        self._queue: deque[_Entry] = deque()
        self._arrived = asyncio.Event()
        self._max_queue, self._max_batch = max_queue, max_batch
        self._metrics = metrics

    async def submit(self, retriever: Retriever, queries: list[Query], timeout: float) -> list[Answer]:
        """The answers of `queries`, in their order. All or none are admitted.

        Raises Overloaded when the queue has no room for them, DeadlineExceeded after `timeout` seconds. Who stops
        waiting leaves the queue, and costs nothing if not yet searched.
        """
        if len(self._queue) + len(queries) > self._max_queue:
            self._queue = deque(entry for entry in self._queue if not entry.result.done())
        # Into an empty queue anything goes, or a large request could never be answered.
        if self._queue and len(self._queue) + len(queries) > self._max_queue:
            raise Overloaded("too many requests are waiting; try again later, or fewer at once")
        loop = asyncio.get_running_loop()
        entries = [_Entry(retriever, query, loop.create_future()) for query in queries]
        self._queue.extend(entries)
        self._arrived.set()
        try:
            async with asyncio.timeout(timeout):
                return [await entry.result for entry in entries]
        except TimeoutError:
            if retriever.remote:  # most likely for the store: there is more hope later than with another deadline
                raise StoreUnavailable("the path lists were not read within the request's timeout_ms") from None
            raise DeadlineExceeded("no answer within the request's timeout_ms") from None
        finally:
            for entry in entries:
                entry.result.cancel()

    async def run(self) -> None:
        """Search batches until cancelled."""
        with ThreadPoolExecutor(1, "search") as thread:
            while True:
                await self._arrived.wait()
                if batch := self._take():
                    self._metrics.batch_size.observe(len(batch))
                    await self._search(batch, thread)
                    del batch  # or an idle process would keep an old version alive
                else:
                    self._arrived.clear()

    async def _search(self, batch: list[_Entry], thread: ThreadPoolExecutor) -> None:
        """Answer every entry, or tell it what went wrong."""
        queries = [entry.query for entry in batch]
        try:
            found = await asyncio.get_running_loop().run_in_executor(thread, batch[0].retriever.answer, queries)
        except Exception as error:  # noqa: BLE001 -- whatever it is, every waiter is told
            if isinstance(error, IndexStoreError) and len(batch) > 1:
                # One path list may be at fault, and then only who needs it goes without an answer.
                for entry in batch:
                    await self._search([entry], thread)
                return
            if isinstance(error, IndexStoreError):
                self._metrics.store_faults.inc()
            for entry in batch:
                if not entry.result.done():
                    entry.result.set_exception(error)
        else:
            for entry, answer in zip(batch, found, strict=True):
                if not entry.result.done():
                    entry.result.set_result(answer)

    def _take(self) -> list[_Entry]:
        """The oldest entry and those behind it that fit; entries nobody waits for are dropped."""
        batch: list[_Entry] = []
        kept: deque[_Entry] = deque()
        while self._queue and len(batch) < self._max_batch:
            entry = self._queue.popleft()
            if entry.result.done():
                continue
            if not batch or entry.fits(batch[0]):
                batch.append(entry)
            else:
                kept.append(entry)
        self._queue.extendleft(reversed(kept))
        return batch
