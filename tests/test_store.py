"""The contract of a store, tested on every backend."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from index_store.errors import (
    IndexStoreError,
    InvalidName,
    PointerMoved,
    VersionDamaged,
    VersionInUse,
    VersionNotFound,
)
from index_store.folder.store import FolderStore
from index_store.store import IndexStore, open_store, prune, rollback
from tests.planted import small_version


@pytest.fixture
def store(every_url: str) -> IndexStore:
    """An empty store of each backend."""
    return open_store(every_url)


def test_a_store_begins_empty(store: IndexStore) -> None:
    """It has no versions, and neither a current nor a previous one."""
    assert store.versions() == []
    assert store.current() is None
    assert store.previous() is None


def test_a_published_version_is_loaded_unchanged(store: IndexStore) -> None:
    """Every part comes back byte for byte, with the manifest."""
    version = small_version()
    name = store.publish(version)

    loaded = store.load(name)

    assert {part: bytes(content) for part, content in loaded.parts.items()} == version.parts
    assert loaded.manifest == version.named(1).manifest
    assert [m.version for m in store.versions()] == [name]


def test_publishing_does_not_activate(store: IndexStore) -> None:
    """Only `activate` moves the pointer."""
    store.publish(small_version())

    assert store.current() is None


def test_version_numbers_rise(store: IndexStore) -> None:
    """Each new version has the next number, and versions come oldest first."""
    names = [store.publish(small_version(str(i))) for i in range(11)]

    assert [name.split("-")[0] for name in names] == [f"v{i}" for i in range(1, 12)]
    assert [m.version for m in store.versions()] == names


def test_the_same_bytes_are_stored_once(store: IndexStore) -> None:
    """Publishing a version again returns the name that it has."""
    name = store.publish(small_version())

    assert store.publish(small_version()) == name
    assert len(store.versions()) == 1


def test_progress_ends_at_the_total(store: IndexStore) -> None:
    """The callback gets the bytes done, which rise, and the bytes in total."""
    calls: list[tuple[int, int]] = []
    store.publish(small_version(), lambda done, total: calls.append((done, total)))

    done, totals = zip(*calls, strict=True)
    assert list(done) == sorted(set(done))
    assert {done[-1]} == set(totals)


def test_a_damaged_version_is_not_published(store: IndexStore) -> None:
    """A version that fails its checks is not listed."""
    version = small_version()
    version.parts["path_ids.npy"] = b"nonsense"  # type: ignore[index]

    with pytest.raises(VersionDamaged):
        store.publish(version)

    assert store.versions() == []


def test_activate_returns_the_version_before(store: IndexStore) -> None:
    """The new version becomes the current one, the version before it the previous one."""
    first, second = store.publish(small_version("1")), store.publish(small_version("2"))

    assert store.activate(first) is None
    assert store.activate(second) == first
    assert (store.current(), store.previous()) == (second, first)


def test_activating_the_current_version_changes_nothing(store: IndexStore) -> None:
    """The previous version stays what it was."""
    first, second = store.publish(small_version("1")), store.publish(small_version("2"))
    store.activate(first)
    store.activate(second)

    assert store.activate(second) == second
    assert store.previous() == first


def test_activate_with_another_version_to_roll_back_to(store: IndexStore) -> None:
    """The version that is named then is the previous one."""
    first, second, third = (store.publish(small_version(text)) for text in "123")
    store.activate(first)

    assert store.activate(second, expected=first, previous=third) == first
    assert (store.current(), store.previous()) == (second, third)
    assert rollback(store) == (third, second)


def test_activate_compares_and_sets(store: IndexStore) -> None:
    """The pointer moves only if `expected` is the current version; None stands for no current version."""
    first, second = store.publish(small_version("1")), store.publish(small_version("2"))
    with pytest.raises(PointerMoved):
        store.activate(first, expected=second)
    store.activate(first, expected=None)
    with pytest.raises(PointerMoved):
        store.activate(second, expected=None)
    with pytest.raises(PointerMoved):
        store.activate(second, expected=second)

    assert store.activate(second, expected=first) == first
    assert store.current() == second


def test_one_of_many_racing_activations_succeeds(store: IndexStore) -> None:
    """Eight threads expect the same version: one moves the pointer, the other seven get PointerMoved."""
    names = [store.publish(small_version(str(i))) for i in range(9)]
    store.activate(names[0])
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def race(name: str) -> None:
        barrier.wait()
        try:
            store.activate(name, expected=names[0])
            outcomes.append(name)
        except PointerMoved:
            outcomes.append("lost")

    threads = [threading.Thread(target=race, args=(name,)) for name in names[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outcomes.count("lost") == 7
    assert store.current() in outcomes


def test_simultaneous_publishes_all_succeed(store: IndexStore) -> None:
    """Threads that publish at the same time get different names, and complete versions."""
    names: list[str] = []
    threads = [
        threading.Thread(target=lambda i=i: names.append(store.publish(small_version(str(i))))) for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(names)) == 6
    assert sorted(names) == sorted(m.version for m in store.versions())
    for name in names:
        store.load(name)


def test_an_unknown_version_is_not_found(store: IndexStore) -> None:
    """All of `load`, `activate` and `delete` raise an error that names it."""
    missing = "v1-000000000000"
    for verb in (store.load, store.activate, store.delete):
        with pytest.raises(VersionNotFound, match=missing):
            verb(missing)


@pytest.mark.parametrize("name", ["../versions", "/etc", "", "v1/../v1", "a" * 65])
def test_a_name_is_never_a_path(store: IndexStore, name: str) -> None:
    """Anything but a plain name is refused before the store is touched."""
    for verb in (store.load, store.activate, store.delete):
        with pytest.raises(InvalidName):
            verb(name)


def test_delete(store: IndexStore) -> None:
    """A deleted version is no longer listed; a reader that had loaded it can go on using it."""
    first, second = store.publish(small_version("1")), store.publish(small_version("2"))
    store.activate(second)
    loaded = store.load(first)

    store.delete(first)

    assert [m.version for m in store.versions()] == [second]
    loaded.verify_digests()


def test_the_current_version_cannot_be_deleted(store: IndexStore) -> None:
    """Nothing of it is lost in the attempt."""
    name = store.publish(small_version())
    store.activate(name)

    with pytest.raises(VersionInUse):
        store.delete(name)

    store.load(name)


def test_rollback_goes_back_and_forth(store: IndexStore) -> None:
    """The version that was current before becomes current again; a second rollback undoes the first."""
    first, second = store.publish(small_version("1")), store.publish(small_version("2"))
    with pytest.raises(PointerMoved, match="nothing to roll back to"):
        rollback(store)
    store.activate(first)
    store.activate(second)

    assert rollback(store) == (first, second)
    assert rollback(store) == (second, first)


def test_prune_keeps_the_newest_versions_and_those_in_use(store: IndexStore) -> None:
    """The current and the previous version stay, however old they are."""
    names = [store.publish(small_version(str(i))) for i in range(6)]
    store.activate(names[1])
    store.activate(names[0])

    assert prune(store, keep=1) == names[2:5]
    assert [m.version for m in store.versions()] == [names[0], names[1], names[5]]
    assert prune(store, keep=0) == [names[5]]


def test_a_held_version_is_not_deleted(store: IndexStore, every_url: str) -> None:
    """No process can delete it until its holder releases it; prune skips it."""
    names = [store.publish(small_version(str(i))) for i in range(4)]
    holder = open_store(every_url)
    holder.hold([names[0], names[1]])
    holder.hold([names[0], "v99-000000000000"])

    with pytest.raises(VersionInUse, match=f"{names[0]} is held"):
        store.delete(names[0])
    assert prune(store, keep=1) == names[1:3]

    holder.hold([])
    store.delete(names[0])
    assert [m.version for m in store.versions()] == names[3:]


def test_sweeping_leaves_complete_versions(store: IndexStore) -> None:
    """The store is swept while it is empty, and again with a version in it."""
    store.sweep()
    name = store.publish(small_version())

    store.sweep()

    store.load(name).verify_digests()


def test_waiting_ends(store: IndexStore) -> None:
    """`wait` returns False after the time given, because the pointer has not moved."""
    assert store.wait(0.0) is False
    assert store.wait(0.01) is False


@pytest.mark.parametrize("seed", range(3))
def test_every_backend_acts_like_the_folder(store: IndexStore, tmp_path: Path, seed: int) -> None:
    """The same random verbs on both stores have the same results, errors and bytes."""
    random = Random(seed)
    oracle: IndexStore = FolderStore(str(tmp_path / "oracle"))
    names: dict[str, tuple[str, str]] = {}  # stamp -> its names in the two stores

    def both(verb: Callable[[IndexStore, int], Any]) -> None:
        outcomes = []
        for i, each in enumerate((oracle, store)):
            try:
                outcomes.append(verb(each, i))
            except IndexStoreError as error:
                outcomes.append(type(error))
        results = [stamps[i].get(o, o) if isinstance(o, str) else o for i, o in enumerate(outcomes)]
        assert results[0] == results[1]

    def step() -> None:
        stamp = str(random.randrange(6))
        first = names.get(stamp, ("v9-000000000000",) * 2)
        second = names.get(str(random.randrange(6)), ("v8-000000000000",) * 2)
        verb = random.choice(["publish", "activate", "expect", "rollback", "delete", "prune", "load"])
        if verb == "publish":
            names[stamp] = (oracle.publish(small_version(stamp)), store.publish(small_version(stamp)))
            for i in (0, 1):
                stamps[i][names[stamp][i]] = stamp
        elif verb == "activate":
            both(lambda each, i: each.activate(first[i]))
        elif verb == "expect":
            both(lambda each, i: each.activate(first[i], expected=second[i]))
        elif verb == "rollback":
            both(lambda each, i: stamps[i][rollback(each)[0]])
        elif verb == "delete":
            both(lambda each, i: each.delete(first[i]))
        elif verb == "prune":
            both(lambda each, i: [stamps[i][name] for name in prune(each, keep=3)])
        else:
            both(lambda each, i: {part: bytes(content) for part, content in each.load(first[i]).parts.items()})

    stamps: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for _ in range(60):
        step()
        both(lambda each, i: [stamps[i][m.version] for m in each.versions()])
        both(lambda each, i: each.current())
        both(lambda each, i: each.previous())


def test_urls(tmp_path: Path) -> None:
    """A plain path and file:// open the same folder; the error for another scheme does not repeat a password."""
    name = open_store(str(tmp_path)).publish(small_version())

    assert open_store(f"file://{tmp_path}").load(name).manifest.version == name
    with pytest.raises(InvalidName, match="'ftp'"):
        open_store("ftp://host/dir")
    for url in ("redis:user:hunter2@host", "redis:/user:hunter2@host/0", "user:hunter2@host://0"):
        with pytest.raises(InvalidName) as caught:
            open_store(url)
        assert "hunter2" not in str(caught.value)
