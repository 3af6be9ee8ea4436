"""Requests at a fixed rate while a test disturbs the service; each answer is compared with the right one."""

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

#: Requests of users of each planted group, with histories of 0 to 3 items.
BODIES: list[dict[str, Any]] = [
    {"history": list(range(group, group + 4 * n, 4)), "k": 5} for group in range(4) for n in range(4)
]


def answers_of(version: Version) -> list[Candidates]:
    """The right answers to BODIES of a service with this version."""
    retriever = Retriever(version)
    return [answer_of(retriever, **body) for body in BODIES]


class Traffic:
    """A context during which a thread sends BODIES in turn, `rate` requests a second over all ports.

    expected: the right answers of each version, see `answers_of`. refusal: whether a reply other than 200 will do.
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
        self.seconds: list[float] = []  # of the right answers, from when each request was due
        self.seen: set[tuple[int, str]] = set()  # port and version of each right answer

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
        """The number of right answers."""
        return len(self.seconds)

    def p99(self) -> float:
        """The p99 of the right answers' times, in milliseconds."""
        return 1000 * float(np.percentile(self.seconds, 99))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pools = [Pool(port) for port in self._ports]
        requests = [post("/v1/retrieve", body) for body in BODIES]
        tasks: set[asyncio.Task[None]] = set()
        start, number = loop.time(), 0
        while not self._stop.is_set():
            due = start + number / self._rate
            if (wait := due - loop.time()) > 0:  # timers are precise to a millisecond
                await asyncio.sleep(wait - 0.001 if wait > 0.002 else 0)
                continue
            index = number % len(BODIES)
            # Another port each round, so that every body is sent to every port.
            pool = pools[(number + number // len(BODIES)) % len(pools)]
            task = asyncio.ensure_future(self._ask(pool, requests[index], index, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        await asyncio.gather(*tasks)
        for pool in pools:
            pool.close()

    async def _ask(self, pool: Pool, request: bytes, index: int, due: float) -> None:
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
            if same(answer["candidates"], self._expected[answer["version"]][index]):
                self.seconds.append(seconds)
                self.seen.add((pool.port, answer["version"]))
            else:
                self.wrong.append(reply.body.decode())
        except (OSError, TimeoutError) as error:
            self.failed.append(repr(error))
        except Exception as error:  # noqa: BLE001 -- not a valid answer
            self.wrong.append(repr(error))
