"""The batcher: which requests it admits, and which it searches together."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from typing import cast

import pytest

from index_store.errors import StoreUnavailable
from retrieval.query import Answer
from service.errors import ClientGone, DeadlineExceeded, Overloaded
from service.metrics import Metrics
from service.serving.batcher import Batcher, _Entry
from service.serving.pace import Pace
from service.serving.retriever import Retriever
from tests.gated import LONG, GatedRetriever, query, submit, until, with_batcher


def test_requests_that_arrive_during_a_search_are_the_next_batch() -> None:
    """The first request is searched alone and at once."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        first = submit(batcher, gated, query(1))
        await until(gated.started.is_set)
        others = [submit(batcher, gated, query(k)) for k in (2, 3, 4)]
        await until(lambda: len(batcher._queue) == 3)
        gated.gate.set()

        assert [(await task)[0].items[0] for task in (first, *others)] == [1, 2, 3, 4]
        assert gated.batches == [[1], [2, 3, 4]]

    with_batcher(test)


def test_only_queries_that_agree_are_searched_together() -> None:
    """A query with another beam, `rerank` flag or version waits for its own batch, and no query is lost."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        other = GatedRetriever()
        other.gate.set()
        tasks = [submit(batcher, gated, query(1))]
        await until(gated.started.is_set)
        tasks += [submit(batcher, gated, q) for q in (query(2), query(3, beam=9), query(4), query(5, rerank=False))]
        tasks += [submit(batcher, other, query(6)), submit(batcher, gated, query(7, beam=9))]
        await until(lambda: len(batcher._queue) == 6)
        gated.gate.set()

        assert [(await task)[0].items[0] for task in tasks] == [1, 2, 3, 4, 5, 6, 7]
        assert gated.batches == [[1], [2, 4], [3, 7], [5]]
        assert other.batches == [[6]]

    with_batcher(test)


def test_a_batch_is_bounded() -> None:
    """A batch has at most max_batch queries."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        gated.gate.set()
        await submit(batcher, gated, *(query(k) for k in range(7)))

        assert gated.batches == [[0, 1, 2], [3, 4, 5], [6]]

    with_batcher(test, max_batch=3)


def test_a_full_queue_refuses_at_once() -> None:
    """All queries of a request are admitted or none; a smaller request that still has room is admitted."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        first = submit(batcher, gated, query(1))
        await until(gated.started.is_set)
        second = submit(batcher, gated, query(2), query(3))
        await until(lambda: len(batcher._queue) == 2)
        with pytest.raises(Overloaded):
            await batcher.submit(cast("Retriever", gated), [query(4), query(5)], LONG)
        third = submit(batcher, gated, query(6))
        await until(lambda: len(batcher._queue) == 3)
        gated.gate.set()
        await asyncio.gather(first, second, third)

        assert gated.batches == [[1], [2, 3, 6]]

    with_batcher(test, max_queue=3)


def test_a_slow_queue_refuses_though_it_has_room() -> None:
    """While a full batch waits and its oldest query has waited too long, new requests are refused."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        first = submit(batcher, gated, query(1))
        await until(gated.started.is_set)
        assert not batcher.overloaded
        second = submit(batcher, gated, query(2))
        await until(lambda: batcher.overloaded)
        with pytest.raises(Overloaded):
            await batcher.submit(cast("Retriever", gated), [query(3)], LONG)
        gated.gate.set()
        await asyncio.gather(first, second)

        assert not batcher.overloaded
        assert gated.batches == [[1], [2]]

    with_batcher(test, max_batch=1, max_wait=1e-6)


