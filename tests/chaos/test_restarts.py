"""Restarts of replicas behind the shipped proxy."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from index_store.store import open_store
from tests.chaos.conftest import Goal, amount
from tests.chaos.traffic import Traffic, answers_of
from tests.conftest import Planted
from tests.fleet import Replica, fleet
from tests.planted import changed
from tests.proxy import proxied

RATE = 200
DRAIN_SECONDS = 1.0


def test_restarts_behind_the_proxy(goal: Goal, planted: Planted, other: Planted, tmp_path: Path) -> None:
    """Promise: restarts. Two replicas restart in turn; every third time, a new version has just been activated."""
    store = open_store(str(tmp_path / "store"))
    names = [store.publish(planted.version), store.publish(other.version)]
    store.activate(names[0])
    expected = dict(zip(names, map(answers_of, (planted.version, other.version)), strict=True))
    restarts = amount(100, 3)
    statuses: list[int] = []
    took: list[float] = []
    with (
        fleet(tmp_path, str(tmp_path / "store"), drain_seconds=DRAIN_SECONDS, timeout_ms=10_000) as replicas,
        proxied(tmp_path, [replica.port for replica in replicas]) as port,
        Traffic([port], RATE, expected) as traffic,
    ):
        for number in range(restarts):
            leaving = replicas[number % 2]
            if number % 3 == 2:
                context = bytes(planted.version.parts["context.json"]) + b" " * (1 + number)
                names.append(store.publish(changed(planted.version, context=context)))
                expected[names[-1]] = expected[names[0]]
                store.activate(names[-1])
            assert leaving.process
            signalled = time.monotonic()
            leaving.process.send_signal(signal.SIGTERM)
            statuses.append(leaving.process.wait(60))
            took.append(time.monotonic() - signalled)
            leaving.start()
            leaving.wait_until("/readyz")
            _wait_for_requests(leaving)

    goal(
        f"{restarts} SIGTERMs of one of two replicas behind the proxy, {RATE} requests a second: failed, wrong",
        f"{len(traffic.failed)}, {len(traffic.wrong)} of {traffic.answered:,}",
        reached=not traffic.failed + traffic.wrong and traffic.answered > restarts * RATE,
    )
    goal("exit statuses other than 0", sum(status != 0 for status in statuses), reached=statuses == [0] * restarts)
    goal(
        "exit at most 2 s after the drain time",
        f"{max(took) - DRAIN_SECONDS:.1f} s after it",
        reached=max(took) <= DRAIN_SECONDS + 2,
        timing=True,
    )


def _wait_for_requests(replica: Replica) -> None:
    """Wait until the proxy has noticed that the replica is back, and sends it requests again."""
    end = time.monotonic() + 60
    while 'route="/v1/retrieve"' not in replica.client.get("/metrics").text:
        assert time.monotonic() < end, "the proxy gives it none"
        time.sleep(0.05)
