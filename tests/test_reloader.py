"""The states of a replica: what it serves when the pointer moves, the store fails, or a version cannot be loaded."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import shutil
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import onnx
import pytest

from index_store.errors import StoreUnavailable, VersionDamaged
from index_store.folder.store import FolderStore
from index_store.version import Version
from service.errors import NotReady
from service.metrics import Metrics
from service.serving.reloader import NO_VERSIONS, NONE_CURRENT, Refused, Reloader, Serving, Waiting
from tests.conftest import Planted
from tests.planted import changed


class Steered(FolderStore):
    """A store that a test watches, delays or breaks: `first[verb]` is called, with the verb's argument, before it."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.first: dict[str, Callable[[Any], None]] = {}
        self.held: list[set[str]] = []

    def _tell(self, verb: str, argument: object = None) -> None:
        self.first.get(verb, lambda _: None)(argument)

    def current(self) -> str | None:
        """See IndexStore."""
        self._tell("current")
        return super().current()

    def load(self, version: str) -> Version:
        """See IndexStore."""
        self._tell("load", version)
        return super().load(version)

    def wait(self, seconds: float) -> bool:
        """See IndexStore."""
        self._tell("wait")
        return super().wait(seconds)

    def hold(self, versions: Collection[str]) -> None:
        """See IndexStore."""
        self._tell("hold", versions)
        super().hold(versions)
        self.held.append(set(versions))


def serves(reloader: Reloader, name: str) -> bool:
    """Whether the reloader has loaded this version and answers with it."""
    return reloader.state == Serving(name) and reloader.retriever.name == name


def failing_once(error: Exception) -> Callable[[Any], None]:
    """A function that raises `error` on its first call only."""
    left = [error]

    def fail(_: object) -> None:
        if left:
            raise left.pop()

    return fail


def refuse_loads(store: Steered) -> list[str]:
    """Let every load from now on find a damaged version. Returns the names that are then loaded, as they come."""
    loads: list[str] = []

    def damaged(name: str) -> None:
        loads.append(name)
        raise VersionDamaged("half of it is missing")

    store.first["load"] = damaged
    return loads


@pytest.fixture
def store(planted: Planted, other: Planted, tmp_path: Path) -> Steered:
    """A store with two versions, the first current."""
    store = Steered(str(tmp_path / "store"))
    store.activate(store.publish(planted.version))
    store.publish(other.version)
    return store


@pytest.fixture
def names(store: FolderStore) -> tuple[str, str]:
    """The names of the store's two versions."""
    first, second = (manifest.version for manifest in store.versions())
    return first, second


def test_the_pointer_is_followed(store: Steered, names: tuple[str, str]) -> None:
    """A version activated elsewhere is served after the next look; after the pointer is deleted it is still served."""

    async def follow() -> None:
        reloader = Reloader(store, 60, Metrics())
        assert reloader.state == Waiting("the store has not answered yet")
        await reloader.follow()
        assert serves(reloader, names[0])
        store.activate(names[1])
        await reloader.follow()
        assert serves(reloader, names[1])
        (store.folder / "CURRENT").unlink()
        await reloader.follow()
        assert serves(reloader, names[1])

    asyncio.run(follow())


def test_a_store_without_a_current_version_is_waited_for(planted: Planted, tmp_path: Path) -> None:
    """The state gives the reason why nothing is served: there is no version, or none is current."""
    store = FolderStore(str(tmp_path))

    async def follow() -> None:
        reloader = Reloader(store, 60, Metrics())
        await reloader.follow()
        assert reloader.state == Waiting(NO_VERSIONS)
        name = store.publish(planted.version)
        await reloader.follow()
        assert reloader.state == Waiting(NONE_CURRENT)
        with pytest.raises(NotReady, match="no version is loaded: none of the store's versions is current"):
            reloader.retriever  # noqa: B018 -- looking raises
        store.activate(name)
        await reloader.follow()
        assert serves(reloader, name)

    asyncio.run(follow())


