"""Versions swap under load: no request fails, none mixes versions, and what is bad is never served."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from fastapi.testclient import TestClient

from index_store.errors import StoreUnavailable
from index_store.folder.store import FolderStore
from index_store.version import Version
from service.metrics import Metrics
from service.serving import reloader as reloader_module
from service.serving.reloader import Reloader
from tests.conftest import Planted
from tests.planted import changed
from tests.test_api import ADMIN, assert_problem, make_app


@pytest.fixture
def store(planted: Planted, other: Planted, tmp_path: Path) -> FolderStore:
    """Two versions, the first current."""
    store = FolderStore(str(tmp_path / "store"))
    store.activate(store.publish(planted.version))
    store.publish(other.version)
    return store


@pytest.fixture
def names(store: FolderStore) -> tuple[str, str]:
    """Their names."""
    first, second = (manifest.version for manifest in store.versions())
    return first, second


@pytest.fixture
def client(store: FolderStore) -> Iterator[TestClient]:
    """A service of the store."""
    with TestClient(make_app(store)) as opened:
        yield opened


def swap(client: TestClient, version: str, **more: Any) -> Any:
    """POST /admin/v1/swap."""
    return client.post("/admin/v1/swap", json={"version": version, **more}, headers=ADMIN)


def served(client: TestClient) -> str:
    """The version that answers."""
    name: str = client.post("/v1/retrieve", json={"history": [1]}).json()["version"]
    return name


def test_a_swap_moves_the_pointer_and_this_replica(
    client: TestClient, store: FolderStore, names: tuple[str, str]
) -> None:
    """200 with version and previous, once the new version answers."""
    response = swap(client, names[1])

    assert (response.status_code, response.json()) == (200, {"version": names[1], "previous": names[0]})
    assert store.current() == served(client) == names[1]


def test_a_swap_with_the_wrong_expectation_is_409(
    client: TestClient, store: FolderStore, names: tuple[str, str]
) -> None:
    """And nothing changes."""
    assert_problem(swap(client, names[1], expected=names[1]), 409)
    assert store.current() == served(client) == names[0]

    assert swap(client, names[1], expected=names[0]).status_code == 200


@pytest.mark.parametrize("name", ["v9-000000000000", "no-such"])
def test_an_unknown_version_is_404(client: TestClient, names: tuple[str, str], name: str) -> None:
    """And the old one serves on."""
    response = swap(client, name)
    assert_problem(response, 404)
    assert name not in response.text
    assert served(client) == names[0]


@pytest.mark.parametrize("name", ["../etc/passwd", "http://evil/x", "", "V1", "a/b"])
def test_a_name_that_is_a_path_or_url_is_422(client: TestClient, name: str) -> None:
    """It never reaches the store, and is not repeated."""
    response = swap(client, name)

    assert_problem(response, 422)
    assert not name or name not in response.text


def test_rollback(client: TestClient, store: FolderStore, names: tuple[str, str]) -> None:
    """To the version that was current before; with none, 409."""
    assert_problem(client.post("/admin/v1/rollback", headers=ADMIN), 409)
    swap(client, names[1])

    response = client.post("/admin/v1/rollback", headers=ADMIN)

    assert response.json() == {"version": names[0], "previous": names[1]}
    assert store.current() == served(client) == names[0]


def test_versions_tell_their_state(client: TestClient, store: FolderStore, names: tuple[str, str]) -> None:
    """current, previous, available, and failed with the reason."""
    bad = store.publish(changed(store.load(names[0]), golden=b'{"nonsense": 1}'))
    swap(client, names[1])
    assert_problem(swap(client, bad), 422)

    body = client.get("/admin/v1/versions", headers=ADMIN).json()

    states = {entry["version"]: entry["state"] for entry in body["versions"]}
    assert body["current"] == names[1]
    assert states == {names[0]: "previous", names[1]: "current", bad: "failed"}
    assert "golden" in next(entry["reason"] for entry in body["versions"] if entry["version"] == bad)
    assert {"version", "state", "created", "items", "paths"} <= set(body["versions"][0])


def test_the_pointer_is_followed(store: FolderStore, names: tuple[str, str]) -> None:
    """A version activated elsewhere is served after the next look, a deleted pointer changes nothing."""

    async def follow() -> list[str]:
        reloader = Reloader(store, 60, Metrics())
        await reloader.follow()
        seen = [reloader.retriever.name]
        store.activate(names[1])
        await reloader.follow()
        seen.append(reloader.retriever.name)
        (store.folder / "CURRENT").unlink()
        await reloader.follow()
        return [*seen, reloader.retriever.name]

    assert asyncio.run(follow()) == [names[0], names[1], names[1]]


def test_a_store_that_does_not_answer_changes_nothing(
    store: FolderStore, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is away the loaded version serves; then the pointer is followed again."""

    def away() -> str:
        raise StoreUnavailable("away")

    async def follow() -> list[str]:
        reloader = Reloader(store, 60, Metrics())
        await reloader.follow()
        store.activate(names[1])
        with monkeypatch.context() as patch:
            patch.setattr(store, "current", away)
            await reloader.follow()
            seen = [reloader.retriever.name]
        await reloader.follow()
        return [*seen, reloader.retriever.name]

    assert asyncio.run(follow()) == list(names)


