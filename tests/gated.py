"""A batcher with a fake retriever: its answers are known, and the test sets its pace and when a search ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from index_store.errors import StoreUnavailable
from retrieval.query import Answer, Query
from service.metrics import Metrics
from service.serving.batcher import Batcher
from service.serving.pace import Pace
from service.serving.retriever import Retriever

NOTHING = np.empty(0, np.int64)
LONG = 30.0  # seconds; no test that passes waits that long


def query(k: int, beam: int = 5, *, rerank: bool = True) -> Query:
    """A query that a test recognises by its k."""
    return Query(NOTHING, [], [], k, beam, 1, NOTHING, rerank)


class GatedRetriever:
    """Answers query k with item k, and k = 13 and 14 with an error; each batch waits until the gate is open."""

    remote = False
    max_beam = 256

    def __init__(self) -> None:
        self.searcher = SimpleNamespace(answer_once=self.answer_once, can_widen=lambda *_: False)
        self.pace = Pace(0.1, 0.0, 0.0)  # 0.1 s a search: too long for the event loop
        self.gate = threading.Event()
        self.started = threading.Event()
        self.threads: list[int] = []
        self.batches: list[list[int]] = []
        self.beams: list[list[int]] = []
        self.widen: list[list[bool]] = []

    def answer_once(self, queries: Sequence[Query]) -> list[Answer]:
        """Search one batch."""
        self.threads.append(threading.get_ident())
        self.batches.append([q.k for q in queries])
        self.beams.append([q.beam for q in queries])
        self.widen.append([q.widen for q in queries])
        self.started.set()
        assert self.gate.wait(LONG)
        if any(q.k == 13 for q in queries):
            raise ValueError("thirteen")
        if any(q.k == 14 for q in queries):
            raise StoreUnavailable("a list is missing")
        nothing = NOTHING.astype(np.float32)
        return [Answer(np.array([q.k]), nothing, nothing, False, 0, 0, 0) for q in queries]


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until `condition` holds."""
    async with asyncio.timeout(LONG):
        while not condition():
            await asyncio.sleep(0)


def with_batcher(
    test: Callable[[Batcher, GatedRetriever], Coroutine[Any, Any, None]],
    *,
    max_queue: int = 100,
    max_batch: int = 100,
    max_wait: float = LONG,
) -> None:
    """Run `test` beside a running batcher."""

    async def run() -> None:
        batcher, gated = Batcher(max_queue, max_batch, max_wait, Metrics()), GatedRetriever()
        task = asyncio.create_task(batcher.run())
        try:
            await test(batcher, gated)
        finally:
            gated.gate.set()
            task.cancel()

    asyncio.run(run())


def submit(
    batcher: Batcher, gated: GatedRetriever, *queries: Query, timeout: float = LONG
) -> asyncio.Task[list[Answer]]:
    """Submit a request in a task of its own."""
    return asyncio.create_task(batcher.submit(cast("Retriever", gated), list(queries), timeout))