def test_an_empty_queue_takes_anything() -> None:
    """Otherwise a request with more queries than max_queue could never be answered."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        gated.gate.set()

        assert len(await submit(batcher, gated, *(query(k) for k in range(5)))) == 5

    with_batcher(test, max_queue=3)


def test_cancelled_and_expired_requests_are_not_searched() -> None:
    """They leave the queue before their search would begin."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        first = submit(batcher, gated, query(1))
        await until(gated.started.is_set)
        cancelled, expired = submit(batcher, gated, query(2)), submit(batcher, gated, query(3), timeout=0.001)
        last = submit(batcher, gated, query(4))
        await until(lambda: len(batcher._queue) == 3)
        cancelled.cancel()
        with pytest.raises(DeadlineExceeded):
            await expired
        gated.gate.set()
        await asyncio.gather(first, last)

        assert gated.batches == [[1], [4]]

    with_batcher(test)


def test_a_disconnected_client_in_the_queue_is_not_searched() -> None:
    """The ASGI server tells the batcher; no watching task is left behind by a request, dropped or answered."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        hung_up, never = asyncio.Event(), asyncio.Event()

        def watched(k: int, event: asyncio.Event) -> asyncio.Task[list[Answer]]:
            async def gone() -> None:
                await event.wait()

            return asyncio.create_task(batcher.submit(cast("Retriever", gated), [query(k)], LONG, gone))

        first = submit(batcher, gated, query(1))
        await until(gated.started.is_set)
        second, third, fourth = submit(batcher, gated, query(2)), watched(3, hung_up), watched(4, never)
        await until(lambda: len(batcher._queue) == 3)
        tasks = asyncio.all_tasks()
        hung_up.set()
        with pytest.raises(ClientGone):
            await third
        gated.gate.set()
        await asyncio.gather(first, second, fourth)
        await until(lambda: len(asyncio.all_tasks()) == len(tasks) - 6)

        assert gated.batches == [[1], [2, 4]]

    with_batcher(test)


def test_a_request_cancelled_during_its_search_costs_no_other_an_answer() -> None:
    """The other request of its batch is answered, and so is a later one."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        gone, patient = submit(batcher, gated, query(1)), submit(batcher, gated, query(2))
        await until(gated.started.is_set)
        gone.cancel()
        await until(gone.done)
        gated.gate.set()
        async with asyncio.timeout(5):
            assert (await patient)[0].items == [2]
            assert (await submit(batcher, gated, query(3)))[0].items == [3]

        assert gated.batches == [[1, 2], [3]]

    with_batcher(test)


def test_an_error_reaches_exactly_the_requests_of_its_batch() -> None:
    """All requests of the batch get the error; those before and after it are answered."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        first = submit(batcher, gated, query(1))
        await until(gated.started.is_set)
        failing = [submit(batcher, gated, query(k)) for k in (12, 13)]
        await until(lambda: len(batcher._queue) == 2)
        gated.gate.set()
        results = await asyncio.gather(first, *failing, return_exceptions=True)
        after = await submit(batcher, gated, query(5))

        assert [type(result) for result in results] == [list, ValueError, ValueError]
        assert after[0].items == [5]

    with_batcher(test)


def test_a_store_fault_reaches_only_the_request_that_met_it() -> None:
    """If one path list is missing, the other requests of the batch are answered all the same."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        first = submit(batcher, gated, query(1))
        await until(gated.started.is_set)
        together = [submit(batcher, gated, query(k)) for k in (12, 14, 15)]
        await until(lambda: len(batcher._queue) == 3)
        gated.gate.set()
        results = await asyncio.gather(first, *together, return_exceptions=True)

        assert [type(result) for result in results] == [list, list, StoreUnavailable, list]

    with_batcher(test)


def test_a_request_that_has_failed_is_searched_no_further() -> None:
    """A request has three queries and the first fails, so the other two are not searched again."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        gated.gate.set()
        with pytest.raises(StoreUnavailable):
            await submit(batcher, gated, query(14), query(2), query(3))
        await submit(batcher, gated, query(4))

        assert gated.batches == [[14, 2, 3], [14], [4]]

    with_batcher(test)


def test_a_remote_version_that_takes_too_long_is_unavailable() -> None:
    """Most likely the store is slow, so the client may try again; it need not ask for a longer deadline."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        gated.remote = True
        with pytest.raises(StoreUnavailable):
            await submit(batcher, gated, query(1), timeout=0.001)

    with_batcher(test)


