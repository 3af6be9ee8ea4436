"""Replicas as users run them: dr-service processes on free ports, reached over HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from retrieval.query import Query, Request
from service.serving.retriever import Retriever
from tests.redis_servers import free_port

BIN = Path(sys.executable).parent
TOKEN = "a-token-of-the-tests"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
Candidates = list[dict[str, Any]]


class Replica:
    """One dr-service with its own port and log file."""

    def __init__(self, folder: Path, store: str, **settings: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._log = folder / "log"
        values = {"store": store, "port": self.port, "admin_token": TOKEN, "cache": folder.parent / "cache"}
        values |= {"drain_seconds": 0} | settings
        self._environment = os.environ | {f"DR_{name.upper()}": str(value) for name, value in values.items()}
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=self.address, trust_env=False, timeout=30, headers=ADMIN)

    def start(self) -> None:
        """Start the process; it may not be ready yet."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen([BIN / "dr-service"], env=self._environment, stderr=log, stdout=log)

    def wait_until(self, route: str, status: int = 200, seconds: float = 60) -> None:
        """Return once `route` answers `status`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process
            assert self.process.poll() is None, self.log()
            try:
                if self.client.get(route).status_code == status:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"{route} did not answer {status} within {seconds} s: {self.log()}")

    def served(self) -> str:
        """The name of the version that the replica serves."""
        version: str = self.client.get("/v1/info").json()["version"]
        return version

    def swap(self, version: str, **more: str) -> httpx.Response:
        """POST /admin/v1/swap."""
        return self.client.post("/admin/v1/swap", json={"version": version, **more})

    def log(self) -> str:
        """Everything that the replica has logged."""
        return self._log.read_text()

    def stop(self) -> None:
        """End the process without draining; kill it if it has not ended after 20 s."""
        self.client.close()
        if self.process:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextmanager
def fleet(folder: Path, store: str, count: int = 2, **settings: object) -> Iterator[list[Replica]]:
    """Start replicas that share a store and a cache folder, and wait until all are ready."""
    with ExitStack() as stack:
        replicas = [Replica(folder / str(i), store, **settings) for i in range(count)]
        for replica in replicas:
            stack.callback(replica.stop)
            replica.start()
        for replica in replicas:
            replica.wait_until("/readyz")
        yield replicas


async def open_loop(rate: float, seconds: float, ask: Callable[[int], Awaitable[Any]]) -> list[Any]:
    """Call `ask(number)` at a fixed rate, whether or not earlier calls have returned; gives what each call returned.

    A client that waits for an answer before it asks again would leave out exactly the requests that would have waited.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    tasks = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - loop.time()))
        tasks.append(asyncio.ensure_future(ask(number)))
    return list(await asyncio.gather(*tasks))


def query_of(retriever: Retriever, history: Sequence[Any], k: int | None = None, exclude: Sequence[Any] = ()) -> Query:
    """The query that the service searches for a request with these fields and defaults for all others."""
    query, _ = retriever.searcher.prepare(Request(history, k=k, exclude=exclude))
    return query


def answer_of(retriever: Retriever, **fields: Any) -> Candidates:
    """The oracle: what a service of this version must answer to a request with these fields, searched alone."""
    (answer,) = retriever.searcher.answer([query_of(retriever, **fields)])
    rows = zip(
        retriever.searcher.vocabulary.names(answer.items),
        answer.scores.tolist(),
        answer.path_log_probs.tolist(),
        strict=True,
    )
    return [{"item_id": item, "score": score, "path_log_prob": log_prob} for item, score, log_prob in rows]


def same(answered: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> bool:
    """Whether two lists of candidates agree: the same items in the same order, with nearly equal scores."""
    return [c["item_id"] for c in answered] == [c["item_id"] for c in expected] and all(
        abs(a["score"] - b["score"]) < 1e-4 and abs(a["path_log_prob"] - b["path_log_prob"]) < 1e-4
        for a, b in zip(answered, expected, strict=True)
    )
