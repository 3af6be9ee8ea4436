"""Admission and batching without a timer: a batch is whatever queued while the last one was searched.

A lone request waits for nothing, not even a thread; under load batches fill by themselves. The queue is bounded: full
means refused. Who would probably be answered too late is searched with a narrower beam, by measured pace.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from index_store.errors import IndexStoreError, StoreUnavailable
from index_store.retrieval import Answer, Query
from service.errors import DeadlineExceeded, Overloaded
from service.metrics import Metrics
from service.retriever import Retriever

#: A lone search that takes no longer is done at once: to wake a thread and be woken by it may take as long.
AT_ONCE_SECONDS = 0.002


@dataclass(frozen=True)
class _Entry:
    retriever: Retriever
    query: Query
    deadline: float  # of time.monotonic
    result: asyncio.Future[Answer]

    def beam(self, company: int) -> int:
        """The width that it is searched with among so many, 0 when it is too late for any."""
        left = self.deadline - time.monotonic()
        return self.retriever.pace.affordable(company, self.query.beam, left) if left > 0 else 0


@dataclass(frozen=True)
class _Batch:
    """Entries that are searched together: of one version, one beam width, one score."""

    entries: list[_Entry]
    beam: int

    def fits(self, entry: _Entry, beam: int) -> bool:
        first = self.entries[0]
        return entry.retriever is first.retriever and beam == self.beam and entry.query.rerank == first.query.rerank


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
        deadline = time.monotonic() + timeout
        entries = [_Entry(retriever, query, deadline, loop.create_future()) for query in queries]
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
                    self._metrics.batch_size.observe(len(batch.entries))
                    await self._search(batch, thread)
                    del batch  # or an idle process would keep an old version alive
                else:
                    self._arrived.clear()

    async def _search(self, batch: _Batch, thread: ThreadPoolExecutor) -> None:
        """Answer every entry, or tell it what went wrong."""
        retriever = batch.entries[0].retriever
        queries = [
            entry.query if entry.query.beam == batch.beam else replace(entry.query, beam=batch.beam, widen=False)
            for entry in batch.entries
        ]
        alone = len(queries) == 1 and not self._queue and not retriever.remote
        started = time.monotonic()
        try:
            if alone and retriever.pace.seconds(1, batch.beam) <= AT_ONCE_SECONDS:
                found = retriever.answer(queries)
            else:
                found = await asyncio.get_running_loop().run_in_executor(thread, retriever.answer, queries)
        except Exception as error:  # noqa: BLE001 -- whatever it is, every waiter is told
            if isinstance(error, IndexStoreError) and len(queries) > 1:
                # One path list may be at fault, and then only who needs it goes without an answer.
                for entry in batch.entries:
                    await self._search(_Batch([entry], batch.beam), thread)
                return
            if isinstance(error, IndexStoreError):
                self._metrics.store_faults.inc()
            for entry in batch.entries:
                if not entry.result.done():
                    entry.result.set_exception(error)
        else:
            retriever.pace.learn(len(queries), batch.beam, time.monotonic() - started)
            for entry, answer in zip(batch.entries, found, strict=True):
                if not entry.result.done():
                    entry.result.set_result(answer._replace(narrowed=entry.query.beam > batch.beam))

    def _take(self) -> _Batch | None:
        """The oldest entry and those behind it that fit; entries nobody waits for, or in vain, are dropped."""
        batch: _Batch | None = None
        kept: deque[_Entry] = deque()
        company = min(len(self._queue), self._max_batch)
        while self._queue and (batch is None or len(batch.entries) < self._max_batch):
            entry = self._queue.popleft()
            if entry.result.done() or not (beam := entry.beam(company)):
                continue
            if batch is None:
                batch = _Batch([entry], beam)
            elif batch.fits(entry, beam):
                batch.entries.append(entry)
            else:
                kept.append(entry)
        self._queue.extendleft(reversed(kept))
        return batch
