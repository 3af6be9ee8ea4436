"""Old versions are deleted while others are in use."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from index_store.redis.store import ServerStore
from index_store.store import open_store, prune
from index_store.version import Version
from tests.chaos.conftest import Goal, amount
from tests.chaos.traffic import Traffic, answers_of
from tests.conftest import Planted
from tests.fleet import Replica, fleet
from tests.planted import changed
from tests.redis_servers import RedisServer

RATE = 100
#: Commands that the product must not send: they read all keys, delete keys that are in use, or run unreviewed scripts.
FORBIDDEN = {"KEYS", "DEL", "FLUSHALL", "FLUSHDB", "EVAL", "EVALSHA", "FCALL", "SCRIPT", "FUNCTION", "CONFIG", "RENAME"}


class Cycles:
    """Publishes versions one after the other, each with other bytes and all with the same answers."""

    def __init__(self, url: str, version: Version, replica: Replica) -> None:
        self._version, self._replica, self._number = version, replica, 0
        store = open_store(url)
        assert isinstance(store, ServerStore)
        self.store = store
        self.expected = dict[str, list[list[dict[str, object]]]]()
        self._answers = answers_of(version)
        self.most = 0  # the most versions left after a prune, without the leased ones
        self.deleted = 0

    def next_version(self, *, pruned: bool) -> str:
        """Publish and activate a version, wait until the replica serves it, and prune if asked to. Returns its name."""
        self._number += 1
        context = bytes(self._version.parts["context.json"]) + b" " * self._number
        name = self.store.publish(changed(self._version, context=context))
        self.expected[name] = self._answers
        self.store.activate(name)
        end = time.monotonic() + 60
        while self._replica.served() != name:
            assert time.monotonic() < end, self._replica.log()
            time.sleep(0.01)
        if pruned:
            leased = self.store._listing.leased()
            pruned_names = prune(self.store, keep=1)
            assert not leased & self.store._listing.leased() & set(pruned_names)  # the replica may release one
            self.deleted += len(pruned_names)
            kept = {manifest.version for manifest in self.store.versions()}
            self.most = max(self.most, len(kept - leased))
        return name


@pytest.mark.parametrize("residency", ["resident", "remote"])
def test_old_versions_are_deleted(
    residency: str, goal: Goal, own: RedisServer, planted: Planted, tmp_path: Path
) -> None:
    """Promise: retention.

    A slow replica holds the first version all the time; another one follows the pointer and answers requests.
    """
    cycles = amount(100)  # of each residency
    seen = Counter[str]()
    store = open_store(own.url)
    store.activate(store.publish(planted.version))
    with (
        _monitored(own, seen),
        fleet(tmp_path, own.url, count=1, residency=residency, store_timeout_ms=10_000, timeout_ms=60_000) as (
            replica,
        ),
    ):
        work = Cycles(own.url, planted.version, replica)
        first = work.next_version(pruned=False)
        slow = open_store(own.url)
        slow.hold([first])
        with Traffic([replica.port], RATE, work.expected) as without:
            for _ in range(cycles // 2):
                work.next_version(pruned=False)
        with Traffic([replica.port], RATE, work.expected) as traffic:
            for _ in range(cycles):
                slow.hold([first])
                work.next_version(pruned=True)
    slow.load(first)

    problems = traffic.failed + traffic.wrong + without.failed + without.wrong
    goal(
        f"{cycles} versions published and pruned ({residency}): unleased versions kept, at most 3; leased versions "
        f"deleted; requests failed or wrong; forbidden Redis commands sent",
        f"{work.most}; 0; {len(problems)}; {len(FORBIDDEN & set(seen))}",
        reached=work.most <= 3 and not problems and not FORBIDDEN & set(seen) and work.deleted >= cycles,
    )
    goal(
        f"deleting adds at most 5 ms to the p99 ({residency})",
        f"{traffic.p99() - without.p99():+.1f} ms, {without.p99():.1f} without",
        reached=traffic.p99() <= without.p99() + 5,
        timing=True,
    )


@contextmanager
def _monitored(server: RedisServer, seen: Counter[str]) -> Iterator[None]:
    """Count the commands that the server gets during the context."""
    started = threading.Event()

    def listen() -> None:
        with server.client() as client, client.monitor() as monitor:
            started.set()
            while (command := monitor.next_command()["command"]) != "ECHO that is all":
                seen[command.partition(" ")[0].upper()] += 1

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        assert started.wait(30)
        yield
    finally:
        with server.client() as client:
            client.echo("that is all")
        thread.join(30)
    assert not thread.is_alive()
