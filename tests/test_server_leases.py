"""Leases of a store on a server: publishers that are taken for dead, and versions that replicas hold."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest
import redis

from index_store.errors import PointerMoved, VersionDamaged, VersionInUse, VersionNotFound
from index_store.redis import listing
from index_store.redis import store as server_module
from index_store.redis.store import ServerStore
from index_store.store import open_store
from tests.planted import large_version, small_version
from tests.redis_servers import RedisServer
from tests.test_server import keys_of


def versions_with_keys(client: Any, namespace: str) -> set[str]:
    """The versions that at least one key belongs to."""
    return {key.split(":")[1] for key in keys_of(client, namespace) if re.match(r"[^:]*:v\d+-", key)}


def test_a_live_publisher_is_not_swept(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The publish takes longer than a lease that is not renewed, while another process sweeps all the time."""
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
    """The sweep waits for the end of the lease, and then removes the keys."""
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
    """By the server's clock the lease lasts another day, longer than any lease can, so the keys are swept."""
    monkeypatch.setattr(server_module, "HOLD_MS", 300)
    client.sadd(f"{namespace}:publishing:{{{namespace}:versions}}", "v1-0123456789ab")
    client.set(f"{namespace}:v1-0123456789ab:path:5", b"1234")
    seconds, _ = client.time()
    client.zadd(f"{namespace}:leases", {f"v1-0123456789ab {'0' * 32}": (seconds + 86_400) * 1000})

    open_store(url).sweep()

    assert not versions_with_keys(client, namespace)


def test_a_version_in_use_is_listed_again_after_a_killed_delete(url: str, client: Any, namespace: str) -> None:
    """The delete had unlisted the version and was killed; meanwhile the version had become current."""
    store = open_store(url)
    name = store.publish(small_version())
    store.activate(name)
    client.smove(f"{namespace}:versions", f"{namespace}:publishing:{{{namespace}:versions}}", name)

    open_store(url).sweep()

    store.load(name).verify_digests()


def test_an_interrupted_delete_lists_the_version_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stops a delete after its first step, even Ctrl-C, the version can be loaded."""
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


def test_a_sweep_during_a_delete_that_gives_way_erases_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica takes its lease as a delete unlists the version; another process sweeps before it is listed again."""
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


def test_activate_and_publish_leave_the_lease_of_hold(url: str, client: Any, namespace: str) -> None:
    """They take short leases of their own."""
    store = open_store(url)
    name = store.publish(small_version())
    store.hold([name])
    ((_, before),) = client.zrange(f"{namespace}:leases", 0, -1, withscores=True)

    store.activate(name)
    store.publish(small_version())

    ((_, after),) = client.zrange(f"{namespace}:leases", 0, -1, withscores=True)
    assert after == before


def test_no_lease_ends_on_a_full_server(own: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases cannot be renewed there, so one that is over may still be needed."""
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


def test_an_activation_whose_answer_was_lost_succeeds(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction was carried out, but its answer was lost; the client takes that for a lost race."""
    store = open_store(url)
    first, second = store.publish(small_version("1")), store.publish(small_version("2"))
    store.activate(first)
    execute = redis.client.Pipeline.execute
    broken = False

    def lossy(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal broken
        transaction = self.explicit_transaction
        results = execute(self, *args, **kwargs)
        if transaction and not broken:
            broken = True
            raise redis.WatchError
        return results

    monkeypatch.setattr(redis.client.Pipeline, "execute", lossy)

    assert store.activate(second, expected=first) == first
    assert broken
    assert store.current() == second


def test_an_activation_that_lost_to_the_same_version_fails(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another replica makes the same move between this replica's look and its transaction."""
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
def test_a_publisher_that_was_swept_starts_again(
    url: str, client: Any, namespace: str, caplog: pytest.LogCaptureFixture, share: float
) -> None:
    """It stalled so long, midway or before the last step, that its keys were swept; it must write all of them again."""
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


def test_a_version_that_does_not_read_back_as_written_is_not_published(url: str, client: Any, namespace: str) -> None:
    """A value changes on the way: the publish fails and leaves no keys behind."""
    store = open_store(url)

    def change(done: int, total: int) -> None:
        for key in client.scan_iter(match=f"{namespace}:v1-*:path:7"):
            client.set(key, b"\2\0\0\0")

    with pytest.raises(VersionDamaged, match="path_items"):
        store.publish(small_version(), change)

    assert store.versions() == []
    assert versions_with_keys(client, namespace) == set()


def test_keys_of_an_unlisted_version_are_swept(url: str, client: Any, namespace: str) -> None:
    """A publisher that was swept may write such keys later; a version in use stays even if the list is lost."""
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
    """A replica takes its lease after the delete has looked for leases and before it removes: the version stays."""
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


def test_an_invalid_name_is_not_leased(url: str, client: Any, namespace: str) -> None:
    """Its lease would look like another application's, and nothing could be published or deleted any more."""
    store = open_store(url)
    store.hold(["v3", "no-such"])
    with pytest.raises(VersionNotFound):
        store.activate("v3")

    assert client.zcard(f"{namespace}:leases") == 0
    assert store.publish(small_version())


def test_a_lease_expires(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that has died does not hold a version for ever."""
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


def test_activate_wakes_a_waiting_replica(url: str) -> None:
    """Another process's activate ends the wait long before its time is over."""
    store, replica = open_store(url), open_store(url)
    name = store.publish(small_version())
    replica.wait(0.01)  # subscribes
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(replica.wait(60)))
    thread.start()
    store.activate(name)
    thread.join(30)

    assert woken == [True]


def test_the_lease_of_a_task_is_renewed_while_its_process_lives(
    url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long after it would have ended, nobody else may do the task; of a process that died, the lease ends."""
    monkeypatch.setattr(listing, "TASK_MS", 200)

    def later(milliseconds: int) -> None:
        seconds, micros = client.time()
        end = seconds * 1000 + micros // 1000 + milliseconds
        while seconds * 1000 + micros // 1000 < end:
            seconds, micros = client.time()

    with open_store(url).lease("fold") as mine:
        assert mine
        later(1000)
        with open_store(url).lease("fold") as other:
            assert not other
    namespace = url.partition("namespace=")[2]
    client.set(f"{namespace}:task:fold", "of a process that has died", px=200)
    later(300)
    with open_store(url).lease("fold") as mine:
        assert mine
