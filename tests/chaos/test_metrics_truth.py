"""What the service counts, beside what its clients saw.

A request is counted once, by the route it was for and the status of its answer, when it has been answered; also where
nobody read the answer. Who hangs up before all of its body is there is counted as 400. What is no HTTP is not counted:
the server refuses it before there is a request.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from index_store.store import open_store
from tests.chaos.conftest import Goal, amount
from tests.conftest import Planted
from tests.fleet import ADMIN, Replica, fleet
from tests.http_client import Connection, Pool, Reply, get, post
from tests.redis_servers import RedisServer

REQUESTS = amount(100_000)
CLIENTS = 48  # at once: more than the queue has room for
SETTINGS = {"max_queue": 24, "max_body_bytes": 4096, "timeout_ms": 60_000}
RETRIEVE, BATCH, SWAP = "/v1/retrieve", "/v1/retrieve:batch", "/admin/v1/swap"
BUSY = {RETRIEVE, BATCH}

Key = tuple[str, int]  # route and status


@dataclass(frozen=True)
class Kind:
    """A sort of request: how often it is asked, the route it is counted under, and the statuses it may get.

    Those for a route in BUSY may also get 429: a full queue refuses them unread.
    """

    share: int
    route: str
    statuses: set[int]
    request: bytes


def kinds(served: str) -> list[Kind]:
    """One of each that a client can make, while version `served` is served."""
    body: dict[str, Any] = {"history": [1, 5, 9], "k": 5}
    swap = {"version": served, "expected": "v7-000000000000"}
    hurried = [
        Kind(2, route, {200, 504}, post(route, one))
        for milliseconds in (1, 2, 5, 10, 15, 20, 30, 50)
        for one in [body | {"timeout_ms": milliseconds}]
        for route, one in ((RETRIEVE, one), (RETRIEVE, one | {"k": 100}), (BATCH, {"requests": [one] * 12}))
    ]
    return [
        *hurried,
        Kind(30, RETRIEVE, {200}, post(RETRIEVE, body)),
        Kind(10, RETRIEVE, {200}, post(RETRIEVE, body | {"k": 100})),  # of 40 items: short
        Kind(5, BATCH, {200}, post(BATCH, {"requests": [body, body | {"k": 100}, body | {"history": []}]})),
        Kind(5, RETRIEVE, {422}, post(RETRIEVE, body | {"k": 0})),
        Kind(3, BATCH, {422}, post(BATCH, {"requests": [body | {"beam": 256, "per_path": 10_000}]})),
        Kind(5, RETRIEVE, {400}, post(RETRIEVE, b'{"history": [')),
        Kind(4, RETRIEVE, {413}, post(RETRIEVE, b" " * 5000)),
        Kind(5, "unmatched", {404}, get("/v1/nothing")),
        Kind(4, RETRIEVE, {405}, get(RETRIEVE)),
        Kind(4, "/v1/info", {200}, get("/v1/info")),
        Kind(2, "/livez", {200}, get("/livez")),
        Kind(2, "/readyz", {200}, get("/readyz")),
        Kind(4, "/admin/v1/versions", {401}, get("/admin/v1/versions")),
        Kind(1, SWAP, {404}, post(SWAP, {"version": "v7-000000000000"}, **ADMIN)),
        Kind(1, SWAP, {409}, post(SWAP, swap, **ADMIN)),
    ]


class Scrape:
    """All samples of /metrics at one moment."""

    def __init__(self, replica: Replica) -> None:
        self._samples = {
            (sample.name.removeprefix("deepretrieval_"), *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(replica.client.get("/metrics").text)
            for sample in family.samples
        }

    def since(self, before: Scrape) -> Scrape:
        """What was counted between the two."""
        self._samples = {key: value - before._samples.get(key, 0.0) for key, value in self._samples.items()}
        return self

    def requests(self) -> Counter[Key]:
        """By route and status."""
        found = {key: int(value) for key, value in self._samples.items() if key[0] == "requests_total" and value}
        return Counter({(str(key[2][1]), int(key[1][1])): value for key, value in found.items()})

    def timed(self) -> Counter[str]:
        """By route."""
        found = {key: int(value) for key, value in self._samples.items()}
        return Counter({str(k[1][1]): v for k, v in found.items() if k[0] == "request_duration_seconds_count" and v})

    def __getitem__(self, name: str) -> float:
        """A sample without labels."""
        return self._samples[(name,)]


async def crowd(clients: int, requests: int, ask: Callable[[int], Awaitable[None]]) -> None:
    """`ask(number)` for so many numbers; each client asks again when it is answered."""
    numbers = iter(range(requests))

    async def client() -> None:
        for number in numbers:
            await ask(number)

    await asyncio.gather(*(client() for _ in range(clients)))


def degraded(reply: Reply) -> list[dict[str, bool]]:
    """What each answer of a reply falls short in."""
    document: Any = reply.json()
    return [answer["degraded"] for answer in document.get("responses", [document])]


@pytest.fixture
def replica(planted: Planted, tmp_path: Path) -> Iterator[Replica]:
    """A service with a short queue and a low limit for bodies, on a folder."""
    store = open_store(str(tmp_path / "store"))
    store.activate(store.publish(planted.version))
    with fleet(tmp_path, str(tmp_path / "store"), 1, **SETTINGS) as (replica,):
        yield replica


def test_what_is_counted_is_what_clients_saw(replica: Replica, goal: Goal) -> None:
    """Promise: metrics.

    Every route and status of a mix of all requests there are, short and narrowed answers, histograms.
    """
    mix = kinds(replica.served())
    asked = Random(0).choices(mix, [kind.share for kind in mix], k=REQUESTS)
    seen: Counter[Key] = Counter()
    answers = short = narrowed = 0

    async def attack() -> None:
        pool = Pool(replica.port)

        async def ask(number: int) -> None:
            nonlocal answers, short, narrowed
            kind = asked[number]
            reply = await pool.ask(kind.request)
            assert reply.status in kind.statuses | ({429} if kind.route in BUSY else set()), reply
            seen[kind.route, reply.status] += 1
            if reply.status == 200 and kind.route in BUSY:
                found = degraded(reply)
                answers += len(found)
                short += sum(each["short"] for each in found)
                narrowed += sum(each["narrowed"] for each in found)

        await crowd(CLIENTS, REQUESTS, ask)
        pool.close()

    before = Scrape(replica)
    asyncio.run(attack())
    counted = Scrape(replica).since(before)

    seen["/metrics", 200] += 1  # the first look, counted after it
    assert counted.requests() == seen
    assert counted.timed() == sum((Counter({route: n}) for (route, _), n in seen.items()), Counter[str]())
    assert (counted["short_answers_total"], counted["narrowed_answers_total"]) == (short, narrowed)
    assert counted["items_read_count"] == answers
    assert counted["batch_size_sum"] >= answers  # and those that were searched for nobody
    assert counted["store_faults_total"] == 0
    by_status: Counter[int] = Counter()
    for (_, status), number in seen.items():
        by_status[status] += number
    told = ", ".join(f"{number:,} of {status}" for status, number in sorted(by_status.items()))
    goal(
        "what 100,000 requests of every kind were answered = what the service counted, by route and status",
        f"{REQUESTS:,}: {told}; {short:,} short, {narrowed:,} narrowed; all equal",
        set(by_status) == {200, 400, 401, 404, 405, 409, 413, 422, 429, 504}
        and short
        and (narrowed or REQUESTS < 100_000),
    )


def test_who_hangs_up_is_counted_once(replica: Replica) -> None:
    """Promise: metrics. Sent whole, by the answer that nobody read; hung up in the middle of the body, as 400."""
    number = amount(3000)
    whole = post(RETRIEVE, {"history": [1, 5, 9], "k": 5})

    async def hang_up(_: int) -> None:
        loop = asyncio.get_running_loop()
        for request in (whole, whole[:-5]):
            connection = (await loop.create_connection(Connection, "127.0.0.1", replica.port))[1]
            asking = asyncio.ensure_future(connection.ask(request))
            await asyncio.sleep(0)  # it is sent
            connection.abort()
            with pytest.raises(ConnectionResetError):
                await asking

    before = Scrape(replica)
    asyncio.run(crowd(8, number, hang_up))
    end = time.monotonic() + 60
    while True:
        counted = Scrape(replica).since(before).requests()
        del counted["/metrics", 200]
        if counted.total() >= 2 * number or time.monotonic() > end:
            break
    assert counted.total() == 2 * number
    assert set(counted) <= {(RETRIEVE, 200), (RETRIEVE, 400), (RETRIEVE, 429), (RETRIEVE, 499)}
    assert number >= counted[RETRIEVE, 400] >= number - counted[RETRIEVE, 429]


def test_every_request_that_the_store_failed_is_counted(
    own: RedisServer, planted: Planted, tmp_path: Path, goal: Goal
) -> None:
    """Promise: metrics.

    The server does not answer, or not in time, or is not asked again for a moment: 503 is one fault.
    """
    store = open_store(own.url)
    store.activate(store.publish(planted.version))
    seen: Counter[int] = Counter()
    number = amount(2000)

    async def attack(port: int) -> None:
        pool = Pool(port)

        async def ask(number: int) -> None:
            body = {"history": [1, 5, 9], "k": 5} | ({"timeout_ms": 20} if number % 3 else {})
            two = {"requests": [body, body | {"k": 6}]}
            reply = await pool.ask(post(BATCH, two) if number % 5 == 0 else post(RETRIEVE, body))
            seen[reply.status] += 1

        await crowd(16, number, ask)
        pool.close()

    with fleet(tmp_path, own.url, count=1, residency="remote", store_timeout_ms=50) as (replica,):
        before = Scrape(replica)
        own.freeze()
        try:
            asyncio.run(attack(replica.port))
        finally:
            own.thaw()
        faults = int(Scrape(replica).since(before)["store_faults_total"])
        assert "never retrieved" not in replica.log()

    goal(
        "requests refused because the store failed = store faults counted",
        f"{seen[503]:,} of {number:,} and {faults:,}",
        seen[503] == faults == seen.total(),
    )
