"""Clients that disconnect while their request waits in the queue."""

from __future__ import annotations

import asyncio
from random import Random

from service.serving.batcher import Batcher
from tests.gated import GatedRetriever, query, submit, until, with_batcher


def test_disconnected_clients_in_the_queue_are_not_searched() -> None:
    """A random half of a hundred clients leaves during another search; the rest is searched, in order."""
    random = Random(0)

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        first = submit(batcher, gated, query(1))
        await until(gated.started.is_set)
        callers = {k: submit(batcher, gated, *[query(k)] * random.randint(1, 3)) for k in range(100, 200)}
        await until(lambda: {entry.query.k for entry in batcher._queue} == set(callers))
        gone = set(random.sample(sorted(callers), 50))
        for k in gone:
            callers[k].cancel()
        gated.gate.set()
        await asyncio.gather(first, *callers.values(), return_exceptions=True)

        searched = [k for batch in gated.batches for k in batch]
        assert list(dict.fromkeys(searched)) == [1, *(k for k in callers if k not in gone)]
        for k, caller in callers.items():
            assert caller.cancelled() if k in gone else {int(answer.items[0]) for answer in caller.result()} == {k}

    for _ in range(20):
        with_batcher(test, max_queue=1000)


def test_disconnected_clients_make_room_in_the_queue() -> None:
    """A queue full of requests whose clients have gone admits new requests."""

    async def test(batcher: Batcher, gated: GatedRetriever) -> None:
        first = submit(batcher, gated, query(1))
        await until(gated.started.is_set)
        gone = [submit(batcher, gated, query(k)) for k in range(10, 20)]
        await until(lambda: len(batcher._queue) == 10)
        for caller in gone:
            caller.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        others = [submit(batcher, gated, query(k)) for k in range(20, 30)]
        await until(lambda: {entry.query.k for entry in batcher._queue} >= set(range(20, 30)))
        gated.gate.set()
        await asyncio.gather(first, *others)

        assert gated.batches == [[1], list(range(20, 30))]

    with_batcher(test, max_queue=10)
