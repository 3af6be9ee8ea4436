"""Swaps, restarts of Redis and clients that hang up, for a long time.

`make chaos` runs it for a minute, `make soak` for half an hour.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from index_store.store import IndexStore, open_store
from index_store.version import Version
from tests.chaos.conftest import Goal, amount
from tests.chaos.test_redis_faults import refused_rightly
from tests.chaos.test_swaps import usage, versions
from tests.chaos.traffic import BODIES, Traffic, answers_of
from tests.conftest import Planted
from tests.fleet import Replica, fleet
from tests.http_client import Connection, Reply, post
from tests.redis_servers import RedisServer

SECONDS = int(os.environ.get("DR_SOAK_SECONDS", amount(60, 12)))
RATE = 200  # requests a second to each replica
PARTS = 6  # of the test's time; Redis restarts in each, and the last is compared with the first
SWAP_SECONDS = min(10.0, SECONDS / (4 * PARTS))
RECOVERY_SECONDS = 2.0


def test_soak(goal: Goal, planted: Planted, other: Planted, own: RedisServer, tmp_path: Path) -> None:
    """Promise: soak. A replica with a copy and one that reads Redis get requests at a fixed rate all the time."""
    wanted = versions(planted, other)
    store = open_store(own.url)
    names = _publish(store, wanted)
    expected = dict(zip(names, map(answers_of, wanted), strict=True))
    refused_at: list[float] = []

    def refused(reply: Reply) -> bool:
        refused_at.append(time.monotonic())
        return refused_rightly(reply)

    memory: list[list[float]] = [[], []]
    with (
        fleet(tmp_path / "a", own.url, 1, timeout_ms=10_000) as (resident,),
        fleet(tmp_path / "b", own.url, 1, timeout_ms=10_000, residency="remote", store_timeout_ms=5_000) as (remote,),
    ):
        replicas = [resident, remote]
        with Traffic([replica.port for replica in replicas], RATE, expected):  # warm up
            time.sleep(min(5.0, SECONDS / PARTS))
        with (
            Traffic([resident.port], RATE, expected) as kept,
            Traffic([remote.port], RATE, expected, refused) as read,
            _hanging_up([replica.port for replica in replicas]),
        ):
            swaps, restarts = _live_through(own, store, wanted, names, replicas, memory)
    problems = [*kept.failed, *kept.wrong, *read.failed, *read.wrong]
    unexplained = [at for at in refused_at if not any(begun <= at <= recovered for begun, recovered in restarts)]
    goal(
        f"{SECONDS} s, {swaps} swaps, {PARTS} restarts of an empty Redis, {2 * RATE} requests a second, 1 % of them "
        "aborted: failed, wrong, or refused outside a restart",
        f"{len(problems) + len(unexplained)} of {kept.answered + read.answered + len(refused_at):,}; "
        f"refused in a restart and {RECOVERY_SECONDS:.0f} s after: {len(refused_at) - len(unexplained)}",
        reached=not problems and not unexplained and swaps >= PARTS,
    )
    first, last = (_p99(kept.seconds[part]) for part in _first_and_last(len(kept.seconds)))
    goal(
        "p99 in the last sixth at most 1.2 times that in the first, or 2 ms more",
        f"{last:.1f} ms, {first:.1f}",
        reached=last <= max(1.2 * first, first + 2),
        timing=True,
    )
    if SECONDS < 600:
        return  # too short to judge memory: what is freed late weighs too much
    slopes = [60 * (max(seen[len(seen) // 2 :]) - max(seen[: len(seen) // 2])) / (SECONDS / 2) for seen in memory]
    goal(
        "memory of a replica grows less than 1 MB a minute in the second half",
        ", ".join(f"{slope:.2f} MB" for slope in slopes),
        reached=max(slopes) < 1,
    )


def _publish(store: IndexStore, wanted: list[Version]) -> list[str]:
    names = [store.publish(version) for version in wanted]
    store.activate(names[0])
    return names


def _live_through(
    server: RedisServer,
    store: IndexStore,
    wanted: list[Version],
    names: list[str],
    replicas: list[Replica],
    memory: list[list[float]],
) -> tuple[int, list[tuple[float, float]]]:
    """Swap versions, restart Redis and record the replicas' memory until the time is over.

    Returns the number of swaps, and for each restart when it began and when the replicas must have recovered.
    """
    start, swaps, restarts = time.monotonic(), 0, []
    for part in range(1, PARTS + 1):
        while swaps < 2 * part or time.monotonic() < start + SECONDS * part / PARTS - RECOVERY_SECONDS:
            swaps += 1
            assert replicas[swaps % 2].swap(names[swaps % 3]).status_code == 200
            for seen, replica in zip(memory, replicas, strict=True):
                seen.append(usage(replica)[0])
            time.sleep(SWAP_SECONDS)
        begun = time.monotonic()
        server.stop()
        server.start()
        assert _publish(store, wanted) == names
        while {replica.served() for replica in replicas} != {names[0]} or not _answers(replicas[1]):
            assert time.monotonic() < start + SECONDS + 60
            time.sleep(0.02)
        restarts.append((begun, time.monotonic() + RECOVERY_SECONDS))
    return swaps, restarts


def _answers(replica: Replica) -> bool:
    return all(replica.client.post("/v1/retrieve", json=body).status_code == 200 for body in BODIES)


@contextlib.contextmanager
def _hanging_up(ports: list[int]) -> Iterator[None]:
    """During the context, send one more request for every hundred of the traffic, and hang up on it."""
    stop = threading.Event()

    async def run() -> None:
        loop, number = asyncio.get_running_loop(), 0
        while not stop.is_set():
            await asyncio.sleep(100 / (RATE * len(ports)))
            number += 1
            with contextlib.suppress(OSError):
                connection = (await loop.create_connection(Connection, "127.0.0.1", ports[number % len(ports)]))[1]
                connection.send(post("/v1/retrieve", BODIES[number % len(BODIES)])).cancel()
                await asyncio.sleep(0)
                connection.abort()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _first_and_last(count: int) -> tuple[slice, slice]:
    part = max(1, count // PARTS)
    return slice(0, part), slice(count - part, count)


def _p99(seconds: list[float]) -> float:
    return 1000 * float(np.percentile(seconds, 99))
