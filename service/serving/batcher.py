"""Admission and batching without a timer: requests that arrive during one search form the next batch.

A request that is alone is searched at once, usually without a thread; under load, batches become larger. The queue is
bounded: when the queue is full, requests are refused. A request that is predicted to miss its deadline gets half its
beam, a quarter, and so on, until the search fits. `Pace` makes the prediction from the times of earlier searches.
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
from retrieval.query import Answer, Limits, Query, wider_beams
from service.errors import ClientGone, DeadlineExceeded, Overloaded
from service.metrics import Metrics
from service.serving.retriever import Retriever

log = logging.getLogger(__name__)

#: A single query that is predicted to take at most this time is searched on the event loop. To pass the search to a
#: thread and the answer back could take the same time again.
ON_LOOP_SECONDS = 0.002
#: A search that takes longer than this counts as hung. A batch takes about a tenth of this time.
HUNG_SECONDS = 1.5
#: The search time of a query that reads at most this many items depends on the number of paths alone. A query that
#: reads more items is never searched on the event loop, and `Pace` does not learn from its time.
LIGHT_READS = 5000


@dataclass(frozen=True)
class _Entry:
    retriever: Retriever
    query: Query
    since: float  # when the query was queued, by time.monotonic
    deadline: float
    result: asyncio.Future[Answer]

    @property
    def left(self) -> float:
        """Seconds until the deadline; 0 if nobody waits for the result any more."""
        return 0.0 if self.result.done() else self.deadline - time.monotonic()

    def fits(self, other: _Entry) -> bool:
        """Whether two entries can be searched together: the same version, beam and order of candidates."""
        return (
            self.retriever is other.retriever
            and self.query.beam == other.query.beam
            and self.query.rerank == other.query.rerank
        )

    def in_time(self, batch: int) -> Query:
        """The query for a batch of this size. If time is short, its beam is narrowed or it may not be widened."""
        pace, query = self.retriever.pace, self.query
        beam = pace.affordable(batch, query.beam, self.left)
        if beam < query.beam:
            return replace(query, beam=beam, widen=False)
        # A query may be widened only if the paths of all its wider searches fit in the time that the first search
        # leaves. One query of the batch is counted, because few queries need widening.
        paths = sum(wider_beams(beam, self.retriever.max_beam))
        afterwards = self.left - pace.seconds(batch, beam)
        if query.widen and pace.affordable(1, paths, afterwards) < paths:
            return replace(query, widen=False)
        return query


class Batcher:
    """Searches one batch at a time, in a thread unless the batch is a single short query.

    Start `run` as a task, and cancel the task to stop.
    """

    def __init__(
        self, max_queue: int, max_batch: int, max_wait: float, metrics: Metrics, longest_search: float = HUNG_SECONDS
    ) -> None:
        self._queue: deque[_Entry] = deque()
        self._arrived = asyncio.Event()
        self._max_queue, self._max_batch, self._max_wait = max_queue, max_batch, max_wait
        self._metrics, self._longest_search = metrics, longest_search
        self._searching_since: float | None = None

    @property
    def waiting(self) -> int:
        """How many queries are in the queue."""
        return len(self._queue)

    @property
    def overloaded(self) -> bool:
        """Whether the next query is refused.

        It is refused if the queue is full, or if a full batch waits and its oldest query has waited longer than
        max_wait. If only the number of queries counted, a slow machine would admit more than it can answer in time.
        """
        if len(self._queue) < min(self._max_batch, self._max_queue):
            return False
        return len(self._queue) >= self._max_queue or time.monotonic() > self._queue[0].since + self._max_wait

    @property
    def hung(self) -> bool:
        """Whether a search hangs: the running search has lasted longer than `longest_search`."""
        since = self._searching_since
        return since is not None and time.monotonic() > since + self._longest_search

    async def submit(
        self,
        retriever: Retriever,
        queries: list[Query],
        timeout: float,
        gone: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> list[Answer]:
        """Return the answers to `queries`, in the same order. Either all queries are admitted or none.

        gone: returns when the client has hung up. Raises Overloaded if the queries have no room in the queue or would
        wait too long, ClientGone when the client has hung up, and after `timeout` seconds DeadlineExceeded, or
        StoreUnavailable if path lists are remote. Queries of a client that has hung up are dropped without a search.
        """
        # An empty queue admits a request with any number of queries. Otherwise a large request could never be answered.
        if self.overloaded or (self._queue and len(self._queue) + len(queries) > self._max_queue):
            raise Overloaded("too many requests are waiting; try again later, or fewer at once")
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        entries = [_Entry(retriever, query, now, now + timeout, loop.create_future()) for query in queries]
        # A task is needed to notice that a client hangs up. It is worth its cost only for a request that has to wait.
        waits = self._searching_since is not None or self._queue or len(queries) > 1
        watch = loop.create_task(self._cancel_after(gone(), entries)) if gone and waits else None
        self._queue.extend(entries)
        self._arrived.set()
        try:
            async with asyncio.timeout(timeout):
                return [await entry.result for entry in entries]
        except TimeoutError:
            if retriever.remote:  # probably the store is slow: a later try helps more than a longer deadline
                self._metrics.store_faults.inc()
                raise StoreUnavailable("the path lists were not read within the request's timeout_ms") from None
            raise DeadlineExceeded("no answer within the request's timeout_ms") from None
        except asyncio.CancelledError:
            if watch and watch.done():
                raise ClientGone from None
            raise
        except IndexStoreError:  # counted here: each request comes here once, and only if its client still waits
            self._metrics.store_faults.inc()
            raise
        finally:
            if watch:
                watch.cancel()
            left = [entry.result.cancel() or entry.result.cancelled() for entry in entries]
            if any(left):
                self._queue = deque(entry for entry in self._queue if not entry.result.done())
            # The exception refers to this frame. If the frame also referred to the exception, through the entries, the
            # cycle would keep an old version in memory until the next garbage collection.
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
                except Exception as error:  # a bug: the waiting requests fail, later requests are searched
                    log.exception("a batch could not be taken from the queue; all waiting requests fail")
                    _fail(self._queue, error)
                    self._queue.clear()
                    self._arrived.clear()
                    continue
                if entries:
                    self._metrics.batch_size.observe(len(entries))
                    await self._search(entries, queries, thread)
                    self._searching_since = None
                else:
                    self._arrived.clear()
                del entries, queries  # otherwise an idle process would keep an old version in memory
        finally:
            thread.shutdown(wait=False)  # a search that hangs must not keep the process from ending

    async def _search(self, entries: list[_Entry], queries: list[Query], thread: ThreadPoolExecutor) -> None:
        """Give every entry its answer or its error."""
        beam = queries[0].beam
        self._searching_since = time.monotonic()
        try:
            answers = await self._answers(entries[0].retriever, queries, thread)
        except Exception as error:  # noqa: BLE001 -- every waiting request gets the error
            if isinstance(error, IndexStoreError) and len(queries) > 1:
                # One path list may be the cause. Searched one by one, only the queries that need this list fail.
                await self._search_each(entries, queries, thread)
            else:
                _fail(entries, error)
        else:
            for entry, answer in zip(entries, answers, strict=True):
                if not entry.result.done():
                    entry.result.set_result(answer._replace(narrowed=beam < entry.query.beam))
        finally:
            del entries, queries  # as in `submit`

    async def _answers(self, retriever: Retriever, queries: list[Query], thread: ThreadPoolExecutor) -> list[Answer]:
        """Search all queries once, then search wider for those with a short answer.

        The first search of a single query runs on the event loop if it is fast. `Pace` learns only from the first
        search, because later searches have wider beams.
        """
        searcher, pace, beam = retriever.searcher, retriever.pace, queries[0].beam
        light = max(query.reads for query in queries) <= LIGHT_READS
        alone = len(queries) == 1 and not self._queue and not retriever.remote
        in_thread = asyncio.get_running_loop().run_in_executor

        started = time.monotonic()
        if alone and light and pace.seconds(1, beam) <= ON_LOOP_SECONDS:
            answers = searcher.answer_once(queries)
        else:
            answers = await in_thread(thread, searcher.answer_once, queries)
        if light:
            pace.learn(len(queries), beam, time.monotonic() - started)
        if any(searcher.can_widen(query, answer) for query, answer in zip(queries, answers, strict=True)):
            answers = await in_thread(thread, searcher.widen, queries, answers)
        return answers

    async def _search_each(self, entries: list[_Entry], queries: list[Query], thread: ThreadPoolExecutor) -> None:
        for entry, query in zip(entries, queries, strict=True):
            await asyncio.sleep(0)  # lets `submit` cancel this query if another query of its request has just failed
            if entry.left > 0:
                await self._search([entry], [query], thread)

    def _take(self) -> tuple[list[_Entry], list[Query]]:
        """Remove the next batch from the queue: the oldest entry and others that fit it. Also drop expired entries.

        Returns the entries and their queries. A batch reads at most Limits.READS items, because it blocks all other
        searches until it ends.
        """
        self._queue = deque(entry for entry in self._queue if entry.left > 0)
        alike: list[_Entry] = []
        reads = 0
        for entry in self._queue:
            if alike and not entry.fits(alike[0]):
                continue
            reads += entry.query.reads
            if len(alike) == self._max_batch or (alike and reads > Limits.READS):
                break
            alike.append(entry)
        planned = [entry.in_time(len(alike)) for entry in alike]
        taken = [(entry, query) for entry, query in zip(alike, planned, strict=True) if query.beam == planned[0].beam]
        searched = {id(entry) for entry, _ in taken}
        self._queue = deque(entry for entry in self._queue if id(entry) not in searched)
        return [entry for entry, _ in taken], [query for _, query in taken]


def _fail(entries: Iterable[_Entry], error: Exception) -> None:
    for entry in entries:
        if not entry.result.done():
            entry.result.set_exception(error)
