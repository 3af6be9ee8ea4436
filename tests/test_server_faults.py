"""The store on a server when publishers die, servers freeze, and replicas hold what others would delete."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import redis

from index_store import remote as remote_module
from index_store import server as server_module
from index_store.errors import PointerMoved, StoreUnavailable, VersionDamaged, VersionInUse
from index_store.folder import FolderStore
from index_store.server import ServerStore
from index_store.store import open_store, prune
from tests.planted import large_version, small_version
from tests.redis_servers import RedisServer
from tests.test_server import keys_of

#: The full figure is 50; this many show that it works.
KILLS = int(os.environ.get("DR_TEST_KILLS", "5"))

#: Publishes and activates a second version; dies before the call numbered argv[2], or when killed.
VICTIM = """
import os, sys
from redis.connection import Connection
from index_store.store import open_store
from tests.planted import large_version, small_version
left = int(sys.argv[2])
send = Connection.send_packed_command
def dying(self, *args, **kwargs):
    global left
    left -= 1
    if left == 0:
        os._exit(9)
    return send(self, *args, **kwargs)
Connection.send_packed_command = dying
store = open_store(sys.argv[1])
version = small_version("b") if left else large_version("b")
print("ready", flush=True)
store.activate(store.publish(version))
"""


def versions_with_keys(client: Any, namespace: str) -> set[str]:
    """The versions that any key belongs to."""
    return {key.split(":")[1] for key in keys_of(client, namespace) if re.match(r"[^:]*:v\d+-", key)}


def check_after_a_kill(url: str, before: str) -> str:
    """What is current is whole; the same publish succeeds now. Returns the new version's name."""
    store = open_store(url)
    current = store.current()
    assert current is not None
    store.load(current).verify_digests()
    for manifest in store.versions():
        store.load(manifest.version)
    name = store.publish(small_version("b"))
    assert current in {before, name}
    store.load(name).verify_digests()
    return name


def test_a_publisher_killed_before_any_call_leaves_before_or_after(url: str, client: Any, namespace: str) -> None:
    """Every call to the server is one step. Afterwards nothing is left over."""
    store = open_store(url)
    first = store.publish(small_version())
    steps = 0
    for step in range(1, 200):
        store.activate(first)
        for manifest in store.versions():
            if manifest.version != first:
                client.delete(f"{namespace}:leases", f"{namespace}:previous:{{{namespace}:current}}")
                store.delete(manifest.version)
        victim = [sys.executable, "-c", VICTIM, url, str(step)]
        if subprocess.run(victim, stdout=subprocess.DEVNULL, check=False).returncode == 0:
            break
        steps += 1
        name = check_after_a_kill(url, first)
        left = versions_with_keys(client, namespace) - {first, name}
        assert left == set(), f"step {step}"
    assert steps > 20


def test_a_publisher_killed_at_any_moment_leaves_before_or_after(url: str, client: Any, namespace: str) -> None:
    """At random times; another version is published next, and pruning removes what the killed one left."""
    random = Random(0)
    store = open_store(url)
    first = store.publish(small_version())
    store.activate(first)
    for _ in range(KILLS):
        victim = subprocess.Popen([sys.executable, "-c", VICTIM, url, "0"], stdout=subprocess.PIPE)
        assert victim.stdout
        victim.stdout.readline()
        with contextlib.suppress(subprocess.TimeoutExpired):
            victim.wait(random.uniform(0, 0.15))
        victim.send_signal(signal.SIGKILL)
        victim.communicate()

        current = store.current()
        assert current is not None
        store.load(current)
        store.activate(first)
        store.load(store.publish(small_version(str(random.random()))))

    client.delete(f"{namespace}:leases")  # the dead no longer renew theirs; this is sooner
    prune(store, keep=1)

    kept = {manifest.version for manifest in store.versions()}
    assert versions_with_keys(client, namespace) == kept
    assert client.smembers(f"{namespace}:publishing:{{{namespace}:versions}}") == set()


