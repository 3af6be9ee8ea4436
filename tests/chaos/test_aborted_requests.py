"""Clients that hang up at any moment."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from index_store.redis.client import CONNECTIONS
from index_store.store import open_store
from service.serving.retriever import Retriever
from tests.chaos.conftest import Goal, amount
from tests.conftest import Planted
from tests.delay_proxy import delay_proxy
from tests.fleet import Candidates, Replica, answer_of, fleet, same
from tests.http_client import Pool, post
from tests.redis_servers import RedisServer

REQUESTS = amount(50_000)  # for each residency
CLIENTS = 12  # at once
HANG_UP_SECONDS = 0.02  # at most, after the request was sent
DELAY = 0.003  # s by which each answer of Redis is delayed
SETTINGS = {"store_timeout_ms": 10_000, "timeout_ms": 60_000, "max_queue": 10_000}


def distinct_requests(planted: Planted) -> list[tuple[dict[str, Any], Candidates]]:
    """Requests with their right answers, computed one by one; no two answers have the same items."""
    random, retriever = Random(0), Retriever(planted.version)
    by_items: dict[tuple[Any, ...], tuple[dict[str, Any], Candidates]] = {}
    for _ in range(1500):
        history, exclude = random.sample(range(40), 4), random.sample(range(40), 12)
        asked = {"history": history, "exclude": exclude, "k": 5}
        answer = answer_of(retriever, **asked)
        by_items[tuple(candidate["item_id"] for candidate in answer)] = asked, answer
    return list(by_items.values())


def open_files(replica: Replica) -> int:
    """The number of open descriptors of the service's process, its connections included."""
    assert replica.process
    return len(os.listdir(f"/proc/{replica.process.pid}/fd"))  # noqa: PTH208 -- one name for each descriptor, no paths


async def attack(port: int, requests: list[tuple[dict[str, Any], Candidates]]) -> Counter[str]:
    """Send REQUESTS requests and hang up on half of them at random moments. Returns how many ended in which way."""
    random, pool, ends = Random(1), Pool(port), Counter[str]()
    numbers = iter(range(REQUESTS))

    async def client() -> None:
        for number in numbers:
            body, wanted = requests[random.randrange(len(requests))]
            patience = random.uniform(0, HANG_UP_SECONDS) if random.random() < 0.5 else None
            asked = post("/v1/retrieve", body, **{"X-Request-ID": f"number-{number}"})
            try:
                async with asyncio.timeout(patience):
                    reply = await pool.ask(asked)
            except TimeoutError:
                ends["aborted"] += 1
                continue
            if reply.status != 200:
                ends[f"refused {reply.status}"] += 1
                continue
            answer = reply.json()
            own_id = answer["request_id"] == reply.header("x-request-id") == f"number-{number}"
            ends["right" if own_id and same(answer["candidates"], wanted) else "wrong"] += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    pool.close()
    return ends


@pytest.mark.parametrize("residency", ["remote", "resident"])
def test_no_client_gets_the_answer_of_another(
    residency: str, own: RedisServer, planted: Planted, tmp_path: Path, goal: Goal
) -> None:
    """Promise: clients that hang up. Half of the requests abort within 20 ms; the others get their own answers."""
    requests = distinct_requests(planted)
    store = open_store(own.url)
    store.activate(store.publish(planted.version))
    with delay_proxy(own.port) as proxy, own.client() as client:
        url = f"redis://127.0.0.1:{proxy.port}"
        with fleet(tmp_path, url, 1, residency=residency, **SETTINGS) as (replica,):
            proxy.delay = DELAY
            files = open_files(replica)

            ends = asyncio.run(attack(replica.port, requests))

            ended = time.monotonic()
            # Searches run one after the other, so these answers come after the searches of all aborted requests.
            for body, wanted in requests[:20]:
                assert same(replica.client.post("/v1/retrieve", json=body).json()["candidates"], wanted)
            while open_files(replica) > files + 2 * CONNECTIONS and time.monotonic() < ended + 30:
                pass
            seconds = time.monotonic() - ended
            assert open_files(replica) <= files + 2 * CONNECTIONS
            connections = len(client.client_list()) - 2  # without this client's and the publisher's
            assert "Traceback" not in replica.log()
    seen = f"{ends['aborted']:,} hung up on before their answer, {ends['right']:,} right answers, {ends['wrong']} wrong"
    goal(
        f"{REQUESTS:,} requests, half aborted within 20 ms: every answer belongs to its own request ({residency})",
        seen,
        ends["wrong"] == 0
        and ends["aborted"] + ends["right"] == REQUESTS
        and ends["aborted"] > REQUESTS / 100
        and ends["right"] > REQUESTS / 2 - REQUESTS / 10,
    )
    goal(
        f"afterwards the service has no more connections to Redis than its two pools have ({residency})",
        f"{connections} of at most {2 * CONNECTIONS}",
        0 < connections <= 2 * CONNECTIONS,
    )
    goal(
        "connections of aborted requests are closed within 5 s",
        f"{seconds:.2f} s ({residency})",
        seconds < 5,
        timing=True,
    )
