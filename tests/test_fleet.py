"""Replicas on one Redis: they answer as from a folder, agree after racing swaps, and end without losing requests."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from index_store.store import open_store
from service.serving.retriever import Retriever
from tests.conftest import Planted
from tests.fleet import ADMIN, Candidates, Replica, answer_of, fleet, open_loop, same
from tests.redis_servers import RedisServer

BODIES = [{"history": list(range(group, group + 4 * n, 4)), "k": 5} for group in range(4) for n in range(4)]


@pytest.fixture
def names(own: RedisServer, planted: Planted, other: Planted) -> tuple[str, str]:
    """Two versions on the test's own server; the first is current."""
    store = open_store(own.url)
    names = store.publish(planted.version), store.publish(other.version)
    store.activate(names[0])
    return names


def ask_all(replica: Replica) -> list[Candidates]:
    """A replica's candidates for BODIES, one by one."""
    return [replica.client.post("/v1/retrieve", json=body).json()["candidates"] for body in BODIES]


@pytest.fixture(scope="module")
def expected(planted: Planted) -> list[Candidates]:
    """The oracle: what a service of this version must answer to BODIES."""
    retriever = Retriever(planted.version)
    return [answer_of(retriever, **body) for body in BODIES]


@pytest.mark.parametrize("backend", ["redis_server", "redis_cluster"])
def test_replicas_answer_as_the_folder_does(
    backend: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    planted: Planted,
    namespace: str,
    expected: list[Candidates],
) -> None:
    """One replica copies the path lists and one reads them remotely, from a single server and from a cluster."""
    server = request.getfixturevalue(backend)
    place = server.url if backend == "redis_server" else f"redis+cluster://127.0.0.1:{server[0].port}"
    url = f"{place}?namespace={namespace}"
    store = open_store(url)
    name = store.publish(planted.version)
    store.activate(name)
    with (
        fleet(tmp_path / "a", url, count=1) as (resident,),
        fleet(tmp_path / "b", url, count=1, residency="remote", store_timeout_ms=5000) as (remote,),
    ):
        for replica in (resident, remote):
            assert replica.served() == name
            for answered, right in zip(ask_all(replica), expected, strict=True):
                assert same(answered, right)


def test_one_of_racing_swaps_wins_and_all_replicas_follow(
    own: RedisServer, names: tuple[str, str], tmp_path: Path
) -> None:
    """All replicas and their workers follow, although every notification of a swap is lost."""
    with own.client() as client:
        client.execute_command("ACL", "SETUSER", "deaf", "on", ">pw", "~*", "+@all", "-subscribe", "&*")
    deaf = own.url.replace("//", "//deaf:pw@")
    with (
        fleet(tmp_path / "a", deaf, count=1, workers=2) as (several,),
        fleet(tmp_path / "b", deaf, count=1) as (single,),
    ):
        replicas = several, single
        statuses: list[int] = []
        barrier = threading.Barrier(8)

        def race(number: int) -> None:
            with httpx.Client(base_url=replicas[number % 2].address, trust_env=False, timeout=30) as client:
                barrier.wait()
                body = {"version": names[1], "expected": names[0]}
                statuses.append(client.post("/admin/v1/swap", json=body, headers=ADMIN).status_code)

        threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [200] + [409] * 7

        # Without connections kept alive, each request may reach another worker.
        limits = httpx.Limits(max_keepalive_connections=0)
        for replica in replicas:
            with httpx.Client(base_url=replica.address, trust_env=False, timeout=30, limits=limits) as client:
                end = time.monotonic() + 30
                row = 0
                while row < 20 and time.monotonic() < end:
                    row = row + 1 if client.get("/v1/info").json()["version"] == names[1] else 0
                assert row == 20, replica.log()


def test_sigterm_loses_no_request(own: RedisServer, names: tuple[str, str], tmp_path: Path) -> None:
    """A draining replica is not ready but still answers, then ends: a client that checks readiness loses no request."""
    failures: list[Any] = []
    answered_while_draining = 0

    with fleet(tmp_path, own.url, drain_seconds=1.5, timeout_ms=10_000) as replicas:
        leaving, staying = replicas
        ready = {leaving.address: True, staying.address: True}

        async def send_requests() -> None:
            nonlocal answered_while_draining
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:

                async def ask(number: int) -> None:
                    nonlocal answered_while_draining
                    if number == 55:  # between two checks of readiness
                        assert leaving.process
                        leaving.process.send_signal(signal.SIGTERM)
                    address = leaving.address if ready[leaving.address] and number % 2 else staying.address
                    try:
                        response = await client.post(f"{address}/v1/retrieve", json=BODIES[number % len(BODIES)])
                        if response.status_code != 200:
                            failures.append(response.text)
                        elif address == leaving.address and response.headers.get("connection") == "close":
                            answered_while_draining += 1
                    except httpx.TransportError as error:
                        failures.append(repr(error))

                async def check_readiness(number: int) -> None:
                    if ready[leaving.address]:
                        response = await client.get(f"{leaving.address}/readyz")
                        ready[leaving.address] = response.status_code == 200

                await asyncio.gather(open_loop(50, 5, ask), open_loop(5, 5, check_readiness))

        # A request whose body is still on its way when the listening socket closes.
        def slow_body() -> Iterator[bytes]:
            yield b'{"history": [1],'
            with contextlib.suppress(ConnectionRefusedError):
                while True:
                    socket.create_connection(("127.0.0.1", leaving.port), timeout=30).close()
                    time.sleep(0.02)
            yield b' "k": 5}'

        late: list[int] = []
        address = f"{leaving.address}/v1/retrieve"
        headers = {"content-type": "application/json"}
        thread = threading.Thread(
            target=lambda: late.append(
                httpx.post(address, content=slow_body(), headers=headers, trust_env=False, timeout=30).status_code
            )
        )
        thread.start()
        asyncio.run(send_requests())
        with pytest.raises(httpx.ConnectError):
            httpx.get(leaving.address, trust_env=False)
        thread.join()
        assert late == [200]
        assert leaving.process
        assert leaving.process.wait(30) == 0
        assert failures == []
        assert not ready[leaving.address]
        assert answered_while_draining > 0
        assert staying.served() == names[0]
