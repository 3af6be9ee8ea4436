"""Admission and batching without a timer: a batch is whatever queued while the last one was searched.

A lone request waits for nothing, not even a thread; under load batches fill by themselves. The queue is bounded: full
means refused. Who would probably be answered too late is searched with a narrower beam, by measured pace.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from index_store.errors import IndexStoreError, StoreUnavailable
from retrieval.paths.search import Answer, Query
from retrieval.query import Limits
from service.errors import ClientGone, DeadlineExceeded, Overloaded
from service.metrics import Metrics
from service.serving.retriever import Retriever

log = logging.getLogger(__name__)

#: A lone search that takes no longer is done at once: to wake a thread and be woken by it may take as long.
AT_ONCE_SECONDS = 0.002
#: A batch takes a tenth of it; what takes longer may never end.
STUCK_SECONDS = 1.5
#: Where a query reads no more items, its time is that of its paths; others are neither done at once nor learned from.
LIGHT_READS = 5000


@dataclass(frozen=True)
class _Entry:
    retriever: Retriever
    query: Query
    since: float  # of time.monotonic
    deadline: float
    result: asyncio.Future[Answer]

    @property
    def left(self) -> float:
        """Seconds until its deadline; none if nobody waits for it any more."""
        return 0.0 if self.result.done() else self.deadline - time.monotonic()

    @property
    def reads(self) -> int:
        """Items that it reads at most."""
        return self.query.beam * self.query.per_path

    def fits(self, other: _Entry) -> bool:
        """Whether the two can be searched together: one version, one beam width, one score."""
        return (
            self.retriever is other.retriever
            and self.query.beam == other.query.beam
            and self.query.rerank == other.query.rerank
        )

    def in_time(self, company: int) -> Query:
        """The query among so many: with a narrower beam, or without widening it, where there is no time for more."""
        pace, query = self.retriever.pace, self.query
        beam = pace.affordable(company, query.beam, self.left)
        if beam < query.beam:
            return replace(query, beam=beam, widen=False)
        # All that widening may search is less than twice the widest beam, and few queries need it.
        widest = 2 * self.retriever.manifest.max_beam
        afterwards = self.left - pace.seconds(company, beam)
        if query.widen and pace.affordable(1, widest, afterwards) < widest:
            return replace(query, widen=False)
        return query


class Batcher:
    """Searches a batch at a time, in a thread unless it is one short search. `run` is a task; cancel it to stop."""

    def __init__(
        self, max_queue: int, max_batch: int, max_wait: float, metrics: Metrics, longest_search: float = STUCK_SECONDS
    ) -> None:
        self._queue: deque[_Entry] = deque()
        self._arrived = asyncio.Event()
        self._max_queue, self._max_batch, self._max_wait = max_queue, max_batch, max_wait
        self._metrics, self._longest_search = metrics, longest_search
        self._searching_since: float | None = None

    @property
    def full(self) -> bool:
        """Whether one query more would be refused: too many are waiting, or a batch is and its first has too long.

        By count alone, a machine slower than expected would admit more than it can answer in time.
        """
        if len(self._queue) < min(self._max_batch, self._max_queue):
            return False
        return len(self._queue) >= self._max_queue or time.monotonic() > self._queue[0].since + self._max_wait

    @property
    def stuck(self) -> bool:
        """Whether no answer is to be expected: a search has lasted longer than any should."""
        since = self._searching_since
        return since is not None and time.monotonic() > since + self._longest_search

    async def submit(
        self,
        retriever: Retriever,
        queries: list[Query],
        timeout: float,
        gone: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> list[Answer]:
        """The answers of `queries`, in their order. All or none are admitted.

        gone: returns when nobody waits for the answer any more. Raises Overloaded when the queue has no room or time
        for them, DeadlineExceeded after `timeout` seconds, ClientGone when nobody waits. Who stops waiting
        leaves the queue, and costs nothing if not yet searched.
        """
        # Into an empty queue anything goes, or a large request could never be answered.
        if self.full or (self._queue and len(self._queue) + len(queries) > self._max_queue):
            raise Overloaded("too many requests are waiting; try again later, or fewer at once")
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        entries = [_Entry(retriever, query, now, now + timeout, loop.create_future()) for query in queries]
        # To hear of a client that hangs up takes a task: worth it for who will wait.
        waits = self._searching_since is not None or self._queue or len(queries) > 1
        watch = loop.create_task(self._cancel_after(gone(), entries)) if gone and waits else None
        self._queue.extend(entries)
        self._arrived.set()
        try:
            async with asyncio.timeout(timeout):
                return [await entry.result for entry in entries]
        except TimeoutError:
            if retriever.remote:  # most likely for the store: there is more hope later than with another deadline
                self._metrics.store_faults.inc()
                raise StoreUnavailable("the path lists were not read within the request's timeout_ms") from None
            raise DeadlineExceeded("no answer within the request's timeout_ms") from None
        except asyncio.CancelledError:
            if watch and watch.done():
                raise ClientGone from None
            raise
        except IndexStoreError:  # counted here, where each request comes by once, and not who has gone
            self._metrics.store_faults.inc()
            raise
        finally:
            if watch:
                watch.cancel()
            left = [entry.result.cancel() or entry.result.cancelled() for entry in entries]
            if any(left):
                self._queue = deque(entry for entry in self._queue if not entry.result.done())
            # What was raised names this frame; if that named what was raised, an old version would stay in memory.
            del entries

    async def _cancel_after(self, gone: Coroutine[Any, Any, None], entries: list[_Entry]) -> None:
        await gone
        for entry in entries:
            entry.result.cancel()

    async def run(self) -> None:
        """Search batches until cancelled."""
        thread = ThreadPoolExecutor(1, "search")
        try:
            while True:
                await self._arrived.wait()
                try:
                    entries, queries = self._take()
                except Exception as error:  # a fault of our own: who waits is told, who comes later is searched
                    log.exception("the queue is emptied")
                    _tell(self._queue, error)
                    self._queue.clear()
                    self._arrived.clear()
                    continue
                if entries:
                    self._metrics.batch_size.observe(len(entries))
                    await self._search(entries, queries, thread)
                    self._searching_since = None
                else:
                    self._arrived.clear()
                del entries, queries  # or an idle process would keep an old version alive
        finally:
            thread.shutdown(wait=False)  # a search that hangs keeps nobody from tidying up

    async def _search(self, entries: list[_Entry], queries: list[Query], thread: ThreadPoolExecutor) -> None:
        """Answer every entry, or tell it what went wrong."""
        retriever, beam = entries[0].retriever, queries[0].beam
        light = max(entry.reads for entry in entries) <= LIGHT_READS
        alone = len(queries) == 1 and not self._queue and not retriever.remote
        found: list[Answer] = []
        self._searching_since = started = time.monotonic()
        try:
            if alone and light and retriever.pace.seconds(1, beam) <= AT_ONCE_SECONDS:
                found = retriever.answer([replace(queries[0], widen=False)])
                retriever.pace.learn(1, beam, time.monotonic() - started)
            if not found or (queries[0].widen and len(found[0].items) < queries[0].k):
                started = time.monotonic()
                found = await asyncio.get_running_loop().run_in_executor(thread, retriever.answer, queries)
                if light and all(answer.paths <= beam for answer in found):  # none was widened
                    retriever.pace.learn(len(queries), beam, time.monotonic() - started)
        except Exception as error:  # noqa: BLE001 -- whatever it is, every waiter is told
            if isinstance(error, IndexStoreError) and len(queries) > 1:
                # One path list may be at fault, and then only who needs it goes without an answer.
                await self._search_each(entries, queries, thread)
            else:
                _tell(entries, error)
        else:
            for entry, answer in zip(entries, found, strict=True):
                if not entry.result.done():
                    entry.result.set_result(answer._replace(narrowed=beam < entry.query.beam))
        finally:
            del entries, queries, retriever  # as in `submit`

    async def _search_each(self, entries: list[_Entry], queries: list[Query], thread: ThreadPoolExecutor) -> None:
        for entry, query in zip(entries, queries, strict=True):
            await asyncio.sleep(0)  # who was told of a fault just now may have been waiting for this one too
            if entry.left > 0:
                await self._search([entry], [query], thread)

    def _take(self) -> tuple[list[_Entry], list[Query]]:
        """The oldest entry and those behind it that fit, and how they are searched; who is too late leaves the queue.

        No more than may read Limits.READS together, but for one that may alone: nothing else runs meanwhile.
        """
        self._queue = deque(entry for entry in self._queue if entry.left > 0)
        alike: list[_Entry] = []
        reads = 0
        for entry in self._queue:
            if alike and not entry.fits(alike[0]):
                continue
            reads += entry.reads
            if len(alike) == self._max_batch or (alike and reads > Limits.READS):
                break
            alike.append(entry)
        planned = [entry.in_time(len(alike)) for entry in alike]
        taken = [(entry, query) for entry, query in zip(alike, planned, strict=True) if query.beam == planned[0].beam]
        searched = {id(entry) for entry, _ in taken}
        self._queue = deque(entry for entry in self._queue if id(entry) not in searched)
        return [entry for entry, _ in taken], [query for _, query in taken]


def _tell(entries: Iterable[_Entry], error: Exception) -> None:
    for entry in entries:
        if not entry.result.done():
            entry.result.set_exception(error)