def test_a_thread_that_cannot_be_started_ends_nothing(
    store: FolderStore, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pointer is followed, and versions are held, when there is room for threads again."""
    failed: set[str] = set()

    def once(name: str) -> Callable[..., Any]:
        work = getattr(store, name)

        def fail_once(*arguments: Any) -> Any:
            if name not in failed:
                failed.add(name)
                raise RuntimeError("can't start new thread")
            return work(*arguments)

        return fail_once

    async def follow() -> str:
        reloader = Reloader(store, 0.01, Metrics())
        for name in ("wait", "hold"):
            monkeypatch.setattr(store, name, once(name))
        monkeypatch.setattr("service.serving.reloader.HOLD_SECONDS", 0.01)
        tasks = [asyncio.create_task(reloader.run()), asyncio.create_task(reloader.keep())]
        async with asyncio.timeout(30):
            while failed != {"wait", "hold"}:
                await asyncio.sleep(0)
            store.activate(names[1])
            while reloader._serving is None or reloader.retriever.name != names[1] or names[1] not in store._held:
                await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        return reloader.retriever.name

    assert asyncio.run(follow()) == names[1]


def third_version(version: Version) -> Version:
    """One that answers like `version`, under another name."""
    model = onnx.load_from_string(bytes(version.parts["model.onnx"]))
    model.doc_string = "third"
    return changed(version, model=model.SerializeToString())


def test_a_rollback_waits_for_no_load_and_what_was_loaded_late_is_not_served(
    store: FolderStore, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large version is loading when all are told to go back: they go back, and stay."""
    third = store.publish(third_version(store.load(names[0])))
    load, started, gate = store.load, threading.Event(), threading.Event()

    def slow(name: str) -> Version:
        if name == third:
            started.set()
            assert gate.wait(30)
        return load(name)

    monkeypatch.setattr(store, "load", slow)

    async def go_back() -> tuple[dict[str, Any], str]:
        reloader = Reloader(store, 60, Metrics())
        await reloader.follow()
        await reloader.swap(names[1], ...)
        store.activate(third)
        following = asyncio.create_task(reloader.follow())
        await asyncio.to_thread(started.wait)
        async with asyncio.timeout(30):
            answer = await reloader.rollback()
        gate.set()
        await following
        return answer, reloader.retriever.name

    assert asyncio.run(go_back()) == ({"version": names[1], "previous": third}, names[1])


def test_what_is_in_use_is_held_also_while_a_version_loads(
    store: FolderStore, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Served, loading, and what a request still holds although two swaps have passed."""
    monkeypatch.setattr(reloader_module, "HOLD_SECONDS", 0)
    third = store.publish(third_version(store.load(names[0])))
    held: list[set[str]] = []
    load, gate = store.load, threading.Event()

    def hold(versions: Collection[str]) -> None:
        held.append(set(versions))
        if held[-1] == {*names, third}:
            gate.set()

    def slow(name: str) -> Version:
        assert name != third or gate.wait(30)
        return load(name)

    monkeypatch.setattr(store, "hold", hold)
    monkeypatch.setattr(store, "load", slow)

    async def swap_twice() -> None:
        reloader = Reloader(store, 60, Metrics())
        keeping = asyncio.create_task(reloader.keep())
        await reloader.follow()
        request = [reloader.retriever]
        await reloader.swap(names[1], ...)
        await reloader.swap(third, ...)
        request.clear()
        gc.collect()
        async with asyncio.timeout(30):
            while held[-1] != {names[1], third}:
                await asyncio.sleep(0)
        keeping.cancel()

    asyncio.run(swap_twice())


def test_of_racing_swaps_all_but_one_are_told(client: TestClient, store: FolderStore, names: tuple[str, str]) -> None:
    """Eight swaps that expect the same version: one 200, seven 409."""
    statuses: list[int] = []
    barrier = threading.Barrier(8)

    def race() -> None:
        barrier.wait()
        statuses.append(swap(client, names[1], expected=names[0]).status_code)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(statuses) == [200] + [409] * 7
    assert served(client) == names[1]
