"""A replica's part in a store on a server: copies on its host, path lists read remotely, and faults of both."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from index_store.errors import StoreUnavailable, VersionDamaged
from index_store.folder.store import FolderStore
from index_store.redis import path_lists as remote_module
from index_store.redis.store import ServerStore
from index_store.store import open_store
from retrieval.paths.index import PathIndex
from tests.planted import large_version, small_version
from tests.redis_servers import RedisServer


def test_a_copy_is_mapped_and_shared(url: str, tmp_path: Path, redis_server: RedisServer) -> None:
    """A second process that loads a version on the same host reads nothing of its parts from the server."""
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
    """A file of the copy was changed, or deleted."""
    name = open_store(url).publish(small_version())
    store = open_store(url, cache=str(tmp_path / "cache"))
    file = Path(str(store.load(name).folder)) / "path_items.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\7")

    assert {k: bytes(v) for k, v in store.load(name).parts.items()} == small_version().parts
    file.unlink()
    store.load(name).verify_digests()


def test_old_copies_are_removed(url: str, tmp_path: Path) -> None:
    """Only the copy that was loaded last stays, and those that a process on the host holds."""
    store = open_store(url, cache=str(tmp_path / "cache"))
    names = [open_store(url).publish(small_version(str(i))) for i in range(4)]
    for name in names:
        store.load(name)
        store.hold([name] if name != names[2] else [])
        if name == names[1]:
            other = open_store(url, cache=str(tmp_path / "cache"))
            other.hold([name])

    assert [m.version for m in FolderStore(str(tmp_path / "cache")).versions()] == [names[1], names[3]]


def test_processes_do_not_remove_each_others_copies(url: str, tmp_path: Path) -> None:
    """Four threads load three versions at random into one folder, where each removes the copies that are not held."""
    names = [open_store(url).publish(small_version(str(i))) for i in range(3)]
    failures: list[Exception] = []

    def work(seed: int) -> None:
        random, store = Random(seed), open_store(url, cache=str(tmp_path / "cache"))
        try:
            for _ in range(30):
                store.load(name := random.choice(names)).verify_digests()
                store.hold([name])
        except Exception as error:  # noqa: BLE001 -- asserted on below
            failures.append(error)
        store.hold([])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []


def test_a_copy_of_damaged_keys_is_refused(url: str, tmp_path: Path, client: Any, namespace: str) -> None:
    """The digests are checked when the copy is made, too."""
    name = open_store(url).publish(small_version())
    client.set(f"{namespace}:{name}:path:3", b"\1\0\0\0\2\0\0\0")

    with pytest.raises(VersionDamaged, match="path_items"):
        open_store(url, cache=str(tmp_path / "cache")).load(name)


# -- path lists read remotely --


def test_remote_lists_are_those_of_the_index(url: str, tmp_path: Path, client: Any) -> None:
    """The same items and lengths, cut by the server; row -1, which is no path, is empty and is not requested."""
    lists = large_version()
    name = open_store(url).publish(lists)
    index = PathIndex.of(open_store(url, cache=str(tmp_path / "cache"), remote=True, timeout=5).load(name))
    assert len(index.path_items) == 0
    local, random = PathIndex.of(lists), np.random.default_rng(0)
    for n in (1, 3):
        rows = random.integers(-1, len(local.path_ids), 200)

        client.config_resetstat()
        remote, expected = index.read(rows, n), local.read(rows, n)

        assert remote.items.tolist() == expected.items.tolist()
        assert remote.lengths.tolist() == expected.lengths.tolist()
        calls: Any = client.info("commandstats")
        assert calls["cmdstat_getrange"]["calls"] == (rows >= 0).sum()


@pytest.mark.parametrize("content", [None, b"\0\0\0\0", b"\0\0\0\0\2\0\0", b"\0\0\0\0\2\0\0\0\1\0\0\0"])
def test_a_remote_list_of_the_wrong_length_is_a_fault(
    url: str, tmp_path: Path, client: Any, namespace: str, content: bytes | None
) -> None:
    """A list that is missing or cut short is an error, not an empty path; one that is too long is cut to its length."""
    name = open_store(url).publish(small_version())
    index = PathIndex.of(open_store(url, cache=str(tmp_path / "cache"), remote=True, timeout=5).load(name))
    key = f"{namespace}:{name}:path:3"
    client.delete(key)
    if content:
        client.set(key, content)

    if content and len(content) > 8:
        assert index.read(np.array([0]), 10).items.tolist() == [0, 2]
    else:
        with pytest.raises(StoreUnavailable, match="missing or cut short"):
            index.read(np.array([0]), 10)
    assert index.read(np.array([1]), 10).items.tolist() == [1]


def test_a_remote_list_of_unknown_items_is_a_fault(url: str, tmp_path: Path, client: Any, namespace: str) -> None:
    """An index out of range would be another item, or crash."""
    name = open_store(url).publish(small_version())
    index = PathIndex.of(open_store(url, cache=str(tmp_path / "cache"), remote=True, timeout=5).load(name))
    client.set(f"{namespace}:{name}:path:3", b"\0\0\0\0\3\0\0\0")

    with pytest.raises(StoreUnavailable, match=r"0\.\.2"):
        index.read(np.array([0]), 10)


def test_a_frozen_server_costs_one_timeout(own: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it, requests are refused without asking the server; after the pause they are answered again."""
    monkeypatch.setattr(remote_module, "PAUSE", 3600)
    store = open_store(own.url, cache=str(tmp_path / "cache"), remote=True, timeout=0.5)
    assert isinstance(store, ServerStore)
    index = PathIndex.of(store.load(store.publish(small_version())))
    index.read(np.array([0]), 10)
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
                index.read(np.array([0]), 10)
    finally:
        own.thaw()
    assert asked == 1
    store._remote_paths._paused_until = 0.0  # the pause is over

    assert index.read(np.array([0]), 10).items.tolist() == [0, 2]


def test_a_server_restarted_empty_is_a_fault_until_the_next_publish(own: RedisServer, tmp_path: Path) -> None:
    """The version is still loaded here, but its path lists are missing on the server."""
    store = open_store(own.url, cache=str(tmp_path / "cache"), remote=True, timeout=5)
    index = PathIndex.of(store.load(store.publish(small_version())))
    own.stop()
    with pytest.raises(StoreUnavailable):
        index.read(np.array([0]), 10)
    own.start()
    assert store.current() is None
    time_out = time.monotonic() + 20
    while time.monotonic() < time_out:
        with pytest.raises(StoreUnavailable) as caught:
            index.read(np.array([0]), 10)
        if "missing" in str(caught.value):
            break
    else:
        pytest.fail("the restarted server was not noticed")
    store.publish(small_version())

    assert index.read(np.array([0]), 10).items.tolist() == [0, 2]
