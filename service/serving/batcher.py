"""Admission and batching without a timer: the next batch is whatever queued while the last one was searched.

A lone request waits for nothing, not even a thread; under load batches fill by themselves. The queue is bounded: when
it is full, requests are refused. A request predicted to miss its deadline gets half its beam, a quarter, and so on,
until the search fits; `Pace` predicts, from what searches took.
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
from retrieval.query import Answer, Limits, Query
from service.errors import ClientGone, DeadlineExceeded, Overloaded
from service.metrics import Metrics
from service.serving.retriever import Retriever

log = logging.getLogger(__name__)

#: A lone search that takes no longer is done on the event loop: to wake a thread and be woken by it may take as long.
AT_ONCE_SECONDS = 0.002
#: A search that takes longer counts as hung; a batch takes a tenth of it.
STUCK_SECONDS = 1.5
#: Up to so many items a query's time depends on its paths alone. A query that reads more is never searched on the event
#: loop, and its time is not learned from.
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
        """Seconds until its deadline; 0 if nobody waits for the result any more."""
        return 0.0 if self.result.done() else self.deadline - time.monotonic()

    def fits(self, other: _Entry) -> bool:
        """Whether the two can be searched together: the same version, beam and order of candidates."""
        return (
            self.retriever is other.retriever
            and self.query.beam == other.query.beam
            and self.query.rerank == other.query.rerank
        )

    def in_time(self, batch: int) -> Query:
        """The query in a batch of that size: with a narrower beam, or without widening, if time is short."""
        pace, query = self.retriever.pace, self.query
        beam = pace.affordable(batch, query.beam, self.left)
        if beam < query.beam:
            return replace(query, beam=beam, widen=False)
        # Over all doublings a query searches fewer paths than twice the widest beam. Time is kept for one query of the
        # batch, since few need widening.
        widest = 2 * self.retriever.max_beam
        afterwards = self.left - pace.seconds(batch, beam)
        if query.widen and pace.affordable(1, widest, afterwards) < widest:
            return replace(query, widen=False)
        return query


class Batcher:
    """Searches one batch at a time, in a thread unless it is one short search. `run` is a task; cancel it to stop."""

    def __init__(
        self, max_queue: int, max_batch: int, max_wait: float, metrics: Metrics, longest_search: float = STUCK_SECONDS
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
        """Whether the next query is refused: the queue is full, or a batch waits and its oldest longer than max_wait.

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

        gone: returns when the client has hung up. Raises Overloaded when the queue has no room or no time for them,
        DeadlineExceeded after `timeout` seconds, ClientGone when the client has hung up. A request whose caller
        has gone is removed from the queue without being searched.
        """
        # An empty queue admits any request, or a large one could never be answered.
        if self.overloaded or (self._queue and len(self._queue) + len(queries) > self._max_queue):
            raise Overloaded("too many requests are waiting; try again later, or fewer at once")
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        entries = [_Entry(retriever, query, now, now + timeout, loop.create_future()) for query in queries]
        # To hear of a client that hangs up takes a task, which is worth it only for a request that has to wait.
        waits = self._searching_since is not None or self._queue or len(queries) > 1
        watch = loop.create_task(self._cancel_after(gone(), entries)) if gone and waits else None
        self._queue.extend(entries)
        self._arrived.set()
        try:
            async with asyncio.timeout(timeout):
                return [await entry.result for entry in entries]
        except TimeoutError:
            if retriever.remote:  # most likely the store is slow: try again later rather than with another deadline
                self._metrics.store_faults.inc()
                raise StoreUnavailable("the path lists were not read within the request's timeout_ms") from None
            raise DeadlineExceeded("no answer within the request's timeout_ms") from None
        except asyncio.CancelledError:
            if watch and watch.done():
                raise ClientGone from None
            raise
        except IndexStoreError:  # counted here, where each request passes once, and only if its client still waits
            self._metrics.store_faults.inc()
            raise
        finally:
            if watch:
                watch.cancel()
            left = [entry.result.cancel() or entry.result.cancelled() for entry in entries]
            if any(left):
                self._queue = deque(entry for entry in self._queue if not entry.result.done())
            # The exception refers to this frame; if the frame referred to it, an old version would stay in memory.
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
                except Exception as error:  # a bug of ours: the waiting requests fail, later ones are searched
                    log.exception("the queue is emptied")
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
                del entries, queries  # or an idle process would keep an old version alive
        finally:
            thread.shutdown(wait=False)  # a search that hangs must not keep the process from ending

    async def _search(self, entries: list[_Entry], queries: list[Query], thread: ThreadPoolExecutor) -> None:
        """Give every entry its answer or its error."""
        beam = queries[0].beam
        self._searching_since = time.monotonic()
        try:
            answers = await self._answers(entries[0].retriever, queries, thread)
        except Exception as error:  # noqa: BLE001 -- whatever it is, every waiting request gets it
            if isinstance(error, IndexStoreError) and len(queries) > 1:
                # One path list may be at fault, and then only the requests that need it go without an answer.
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
        """Search once, then search those wider that are short. A lone light query is searched on the event loop first.

        The pace is learned from the first search alone: it is of `beam` paths.
        """
        searcher, pace, beam = retriever.searcher, retriever.pace, queries[0].beam
        light = max(query.reads for query in queries) <= LIGHT_READS
        alone = len(queries) == 1 and not self._queue and not retriever.remote
        in_thread = asyncio.get_running_loop().run_in_executor

        started = time.monotonic()
        if alone and light and pace.seconds(1, beam) <= AT_ONCE_SECONDS:
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
            await asyncio.sleep(0)  # another query of the same request may just have failed
            if entry.left > 0:
                await self._search([entry], [query], thread)

    def _take(self) -> tuple[list[_Entry], list[Query]]:
        """The oldest entry and those behind it that fit, with their queries; expired entries leave the queue.

        Together they may read Limits.READS items, because nothing else is searched meanwhile; one alone may read more.
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
