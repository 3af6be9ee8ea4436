"""Faults that Redis, its network or its operator may cause."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_store.errors import StoreMisconfigured
from index_store.store import open_store
from tests.chaos.conftest import Goal, amount
from tests.chaos.traffic import BODIES, Traffic, answers_of
from tests.conftest import Planted
from tests.delay_proxy import DelayProxy, delay_proxy
from tests.fleet import Replica, fleet
from tests.http_client import Reply
from tests.redis_servers import RedisServer

RATE = 50
STORE_TIMEOUT_MS = 200
RECOVERED_SECONDS = 2.0
#: Faults during which a replica that reads path lists from Redis cannot answer.
REFUSING = ("refused", "frozen", "much too late", "reset in an answer", "half open", "restarted empty", "loading")


class Faults:
    """Thirteen faults of a server, its network or its operator. `all`: name -> how to cause it, how to heal it."""

    def __init__(self, server: RedisServer, proxy: DelayProxy, planted: Planted) -> None:
        self._server, self._proxy, self._planted = server, proxy, planted
        self._operators: list[Any] = []
        self.all: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "refused": (server.stop, self._publish_again),
            "frozen": (server.freeze, server.thaw),
            "200 ms late": (lambda: self._late(0.2), lambda: self._late(0.0)),
            "much too late": (lambda: self._late(1.0), lambda: self._late(0.0)),
            "reset in an answer": (lambda: self._mode("reset"), lambda: self._mode("")),
            "half open": (lambda: self._mode("mute"), lambda: self._mode("")),
            "byte by byte": (lambda: self._mode("drip"), lambda: self._mode("")),
            "restarted empty": (self._restart, self._publish_again),
            "loading": (self._load, self._loaded),
            "no more clients": (lambda: self._set("maxclients", 1), lambda: self._set("maxclients", 10_000)),
            "another password": (lambda: self._set("requirepass", "other"), lambda: self._set("requirepass", "")),
            "out of memory": (lambda: self._set("maxmemory", 1), lambda: self._set("maxmemory", 0)),
            "clients killed": (self._kill_clients, lambda: None),
        }

    def _late(self, seconds: float) -> None:
        self._proxy.delay = seconds

    def _mode(self, mode: str) -> None:
        self._proxy.mode = mode
        if mode in {"reset", ""}:
            self._proxy.cut()

    def _restart(self) -> None:
        self._server.stop()
        self._server.start()

    def _load(self) -> None:
        """Restart the server with all its data, which it loads slowly."""
        with self._server.client() as client:
            client.save()
        self._server.stop()
        self._server.launch("--key-load-delay", "50000", "--loading-process-events-interval-bytes", "1024")

    def _loaded(self) -> None:
        self._server.wait()
        (self._server.folder / "dump.rdb").unlink()
        with self._server.client() as client:
            client.config_set("key-load-delay", 0)

    def _set(self, name: str, value: object) -> None:
        with self._client() as client:
            client.config_set(name, value)
            if name in {"maxclients", "requirepass"}:  # connections that are open would stay open
                self._proxy.cut()

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        """The operator's client, which was connected before the fault and stays connected."""
        if not self._operators or self._server.process is None:
            self._operators = [self._server.client()]
        self._operators[0].ping()
        yield self._operators[0]

    def _kill_clients(self) -> None:
        with self._server.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    def _publish_again(self) -> None:
        if self._server.process is None:
            self._server.start()
        store = open_store(self._server.url)
        store.activate(store.publish(self._planted.version))


def refused_rightly(reply: Reply) -> bool:
    """Whether a refusal is right while Redis has a fault: 503, or 429 because slow answers of Redis fill the queue."""
    return reply.status in {429, 503} and reply.header("retry-after") == "1" and len(reply.body) < 4096