def test_a_store_that_does_not_answer_leaves_the_version_in_service(store: Steered, names: tuple[str, str]) -> None:
    """While the store is unavailable the loaded version answers; afterwards the pointer is followed again."""

    async def follow() -> None:
        reloader = Reloader(store, 60, Metrics())
        await reloader.follow()
        store.activate(names[1])
        store.first["current"] = failing_once(StoreUnavailable("away"))
        await reloader.follow()
        assert reloader.state == Waiting("the store cannot be read; see the log")
        assert reloader.retriever.name == names[0]
        await reloader.follow()
        assert serves(reloader, names[1])

    asyncio.run(follow())


def test_a_refused_version_is_loaded_again_after_a_while(store: Steered, names: tuple[str, str]) -> None:
    """It is not loaded at every look; meanwhile the previous version answers, and the list has the reason."""

    async def follow() -> None:
        reloader = Reloader(store, 60, Metrics())
        await reloader.follow()
        store.activate(names[1])
        loads = refuse_loads(store)
        await reloader.follow()
        await reloader.follow()
        assert loads == [names[1]]
        assert isinstance(reloader.state, Refused)
        assert (reloader.state.version, reloader.retriever.name) == (names[1], names[0])
        listed = {entry["version"]: entry for entry in (await reloader.versions())["versions"]}
        assert (listed[names[1]]["state"], listed[names[1]]["reason"]) == ("failed", "half of it is missing")

        reloader.state = dataclasses.replace(reloader.state, until=0.0)
        await reloader.follow()
        assert loads == [names[1]] * 2
        assert isinstance(reloader.state, Refused)

        reloader.state = dataclasses.replace(reloader.state, until=0.0)
        del store.first["load"]
        await reloader.follow()
        assert serves(reloader, names[1])

    asyncio.run(follow())


def test_a_refused_version_is_not_loaded_each_time_the_store_comes_back(store: Steered, names: tuple[str, str]) -> None:
    """The refusal outlasts a store that does not answer: one load, although the store comes and goes three times."""

    async def follow() -> None:
        reloader = Reloader(store, 60, Metrics())
        await reloader.follow()
        store.activate(names[1])
        loads = refuse_loads(store)
        await reloader.follow()
        for _ in range(3):
            store.first["current"] = failing_once(StoreUnavailable("away"))
            await reloader.follow()
            await reloader.follow()

        assert loads == [names[1]]
        assert isinstance(reloader.state, Refused)

    asyncio.run(follow())


def test_a_refusal_ends_when_the_store_has_gone(planted: Planted, tmp_path: Path) -> None:
    """Nothing is served and the store's folder vanishes: the state gives that reason, not the old refusal."""
    store = Steered(str(tmp_path / "store"))
    store.activate(store.publish(planted.version))
    store.first["load"] = failing_once(VersionDamaged("half of it is missing"))

    async def follow() -> None:
        reloader = Reloader(store, 60, Metrics())
        await reloader.follow()
        assert isinstance(reloader.state, Refused)
        shutil.rmtree(store.folder)
        await reloader.follow()
        assert str(reloader).endswith("nothing to serve: the store's folder does not exist; see the log")

    asyncio.run(follow())


def test_a_version_of_an_unknown_kind_is_refused_as_such(planted: Planted, tmp_path: Path) -> None:
    """Its model is not tried, because the trial feeds only known inputs; the reason says that a release is needed."""
    store = FolderStore(str(tmp_path))
    manifest = dataclasses.replace(planted.version.manifest, kind="graph")
    store.activate(store.publish(dataclasses.replace(planted.version, manifest=manifest)))

    async def follow() -> None:
        reloader = Reloader(store, 60, Metrics())
        await reloader.follow()
        assert isinstance(reloader.state, Refused)
        assert "format that this release does not read" in reloader.state.reason
        (refusal,) = reloader.loader.refused.values()
        assert "a structure of kind 'graph', but this release opens paths only; upgrade it" in refusal

    asyncio.run(follow())


def test_a_version_is_loaded_again_at_once_after_a_failure_of_the_store(store: Steered, names: tuple[str, str]) -> None:
    """The next look loads it again, because a failure of the store does not count as a refusal of the version."""

    async def follow() -> None:
        reloader = Reloader(store, 60, Metrics())
        store.first["load"] = failing_once(StoreUnavailable("away"))
        await reloader.follow()
        assert isinstance(reloader.state, Refused)
        assert reloader.state.reason == "the store cannot be read; see the log"
        assert reloader.loader.refused == {}
        await reloader.follow()
        assert serves(reloader, names[0])

    asyncio.run(follow())