def test_a_request_that_would_be_late_gets_a_narrower_beam() -> None:
    """At 1 s a path and two queries, 80 % of 120 s allow 48 paths each, so a beam of 64 is halved."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        gated.pace = Pace(0.0, 0.0, 1.0)
        gated.gate.set()
        async with asyncio.timeout(LONG):
            ((hurried,), (patient,)) = await asyncio.gather(
                submit(batcher, gated, query(1, beam=64), timeout=120.0),
                submit(batcher, gated, query(2, beam=64), timeout=1000.0),
            )
        assert (hurried.narrowed, patient.narrowed) == (True, False)
        assert gated.beams == [[32], [64]]

    with_batcher(test)


def test_a_request_without_time_for_widening_is_not_widened() -> None:
    """At 10 s a path, 4 paths take 40 s and widening to 8, 16 ... 256 takes 5040 s, which is 80 % of 6300 s."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        gated.gate.set()
        for seconds, widened in ((6280.0, False), (6400.0, True)):
            gated.pace = Pace(0.0, 0.0, 10.0)  # a pace learns, so each request has a new one
            await submit(batcher, gated, query(1, beam=4), timeout=seconds)
            assert gated.widen[-1] == [widened]

    with_batcher(test)


def test_an_expired_request_leaves_the_queue() -> None:
    """It is dropped although its caller has not been answered yet; the request behind it is searched."""

    async def test() -> None:
        batcher, gated = Batcher(10, 10, LONG, Metrics()), cast("Retriever", GatedRetriever())
        late, other = (
            _Entry(
                gated, query(k), time.monotonic(), time.monotonic() + left, asyncio.get_running_loop().create_future()
            )
            for k, left in ((1, 0.0), (2, LONG))
        )
        batcher._queue.extend([late, other])

        assert batcher._take() == ([other], [other.query])
        assert not batcher._queue

    asyncio.run(test())


def test_the_items_that_a_batch_reads_are_bounded() -> None:
    """Of three queries of 20,000 items, two fit in 50,000; a query of 60,000 items is searched alone."""

    async def test() -> None:
        batcher, gated = Batcher(10, 10, LONG, Metrics()), cast("Retriever", GatedRetriever())
        for per_path in (4000, 4000, 4000, 12_000):
            future = asyncio.get_running_loop().create_future()
            sized = replace(query(1), per_path=per_path)
            batcher._queue.append(_Entry(gated, sized, time.monotonic(), time.monotonic() + LONG, future))

        assert [len(batcher._take()[0]) for _ in range(4)] == [2, 1, 1, 0]

    asyncio.run(test())


def test_a_lone_short_search_wakes_no_thread() -> None:
    """It runs on the event loop; a long search, or one of several queries, runs in the thread."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        gated.gate.set()
        gated.pace = Pace(0.001, 0.0, 0.0)
        await submit(batcher, gated, query(1))
        await submit(batcher, gated, query(2), query(3))
        gated.pace = Pace(0.1, 0.0, 0.0)
        await submit(batcher, gated, query(4))
        here = threading.get_ident()
        assert [thread == here for thread in gated.threads] == [True, False, False]

    with_batcher(test)


def test_a_search_that_hangs_does_not_keep_the_batcher_running() -> None:
    """The batcher ends while its thread is still searching."""

    async def test() -> None:
        batcher, gated = Batcher(10, 10, LONG, Metrics()), GatedRetriever()
        running = asyncio.create_task(batcher.run())
        request = submit(batcher, gated, query(1))
        await until(gated.started.is_set)
        try:
            running.cancel()
            await asyncio.wait([running])
            assert any(thread.name.startswith("search") for thread in threading.enumerate())
        finally:
            gated.gate.set()
            request.cancel()

    asyncio.run(test())