def test_redis_faults(goal: Goal, own: RedisServer, planted: Planted, tmp_path: Path) -> None:
    """Promise: Redis faults.

    A replica with a copy answers through every fault; one that reads Redis answers rightly or refuses.
    """
    store = open_store(own.url)
    name = store.publish(planted.version)
    store.activate(name)
    expected = {name: answers_of(planted.version)}
    rounds = amount(20, 1)
    slow: list[float] = []
    seconds: list[float] = []
    problems: list[str] = []
    refusals: Counter[str] = Counter()
    with delay_proxy(own.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        with (
            fleet(tmp_path / "a", url, count=1, timeout_ms=10_000) as (resident,),
            fleet(tmp_path / "b", url, count=1, residency="remote", store_timeout_ms=STORE_TIMEOUT_MS) as (remote,),
        ):
            faults = Faults(own, proxy, planted)
            for fault in list(faults.all) * rounds:
                strike, heal = faults.all[fault]
                with Traffic([resident.port], RATE, expected) as kept:
                    with Traffic([remote.port], RATE, expected, refused_rightly) as read:
                        strike()
                        time.sleep(0.6)
                        if fault == "frozen":  # a client that waits less long than the service waits for Redis
                            hurried = remote.client.post("/v1/retrieve", json=BODIES[0] | {"timeout_ms": 50})
                            assert (hurried.status_code, hurried.headers["retry-after"]) == (503, "1")
                        assert resident.client.get("/livez").status_code == 200
                        assert remote.client.get("/livez").status_code == 200
                    heal()
                    slow.append(_recovery(remote))
                problems += [f"{fault}: {problem}" for problem in kept.failed + kept.wrong + read.failed + read.wrong]
                refusals[fault] += len(read.refused)
                seconds += [*read.seconds, *(reply.seconds for reply in read.refused)]
    print(problems[:5])
    goal(
        f"{len(faults.all)} kinds of faults x {rounds}: wrong answers, refusals but 503 or 429 with Retry-After",
        f"{len(problems)}; refused: " + ", ".join(f"{fault} {count}" for fault, count in refusals.items() if count),
        reached=not problems and all(refusals[fault] for fault in REFUSING),
    )
    late = 1000 * float(np.percentile(seconds, 99))
    goal(
        "p99 of answers and refusals at most 1,050 ms (the deadline and 50 ms)",
        f"{late:.0f} ms",
        late <= 1050,
        timing=True,
    )
    goal(
        f"right again within {RECOVERED_SECONDS:.0f} s of recovery, at the slowest",
        f"{max(slow):.2f} s",
        reached=max(slow) <= RECOVERED_SECONDS,
        timing=True,
    )


def _recovery(replica: Replica) -> float:
    """Seconds until twenty answers in a row are 200."""
    healed = time.monotonic()
    in_a_row = 0
    while in_a_row < 20:
        assert time.monotonic() < healed + 30, replica.log()
        answer = replica.client.post("/v1/retrieve", json=BODIES[0])
        in_a_row = in_a_row + 1 if answer.status_code == 200 else 0
    return time.monotonic() - healed


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_publishing_to_a_server_that_evicts_keys_is_refused(policy: str, own: RedisServer, planted: Planted) -> None:
    """Promise: Redis faults.

    A server that evicts keys would silently lose parts of a version, so publishing to it is refused.
    """
    with own.client() as client:
        client.config_set("maxmemory-policy", policy)

    with pytest.raises(StoreMisconfigured, match=policy):
        open_store(own.url).publish(planted.version)


def test_lost_keys_are_a_fault(goal: Goal, own: RedisServer, planted: Planted, tmp_path: Path) -> None:
    """Promise: lost keys. Requests that need a deleted path list are refused, and the log reports it."""
    store = open_store(own.url)
    name = store.publish(planted.version)
    store.activate(name)
    expected = {name: answers_of(planted.version)}
    with fleet(tmp_path, own.url, count=1, residency="remote", store_timeout_ms=5000) as (replica,):
        with own.client() as client:
            lists = sorted(key for key in client.keys(f"*{name}*:path:*"))
            assert lists
            lost = lists[:: max(1, min(100, len(lists) // 2))]
            client.delete(*lost)
        with Traffic([replica.port], RATE, expected, refused_rightly) as traffic:
            time.sleep(2)
        logged = "missing or cut short" in replica.log()
    goal(
        f"{len(lost)} of {len(lists)} path lists removed by hand: wrong answers; reported in the log",
        f"{len(traffic.wrong)}; {'yes' if logged else 'no'}",
        reached=not traffic.wrong and not traffic.failed and traffic.refused and logged,
    )
