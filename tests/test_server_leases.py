"""The store on a server when publishers are taken for dead, and replicas hold what others would delete."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest
import redis

from index_store.errors import PointerMoved, VersionDamaged, VersionInUse, VersionNotFound
from index_store.redis import store as server_module
from index_store.redis.store import ServerStore
from index_store.store import open_store
from tests.planted import large_version, small_version
from tests.redis_servers import RedisServer
from tests.test_server import keys_of


def versions_with_keys(client: Any, namespace: str) -> set[str]:
    """The versions that any key belongs to."""
    return {key.split(":")[1] for key in keys_of(client, namespace) if re.match(r"[^:]*:v\d+-", key)}


def test_a_publisher_that_lives_is_not_swept(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However long others prune meanwhile: here longer than a lease that is not renewed."""
    monkeypatch.setattr(server_module, "PUBLISH_MS", 1000)
    store, other = open_store(url), open_store(url)
    calls, published = 0, threading.Event()

    def slowly(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            thread.start()
        if calls <= 6:
            time.sleep(0.25)

    def sweep() -> None:
        while not published.is_set():
            other.sweep()

    thread = threading.Thread(target=sweep)
    try:
        name = store.publish(large_version(), slowly)
    finally:
        published.set()
    thread.join()
    assert calls >= 6

    assert name.startswith("v1-")
    assert "swept" not in caplog.text
    store.load(name).verify_digests()


def test_a_dead_publishers_claim_is_swept_when_its_lease_ends(url: str, client: Any, namespace: str) -> None:
    """Not before: the sweep waits for it."""
    lease = f"v1-0123456789ab {'0' * 32}"
    client.sadd(f"{namespace}:publishing:{{{namespace}:versions}}", "v1-0123456789ab")
    client.set(f"{namespace}:v1-0123456789ab:path:5", b"1234")
    started = time.monotonic()
    seconds, microseconds = client.time()
    client.zadd(f"{namespace}:leases", {lease: seconds * 1000 + microseconds // 1000 + 700})

    open_store(url).sweep()

    assert time.monotonic() - started > 0.5
    assert keys_of(client, namespace) == set()


def test_a_clock_set_back_keeps_no_dead_publisher_alive(
    url: str, client: Any, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the server's clock its lease lasts for another day; by ours none lasts so long."""
    monkeypatch.setattr(server_module, "HOLD_MS", 300)
    client.sadd(f"{namespace}:publishing:{{{namespace}:versions}}", "v1-0123456789ab")
    client.set(f"{namespace}:v1-0123456789ab:path:5", b"1234")
    seconds, _ = client.time()
    client.zadd(f"{namespace}:leases", {f"v1-0123456789ab {'0' * 32}": (seconds + 86_400) * 1000})

    open_store(url).sweep()

    assert not versions_with_keys(client, namespace)


def test_a_version_in_use_that_a_dead_deleter_had_unlisted_is_listed_again(
    url: str, client: Any, namespace: str
) -> None:
    """Killed between its first step and its second look, while somebody made the version current."""
    store = open_store(url)
    name = store.publish(small_version())
    store.activate(name)
    client.smove(f"{namespace}:versions", f"{namespace}:publishing:{{{namespace}:versions}}", name)

    open_store(url).sweep()

    store.load(name).verify_digests()


def test_a_delete_that_loses_its_server_lists_the_version_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stops it after its first step, even Ctrl-C."""
    store = open_store(url)
    assert isinstance(store, ServerStore)
    name = store.publish(small_version())
    looks = 0

    def stopped(version: str) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "_require_unused", stopped)

    with pytest.raises(KeyboardInterrupt):
        store.delete(name)

    open_store(url).load(name).verify_digests()


def test_sweeps_and_deletes_at_once_never_take_what_is_current(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prunes and a swap to an old version: a sweep that looks while a delete gives way erases nothing."""
    store, sweeper, replica = open_store(url), open_store(url), open_store(url)
    assert isinstance(store, ServerStore)
    name = store.publish(small_version())
    unseal = store._listing.unseal

    def slow_unseal(version: str) -> bool:
        replica.hold([version])
        done = unseal(version)
        sweeper.sweep()
        return done

    monkeypatch.setattr(store._listing, "unseal", slow_unseal)

    with pytest.raises(VersionInUse):
        store.delete(name)

    replica.activate(name)
    replica.load(name).verify_digests()


def test_what_is_held_stays_held_through_activate_and_publish(url: str, client: Any, namespace: str) -> None:
    """Their own short leases are other ones."""
    store = open_store(url)
    name = store.publish(small_version())
    store.hold([name])
    ((_, before),) = client.zrange(f"{namespace}:leases", 0, -1, withscores=True)

    store.activate(name)
    store.publish(small_version())

    ((_, after),) = client.zrange(f"{namespace}:leases", 0, -1, withscores=True)
    assert after == before


def test_on_a_full_server_no_lease_ends(own: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """There none can be renewed, so who holds a version cannot say so any more."""
    monkeypatch.setattr(server_module, "HOLD_MS", 1)
    store = open_store(own.url)
    name = store.publish(small_version())
    open_store(own.url).hold([name])
    with own.client() as client:
        client.config_set("maxmemory", 1)
        store.sweep()
        with pytest.raises(VersionInUse):
            store.delete(name)
        client.config_set("maxmemory", 0)
        client.time()

    store.delete(name)


def test_who_won_a_race_is_told_so_although_the_answer_was_lost(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks after the transaction was carried out; the client takes it for a lost race."""
    store = open_store(url)
    first, second = store.publish(small_version("1")), store.publish(small_version("2"))
    store.activate(first)
    execute = redis.client.Pipeline.execute
    broken = False

    def lossy(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal broken
        transaction = self.explicit_transaction
        found = execute(self, *args, **kwargs)
        if transaction and not broken:
            broken = True
            raise redis.WatchError
        return found

    monkeypatch.setattr(redis.client.Pipeline, "execute", lossy)

    assert store.activate(second, expected=first) == first
    assert broken
    assert store.current() == second


def test_who_lost_a_race_to_the_same_version_is_told_so(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another replica makes the same move between this one's look and its transaction."""
    store, other = open_store(url), open_store(url)
    first, second = store.publish(small_version("1")), store.publish(small_version("2"))
    store.activate(first)
    execute = redis.client.Pipeline.execute
    beaten = False

    def beat(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal beaten
        if self.explicit_transaction and not beaten:
            beaten = True
            assert other.activate(second, expected=first) == first
        return execute(self, *args, **kwargs)

    monkeypatch.setattr(redis.client.Pipeline, "execute", beat)

    with pytest.raises(PointerMoved):
        store.activate(second, expected=first)
    assert beaten
    assert store.previous() == first


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_publisher_taken_for_dead_begins_again(
    url: str, client: Any, namespace: str, caplog: pytest.LogCaptureFixture, share: float
) -> None:
    """Stopped so long that its claim was swept, on its way or before the last step: it must not list what is gone."""
    store, other = open_store(url), open_store(url)
    stalled = False

    def stall(done: int, total: int) -> None:
        nonlocal stalled
        if not stalled and done >= share * total:
            stalled = True
            client.delete(f"{namespace}:leases")
            other.sweep()

    name = store.publish(large_version(), stall)

    assert name.startswith("v2-")
    store.load(name).verify_digests()
    assert versions_with_keys(client, namespace) == {name}
    assert "swept" in caplog.text


def test_what_is_not_read_back_as_written_is_not_published(url: str, client: Any, namespace: str) -> None:
    """A value that changed on its way: the publish fails, and nothing of it stays."""
    store = open_store(url)

    def change(done: int, total: int) -> None:
        for key in client.scan_iter(match=f"{namespace}:v1-*:path:7"):
            client.set(key, b"\2\0\0\0")

    with pytest.raises(VersionDamaged, match="path_items"):
        store.publish(small_version(), change)

    assert store.versions() == []
    assert versions_with_keys(client, namespace) == set()


def test_orphans_of_no_listed_version_are_swept(url: str, client: Any, namespace: str) -> None:
    """Keys that somebody taken for dead wrote after the sweep; what is in use stays even if the list is lost."""
    store = open_store(url)
    name = store.publish(small_version())
    store.activate(name)
    orphan = f"{namespace}:v7-0123456789ab:path:5"
    client.set(orphan, b"1234")
    client.delete(f"{namespace}:versions")

    store.sweep()

    assert not client.exists(orphan)
    assert client.exists(f"{namespace}:{name}:path:3")


def test_a_delete_that_loses_the_race_gives_way(
    url: str, client: Any, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica takes its lease between the look and the removal: the version stays."""
    store, replica = open_store(url), open_store(url)
    assert isinstance(store, ServerStore)
    name = store.publish(small_version())
    unseal = store._listing.unseal

    def slow_unseal(version: str) -> bool:
        replica.hold([version])
        return unseal(version)

    monkeypatch.setattr(store._listing, "unseal", slow_unseal)

    with pytest.raises(VersionInUse):
        store.delete(name)

    replica.load(name).verify_digests()


def test_a_name_that_is_none_is_not_leased(url: str, client: Any, namespace: str) -> None:
    """It would be taken for another application's, and nothing could be published or deleted any more."""
    store = open_store(url)
    store.hold(["v3", "no-such"])
    with pytest.raises(VersionNotFound):
        store.activate("v3")

    assert client.zcard(f"{namespace}:leases") == 0
    assert store.publish(small_version())


def test_a_lease_ends_by_itself(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that died does not hold a version for ever."""
    monkeypatch.setattr(server_module, "HOLD_MS", 1)
    store = open_store(url)
    name = store.publish(small_version())
    open_store(url).hold([name])
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            store.delete(name)
        except VersionInUse:
            continue
        return
    pytest.fail("the lease did not end")


def test_who_waits_is_woken(url: str) -> None:
    """By another process's activate, long before the time given is over."""
    store, replica = open_store(url), open_store(url)
    name = store.publish(small_version())
    replica.wait(0.01)  # subscribes
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(replica.wait(60)))
    thread.start()
    store.activate(name)
    thread.join(30)

    assert woken == [True]
