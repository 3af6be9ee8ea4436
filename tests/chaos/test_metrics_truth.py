"""The service's metrics, compared with what its clients saw.

A request is counted once, by its route and the status of its answer, after it was answered, even if the client did not
read the answer. If the client hangs up before its whole body has arrived, the request counts as 400. Bytes that are not
HTTP are not counted: the server refuses them before there is a request.
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
    """A kind of request: how often it is sent, the route that counts it, and the statuses that it may get.

    A request for a route in BUSY may also get 429: a full queue refuses it unread.
    """

    share: int
    route: str
    statuses: set[int]
    request: bytes


def kinds(served: str) -> list[Kind]:
    """All kinds of requests that a client can make while version `served` is served."""
    body: dict[str, Any] = {"history": [1, 5, 9], "k": 5}
    swap = {"version": served, "expected": "v7-000000000000"}
    hurried = [
        Kind(2, route, {200, 504}, post(route, hurried_body))
        for milliseconds in (1, 2, 5, 10, 15, 20, 30, 50)
        for hurried_body in [body | {"timeout_ms": milliseconds}]
        for route, hurried_body in (
            (RETRIEVE, hurried_body),
            (RETRIEVE, hurried_body | {"k": 100}),
            (BATCH, {"requests": [hurried_body] * 12}),
        )
    ]
    return [
        *hurried,
        Kind(30, RETRIEVE, {200}, post(RETRIEVE, body)),
        Kind(10, RETRIEVE, {200}, post(RETRIEVE, body | {"k": 100})),  # there are only 40 items: a short answer
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
        """What was counted since the scrape `before`. Changes this scrape."""
        self._samples = {key: value - before._samples.get(key, 0.0) for key, value in self._samples.items()}
        return self

    def requests(self) -> Counter[Key]:
        """How many requests were counted, by route and status."""
        samples = {key: int(value) for key, value in self._samples.items() if key[0] == "requests_total" and value}
        return Counter({(str(key[2][1]), int(key[1][1])): value for key, value in samples.items()})

    def timed(self) -> Counter[str]:
        """How many requests were timed, by route."""
        samples = {key: int(value) for key, value in self._samples.items()}
        return Counter({str(k[1][1]): v for k, v in samples.items() if k[0] == "request_duration_seconds_count" and v})

    def __getitem__(self, name: str) -> float:
        """The value of a sample without labels."""
        return self._samples[(name,)]


async def crowd(clients: int, requests: int, ask: Callable[[int], Awaitable[None]]) -> None:
    """Call `ask` with the numbers below `requests`, from `clients` clients; each asks again when it is answered."""
    numbers = iter(range(requests))

    async def client() -> None:
        for number in numbers:
            await ask(number)

    await asyncio.gather(*(client() for _ in range(clients)))


def degraded(reply: Reply) -> list[dict[str, bool]]:
    """The `degraded` field of each answer in a reply."""
    document: Any = reply.json()
    return [answer["degraded"] for answer in document.get("responses", [document])]


@pytest.fixture
def replica(planted: Planted, tmp_path: Path) -> Iterator[Replica]:
    """A service with a short queue and a low limit for bodies, on a folder store."""
    store = open_store(str(tmp_path / "store"))
    store.activate(store.publish(planted.version))
    with fleet(tmp_path, str(tmp_path / "store"), 1, **SETTINGS) as (replica,):
        yield replica


def test_the_metrics_equal_what_clients_saw(replica: Replica, goal: Goal) -> None:
    """Promise: metrics.

    After a mix of all requests, the counts by route and status, the short answers and the histograms agree.
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
                shortfalls = degraded(reply)
                answers += len(shortfalls)
                short += sum(shortfall["short"] for shortfall in shortfalls)
                narrowed += sum(shortfall["narrowed"] for shortfall in shortfalls)

        await crowd(CLIENTS, REQUESTS, ask)
        pool.close()

    before = Scrape(replica)
    asyncio.run(attack())
    counted = Scrape(replica).since(before)

    seen["/metrics", 200] += 1  # the first scrape, which is counted after it was answered
    assert counted.requests() == seen
    assert counted.timed() == sum((Counter({route: n}) for (route, _), n in seen.items()), Counter[str]())
    assert (counted["short_answers_total"], counted["narrowed_answers_total"]) == (short, narrowed)
    assert counted["items_read_count"] == answers
    assert counted["batch_size_sum"] >= answers  # also counts searches whose client was answered 504
    assert counted["store_faults_total"] == 0
    by_status: Counter[int] = Counter()
    for (_, status), number in seen.items():
        by_status[status] += number
    counts = ", ".join(f"{number:,} of {status}" for status, number in sorted(by_status.items()))
    goal(
        "the service's counts by route and status equal what clients of every kind of request saw",
        f"{REQUESTS:,}: {counts}; {short:,} short, {narrowed:,} narrowed; all equal",
        set(by_status) == {200, 400, 401, 404, 405, 409, 413, 422, 429, 504}
        and short
        and (narrowed or REQUESTS < 100_000),
    )


def test_a_request_whose_client_hangs_up_is_counted_once(replica: Replica) -> None:
    """Promise: metrics. A whole request counts by the status of its unread answer, an incomplete one as 400."""
    number = amount(3000)
    whole = post(RETRIEVE, {"history": [1, 5, 9], "k": 5})

    async def hang_up(_: int) -> None:
        loop = asyncio.get_running_loop()
        for request in (whole, whole[:-5]):
            connection = (await loop.create_connection(Connection, "127.0.0.1", replica.port))[1]
            asking = asyncio.ensure_future(connection.ask(request))
            await asyncio.sleep(0)  # the request is sent
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

    Redis does not answer in time, or is not asked again for a moment: each 503 is one fault.
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
        "the count of store faults equals the requests refused because the store failed",
        f"{seen[503]:,} of {number:,} and {faults:,}",
        seen[503] == faults == seen.total(),
    )
