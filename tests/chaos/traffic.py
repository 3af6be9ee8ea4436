"""Requests at a fixed rate while something is done to the service, each answer held against what it must be."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from index_store.version import Version
from service.serving.retriever import Retriever
from tests.fleet import Candidates, answer_of, same
from tests.http_client import Pool, Reply, post

#: Seconds after which a request counts as failed: longer than any deadline.
PATIENCE = 60.0

#: Users of each planted group, with short and long histories.
BODIES: list[dict[str, Any]] = [
    {"history": list(range(group, group + 4 * n, 4)), "k": 5} for group in range(4) for n in range(4)
]


def answers_of(version: Version) -> list[Candidates]:
    """What a service of this version must answer to BODIES."""
    retriever = Retriever(version)
    return [answer_of(retriever, **body) for body in BODIES]


class Traffic:
    """A context in which BODIES are asked in turn, `rate` a second over all ports, from a thread of its own.

    expected: by version, see `answers_of`. refusal: whether a reply that is no answer will do.
    """

    def __init__(
        self,
        ports: Sequence[int],
        rate: float,
        expected: Mapping[str, list[Candidates]],
        refusal: Callable[[Reply], bool] = lambda _: False,
    ) -> None:
        self._ports, self._rate, self._expected, self._refusal = ports, rate, expected, refusal
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.failed: list[str] = []
        self.wrong: list[str] = []
        self.refused: list[Reply] = []
        self.seconds: list[float] = []  # of the answers, from when they were due
        self.seen: set[tuple[int, str]] = set()  # port and version

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        assert kind or self.seconds or self.refused or self.failed or self.wrong, "nothing was asked"
        for problem in (self.failed + self.wrong)[:4]:
            print(problem)

    @property
    def answered(self) -> int:
        """How many right answers there were."""
        return len(self.seconds)

    def p99(self) -> float:
        """Of the answers, in milliseconds."""
        return 1000 * float(np.percentile(self.seconds, 99))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pools = [Pool(port) for port in self._ports]
        requests = [post("/v1/retrieve", body) for body in BODIES]
        tasks: set[asyncio.Task[None]] = set()
        start, number = loop.time(), 0
        while not self._stop.is_set():
            due = start + number / self._rate
            if (wait := due - loop.time()) > 0:  # timers are of whole milliseconds
                await asyncio.sleep(wait - 0.001 if wait > 0.002 else 0)
                continue
            place = number % len(BODIES)
            # Another port each round, so that each body goes to all of them.
            pool = pools[(number + number // len(BODIES)) % len(pools)]
            task = asyncio.ensure_future(self._ask(pool, requests[place], place, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        await asyncio.gather(*tasks)
        for pool in pools:
            pool.close()

    async def _ask(self, pool: Pool, request: bytes, place: int, due: float) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                reply = await pool.ask(request)
            seconds = asyncio.get_running_loop().time() - due
            if reply.status != 200:
                if self._refusal(reply):
                    self.refused.append(reply._replace(seconds=seconds))
                else:
                    self.failed.append(str(reply))
                return
            answer = json.loads(reply.body)
            if same(answer["candidates"], self._expected[answer["version"]][place]):
                self.seconds.append(seconds)
                self.seen.add((pool.port, answer["version"]))
            else:
                self.wrong.append(reply.body.decode())
        except (OSError, TimeoutError) as error:
            self.failed.append(repr(error))
        except Exception as error:  # noqa: BLE001 -- an answer that is none
            self.wrong.append(repr(error))