def test_a_publisher_that_lives_is_not_swept(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However long others prune meanwhile."""
    monkeypatch.setattr(server_module, "PUBLISH_MS", 500)
    store, other = open_store(url), open_store(url)
    calls = 0

    def sweep(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            thread.start()

    thread = threading.Thread(target=other.sweep)
    name = store.publish(large_version(), sweep)
    thread.join()

    assert name.startswith("v1-")
    assert "swept" not in caplog.text
    store.load(name).verify_digests()


def test_a_dead_publishers_claim_is_swept_when_its_lease_ends(url: str, client: Any, namespace: str) -> None:
    """Not before: the sweep waits for it."""
    lease = f"v1-0123456789ab {'0' * 32}"
    client.sadd(f"{namespace}:publishing:{{{namespace}:versions}}", "v1-0123456789ab")
    client.set(f"{namespace}:v1-0123456789ab:path:5", b"1234")
    seconds, microseconds = client.time()
    client.zadd(f"{namespace}:leases", {lease: seconds * 1000 + microseconds // 1000 + 700})
    started = time.monotonic()

    open_store(url).sweep()

    assert time.monotonic() - started > 0.5
    assert keys_of(client, namespace) == set()


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


# -- copies on a host --


def test_a_copy_is_mapped_and_shared(url: str, tmp_path: Path, redis_server: RedisServer) -> None:
    """The second process that loads a version reads nothing of it from the server."""
    name = open_store(url).publish(large_version())
    cache = str(tmp_path / "cache")
    first, second = (open_store(url, cache=cache) for _ in range(2))

    loaded = first.load(name)
    with redis_server.client() as client:
        before = client.info("stats")["total_net_output_bytes"]
        again = second.load(name)
        sent = client.info("stats")["total_net_output_bytes"] - before

    assert loaded.folder == again.folder == f"{cache}/versions/{name}"
    assert isinstance(again.parts["path_items.npy"], memoryview)
    assert {k: bytes(v) for k, v in again.parts.items()} == large_version().parts
    assert sent < 20_000  # the manifest, and the answer of INFO
    assert Path(cache, "versions").stat().st_mode & 0o077 == 0


def test_a_damaged_copy_is_made_again(url: str, tmp_path: Path) -> None:
    """Whatever happened to the file."""
    name = open_store(url).publish(small_version())
    store = open_store(url, cache=str(tmp_path / "cache"))
    file = Path(str(store.load(name).folder)) / "path_items.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\7")

    assert {k: bytes(v) for k, v in store.load(name).parts.items()} == small_version().parts
    file.unlink()
    store.load(name).verify_digests()


def test_old_copies_go(url: str, tmp_path: Path) -> None:
    """All but the one loaded last and those that a process of the host holds."""
    store = open_store(url, cache=str(tmp_path / "cache"))
    names = [open_store(url).publish(small_version(str(i))) for i in range(4)]
    for name in names:
        store.load(name)
        store.hold([name] if name != names[2] else [])
        if name == names[1]:
            other = open_store(url, cache=str(tmp_path / "cache"))
            other.hold([name])

    assert [m.version for m in FolderStore(str(tmp_path / "cache")).versions()] == [names[1], names[3]]


def test_processes_that_want_different_versions_do_not_take_them_from_each_other(url: str, tmp_path: Path) -> None:
    """Four of them load three versions at random from one folder, where each removes what nobody holds."""
    names = [open_store(url).publish(small_version(str(i))) for i in range(3)]
    failures: list[Exception] = []

    def work(seed: int) -> None:
        random, store = Random(seed), open_store(url, cache=str(tmp_path / "cache"))
        try:
            for _ in range(30):
                store.load(name := random.choice(names)).verify_digests()
                store.hold([name])
        except Exception as error:  # noqa: BLE001 -- told below
            failures.append(error)
        store.hold([])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []


def test_a_copy_of_damaged_keys_is_refused(url: str, tmp_path: Path, client: Any, namespace: str) -> None:
    """Digests are checked on this host too."""
    name = open_store(url).publish(small_version())
    client.set(f"{namespace}:{name}:path:3", b"\1\0\0\0\2\0\0\0")

    with pytest.raises(VersionDamaged, match="path_items"):
        open_store(url, cache=str(tmp_path / "cache")).load(name)


# -- path lists read remotely --


def test_remote_lists_are_those_of_the_index(url: str, tmp_path: Path, client: Any) -> None:
    """The same items and lengths, capped by the server, unused paths empty and not asked for."""
    lists = large_version()
    name = open_store(url).publish(lists)
    index = open_store(url, cache=str(tmp_path / "cache"), remote=True, timeout=5).load(name).index
    assert len(index.path_items) == 0
    random = np.random.default_rng(0)
    for n in (1, 3):
        path_ids = random.integers(0, 20_000, 200)
        path_ids[:50] = random.choice(lists.index.path_ids, 50)

        client.config_resetstat()
        found, expected = index.lookup(path_ids, n), lists.index.lookup(path_ids, n)

        assert found.items.tolist() == expected.items.tolist()
        assert found.lengths.tolist() == expected.lengths.tolist()
        calls: Any = client.info("commandstats")
        assert calls["cmdstat_getrange"]["calls"] == np.isin(path_ids, lists.index.path_ids).sum()


@pytest.mark.parametrize("content", [None, b"\0\0\0\0", b"\0\0\0\0\2\0\0", b"\0\0\0\0\2\0\0\0\1\0\0\0"])
def test_a_remote_list_that_is_not_right_is_a_fault(
    url: str, tmp_path: Path, client: Any, namespace: str, content: bytes | None
) -> None:
    """Missing or cut short: not an empty path. Longer than its length in the version: the cap cuts it."""
    name = open_store(url).publish(small_version())
    index = open_store(url, cache=str(tmp_path / "cache"), remote=True, timeout=5).load(name).index
    key = f"{namespace}:{name}:path:3"
    client.delete(key)
    if content:
        client.set(key, content)

    if content and len(content) > 8:
        assert index.lookup(np.array([3]), 10).items.tolist() == [0, 2]
    else:
        with pytest.raises(StoreUnavailable, match="missing or cut short"):
            index.lookup(np.array([3]), 10)
    assert index.lookup(np.array([7]), 10).items.tolist() == [1]


def test_a_remote_list_of_items_that_are_not_there_is_a_fault(
    url: str, tmp_path: Path, client: Any, namespace: str
) -> None:
    """An index out of range would be another's item, or a crash."""
    name = open_store(url).publish(small_version())
    index = open_store(url, cache=str(tmp_path / "cache"), remote=True, timeout=5).load(name).index
    client.set(f"{namespace}:{name}:path:3", b"\0\0\0\0\3\0\0\0")

    with pytest.raises(StoreUnavailable, match=r"0\.\.2"):
        index.lookup(np.array([3]), 10)


def test_a_frozen_server_costs_one_timeout(own: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then requests are refused without asking it, and are answered again when it thaws."""
    monkeypatch.setattr(remote_module, "PAUSE", 3600)
    store = open_store(own.url, cache=str(tmp_path / "cache"), remote=True, timeout=0.5)
    assert isinstance(store, ServerStore)
    index = store.load(store.publish(small_version())).index
    index.lookup(np.array([3]), 10)
    asked = 0
    heads = store._server.heads

    def counted_heads(keys: Sequence[str], sizes: Sequence[int]) -> list[bytes]:
        nonlocal asked
        asked += 1
        return heads(keys, sizes)

    monkeypatch.setattr(store._server, "heads", counted_heads)
    own.freeze()
    try:
        for _ in range(100):
            with pytest.raises(StoreUnavailable):
                index.lookup(np.array([3]), 10)
    finally:
        own.thaw()
    assert asked == 1
    store._remote_paths._paused_until = 0.0  # the pause is over

    assert index.lookup(np.array([3]), 10).items.tolist() == [0, 2]


def test_a_server_restarted_empty_is_a_fault_until_published_again(own: RedisServer, tmp_path: Path) -> None:
    """What is loaded is told from what is there."""
    store = open_store(own.url, cache=str(tmp_path / "cache"), remote=True, timeout=5)
    index = store.load(store.publish(small_version())).index
    own.stop()
    with pytest.raises(StoreUnavailable):
        index.lookup(np.array([3]), 10)
    own.start()
    assert store.current() is None
    time_out = time.monotonic() + 20
    while time.monotonic() < time_out:
        with pytest.raises(StoreUnavailable) as caught:
            index.lookup(np.array([3]), 10)
        if "missing" in str(caught.value):
            break
    else:
        pytest.fail("the restarted server was not noticed")
    store.publish(small_version())

    assert index.lookup(np.array([3]), 10).items.tolist() == [0, 2]