def test_a_refused_version_does_not_delay_the_next_one(store: Steered, names: tuple[str, str]) -> None:
    """After a version was refused, another that is made current, elsewhere or by a swap, is loaded at once."""

    async def follow(*, swap: bool) -> None:
        reloader = Reloader(store, 60, Metrics())
        store.activate(names[0])
        store.first["load"] = failing_once(VersionDamaged("half of it is missing"))
        await reloader.follow()
        assert isinstance(reloader.state, Refused)
        if swap:
            await reloader.swap(names[1], ...)
        else:
            store.activate(names[1])
            await reloader.follow()
        assert serves(reloader, names[1])

    asyncio.run(follow(swap=False))
    asyncio.run(follow(swap=True))


def test_a_thread_that_cannot_be_started_ends_no_task(store: Steered, names: tuple[str, str]) -> None:
    """Once threads can be started again, the pointer is followed and versions are held."""
    store.first = {verb: failing_once(RuntimeError("can't start new thread")) for verb in ("wait", "hold")}

    async def follow() -> None:
        reloader = Reloader(store, 0.01, Metrics())
        tasks = [asyncio.create_task(reloader.run()), asyncio.create_task(reloader.holding.keep(0.01))]
        await reloader.first_look_done.wait()
        store.activate(names[1])
        async with asyncio.timeout(30):
            while not serves(reloader, names[1]) or names[1] not in store.held[-1]:
                await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()

    asyncio.run(follow())


def third_version(version: Version) -> Version:
    """A version that answers like `version`, under another name."""
    model = onnx.load_from_string(bytes(version.parts["model.onnx"]))
    model.doc_string = "third"
    return changed(version, model=model.SerializeToString())


@pytest.mark.parametrize("damaged", [False, True])
def test_a_rollback_does_not_wait_for_a_load_and_is_not_undone_by_it(
    store: Steered, names: tuple[str, str], *, damaged: bool
) -> None:
    """A rollback during a slow load answers at once; once the load ends, well or badly, its version is not served."""
    third = store.publish(third_version(store.load(names[0])))
    started, gate = threading.Event(), threading.Event()

    def slow(name: str) -> None:
        if name == third:
            started.set()
            assert gate.wait(30)
            if damaged:
                raise VersionDamaged("half of it is missing")

    async def go_back() -> None:
        reloader = Reloader(store, 60, Metrics())
        await reloader.follow()
        await reloader.swap(names[1], ...)
        store.activate(third)
        store.first["load"] = slow
        following = asyncio.create_task(reloader.follow())
        await asyncio.to_thread(started.wait)
        async with asyncio.timeout(30):
            assert await reloader.rollback() == {"version": names[1], "previous": third}
        gate.set()
        await following
        assert serves(reloader, names[1])

    asyncio.run(go_back())


def test_swaps_to_the_same_version_share_one_load(store: Steered, names: tuple[str, str]) -> None:
    """Eight swaps at once all succeed, and the version is loaded once."""
    loads: list[str] = []
    store.first["load"] = loads.append

    async def swap() -> None:
        reloader = Reloader(store, 60, Metrics())
        await asyncio.gather(*(reloader.swap(names[1], ...) for _ in range(8)))

    asyncio.run(swap())

    assert loads == [names[1]]


def test_versions_in_use_are_held_while_another_loads(store: Steered, names: tuple[str, str]) -> None:
    """Held are the served version, the one being loaded, and one that a request still uses after two swaps."""
    third = store.publish(third_version(store.load(names[0])))
    gate = threading.Event()

    def see(held: Collection[str]) -> None:
        if set(held) == {*names, third}:
            gate.set()

    def slow(name: str) -> None:
        assert name != third or gate.wait(30)

    async def swap_twice() -> None:
        reloader = Reloader(store, 60, Metrics())
        keeping = asyncio.create_task(reloader.holding.keep(0))
        await reloader.follow()
        request = [reloader.retriever]
        store.first = {"hold": see, "load": slow}
        await reloader.swap(names[1], ...)
        await reloader.swap(third, ...)
        request.clear()
        gc.collect()
        async with asyncio.timeout(30):
            while store.held[-1] != {names[1], third}:
                await asyncio.sleep(0)
        keeping.cancel()

    asyncio.run(swap_twice())
