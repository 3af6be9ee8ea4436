"""Behaviour that deliberate changes to the code showed to be untested: each of these tests was missing once."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from index_store.errors import StoreUnavailable, VersionDamaged, VersionInUse
from index_store.folder.store import FolderStore
from index_store.redis import client as redis_module
from index_store.redis import store as server_module
from index_store.redis.store import ServerStore
from index_store.store import open_store
from retrieval.paths.index import PathIndex
from retrieval.query import Answer, Query, Request, Unknown
from service.http.models import RetrieveRequest
from service.metrics import Metrics
from service.serving.pace import Pace
from service.serving.reloader import Reloader
from service.serving.retriever import Retriever
from tests.conftest import Planted
from tests.fleet import query_of
from tests.planted import changed, small_version
from tests.redis_servers import RedisServer
from tests.test_api import assert_problem, items_of, make_app

# -- the service --


class Stamped:
    """A retriever that puts its own number into every answer."""

    remote = False
    max_beam = 256
    pace = Pace(0.0, 0.0, 0.0)

    def __init__(self, number: int) -> None:
        self.number, self.name = number, f"v{number}-000000000000"

    @property
    def searcher(self) -> Any:
        """A searcher whose queries, answers and item names are this retriever's."""
        return SimpleNamespace(
            prepare=self.prepare, vocabulary=self, answer_once=self.answer_once, can_widen=lambda *_: False
        )

    def prepare(self, _: Request) -> tuple[Query, Unknown]:
        """A query whose k is this retriever's number."""
        nothing = np.empty(0, np.int64)
        return Query(nothing, [], [], self.number, 1, 1, nothing), Unknown(0, 0)

    def answer_once(self, queries: Sequence[Query]) -> list[Answer]:
        """Two items per query: this retriever's number, and the number of the retriever that prepared the query."""
        ones = np.ones(2, np.float32)
        return [Answer(np.array([self.number, query.k]), ones, ones, False, 1, 2, 2) for query in queries]

    def names(self, items: Any) -> list[str]:
        """Item names that begin with this version's name."""
        return [f"{self.name}: {item}" for item in items]


class Swapping:
    """A reloader that has swapped to a new version each time its retriever is read."""

    looks = 0

    @property
    def retriever(self) -> Stamped:
        """A new retriever on each read."""
        self.looks += 1
        return Stamped(self.looks)


@pytest.fixture
def swapping(tmp_path: Path) -> Iterator[TestClient]:
    """A service whose current version changes each time it is read."""
    with TestClient(make_app(FolderStore(str(tmp_path)))) as client:
        client.app_state["reloader"] = Swapping()
        yield client


@pytest.mark.parametrize("path", ["/v1/retrieve", "/v1/retrieve:batch"])
def test_a_request_during_a_swap_is_answered_by_one_version(swapping: TestClient, path: str) -> None:
    """The request is prepared, searched, named and described by the version that was in service when it began."""
    body: dict[str, Any] = {} if path == "/v1/retrieve" else {"requests": [{}, {}]}
    answer = swapping.post(path, json=body).json()

    for response in answer.get("responses", [answer]):
        assert response["version"] == "v1-000000000000"
        assert [c["item_id"] for c in response["candidates"]] == ["v1-000000000000: 1"] * 2


@pytest.mark.parametrize("path", ["/v1/retrieve", "/v1/retrieve:batch"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_failed_search_does_not_keep_its_version_alive(swapping: TestClient, path: str, *, remote: bool) -> None:
    """The error's traceback refers to the version that was searched; after the answer nothing may keep that version."""

    class Failing(Stamped):
        def answer_once(self, queries: Sequence[Query]) -> list[Answer]:
            raise StoreUnavailable("a list is missing")

    body: dict[str, Any] = {} if path == "/v1/retrieve" else {"requests": [{}, {}]}
    reloader = SimpleNamespace(retriever=Failing(1))
    reloader.retriever.remote = remote
    swapping.app_state["reloader"] = reloader
    version = weakref.ref(reloader.retriever)
    gc.disable()
    try:
        assert_problem(swapping.post(path, json=body), 503)
        reloader.retriever = Stamped(2)
        assert swapping.post(path, json=body).status_code == 200
        assert version() is None
    finally:
        gc.enable()


def test_a_draining_replica_is_not_ready_but_answers(swapping: TestClient) -> None:
    """/readyz answers 503, so that proxies look elsewhere; a request is still answered, with `Connection: close`."""
    assert swapping.get("/readyz").status_code == 200
    swapping.app_state["draining"].begun = True

    assert_problem(swapping.get("/readyz"), 503)
    answer = swapping.post("/v1/retrieve", json={})
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")


@pytest.mark.parametrize("path", ["/v1/retrieve", "/v1/retrieve:batch"])
def test_a_value_that_does_not_fit_is_not_repeated(swapping: TestClient, path: str) -> None:
    """No error repeats the value that was wrong, whichever field it is in: it may be a password."""
    for field in RetrieveRequest.model_fields:
        for value in (["s3cret" * 50], {"s3cret": ["s3cret"]}, "s3cret"):
            body = {field: value} if path == "/v1/retrieve" else {"requests": [{}, {field: value}]}
            response = swapping.post(path, json=body)

            assert_problem(response, 422)
            assert "s3cret" not in response.text, field


def test_the_whole_history_is_excluded_though_the_model_reads_only_its_end(planted: Planted, tmp_path: Path) -> None:
    """An item that a user bought long ago is not recommended again."""
    store = FolderStore(str(tmp_path))
    store.activate(store.publish(planted.version))
    history = list(range(2 * planted.version.manifest.history))
    with TestClient(make_app(store)) as client:
        items = items_of(client.post("/v1/retrieve", json={"history": history, "k": 40, "beam": 36, "per_path": 40}))
        query = query_of(Retriever(planted.version), history)

    assert items
    assert not set(items) & set(history)
    assert query.excluded.tolist() == history
    assert query.history.tolist() == history[-planted.version.manifest.history :]


def test_a_swap_to_a_version_that_cannot_be_loaded_fails(tmp_path: Path) -> None:
    """The current version stays: if the pointer moved, all replicas would follow and have nothing to serve."""
    store = FolderStore(str(tmp_path))
    good, bad = store.publish(small_version("good")), store.publish(small_version("bad"))
    store.activate(good)

    with pytest.raises(VersionDamaged, match=bad):
        asyncio.run(Reloader(store, 60, Metrics()).swap(bad, good))

    assert store.current() == good


def test_a_version_that_fails_its_golden_queries_is_not_served(planted: Planted) -> None:
    """Every part is well-formed and has the right digest; only the golden queries show that the weights changed."""
    weights = json.loads(bytes(planted.version.parts["reranker.json"]))
    weights["weights"]["logit"] *= 1.5

    with pytest.raises(VersionDamaged, match="golden query"):
        Retriever(changed(planted.version, reranker=json.dumps(weights).encode()))


# -- the store in a folder --


def test_files_are_synced_before_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version and its folder are synced before the rename, the folder above after it. The same for the pointer."""
    steps: list[tuple[str, str, int]] = []
    sync, replace = os.fsync, os.replace

    def traced_sync(descriptor: int) -> None:
        sync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append(("sync", path.name.partition("-")[0], 0 if path.is_dir() else os.fstat(descriptor).st_size))

    def traced_name(source: Path, target: Path) -> None:
        replace(source, target)
        steps.append(("name", target.name.partition("-")[0], 0))

    store = FolderStore(str(tmp_path / "store"))
    store.publish(small_version("first"))
    monkeypatch.setattr(os, "fsync", traced_sync)
    monkeypatch.setattr(os, "rename", traced_name)
    monkeypatch.setattr(os, "replace", traced_name)
    name = store.publish(small_version("second"))
    files = {("sync", file.name, file.stat().st_size) for file in (store.folder / "versions" / name).iterdir()}

    named = steps.index(("name", name.partition("-")[0], 0))
    assert files <= set(steps[:named])
    assert steps[named - 1] == ("sync", ".partial", 0)
    assert ("sync", "versions", 0) in steps[named:]
    steps.clear()
    store.activate(name)
    named = steps.index(("name", "CURRENT", 0))
    assert steps[named - 1] == ("sync", ".CURRENT", (store.folder / "CURRENT").stat().st_size)
    assert ("sync", "store", 0) in steps[named:]


# -- the store on a server --


def test_a_sweep_during_a_publish_lists_no_partial_version(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no step of the publish is the version listed before its publisher declares it complete."""
    store, sweeper = open_store(url), open_store(url)
    assert isinstance(sweeper, ServerStore)
    monkeypatch.setattr(sweeper._listing, "abandoned", lambda *_: False)  # as if every publisher were alive
    seen: list[Any] = []

    def sweep(done: int, total: int) -> None:
        sweeper.sweep()
        seen.append(sweeper.versions())

    name = store.publish(small_version(), sweep)

    assert len(seen) > 10
    assert seen == [[]] * len(seen)
    assert [manifest.version for manifest in store.versions()] == [name]


def test_holding_a_version_again_renews_its_lease(
    url: str, client: Any, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same version is held again after 30 s: its lease is written anew, and it cannot be deleted."""
    store = open_store(url)
    assert isinstance(store, server_module.ServerStore)
    name = store.publish(small_version())
    store.hold([name])
    client.delete(f"{namespace}:leases")
    later = time.monotonic() + 30
    monkeypatch.setattr(time, "monotonic", lambda: later)
    store.hold([name])

    with pytest.raises(VersionInUse):
        open_store(url).delete(name)


def test_a_request_tries_a_frozen_server_once(own: RedisServer, tmp_path: Path) -> None:
    """Each further try would keep the requests behind this one waiting."""
    store = open_store(own.url, cache=str(tmp_path / "cache"), remote=True, timeout=2)
    index = PathIndex.of(store.load(store.publish(small_version())))
    index.read(np.array([0]), 10)
    own.freeze()
    started = time.monotonic()
    try:
        with pytest.raises(StoreUnavailable):
            index.read(np.array([0]), 10)
    finally:
        own.thaw()

    assert 2 <= time.monotonic() - started < 6  # the driver itself would try three times


def test_threads_wait_for_a_free_connection(own: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads share two connections; while the server answers, each thread gets its list."""
    monkeypatch.setattr(redis_module, "CONNECTIONS", 2)
    store = open_store(own.url, cache=str(tmp_path / "cache"), remote=True, timeout=10)
    index = PathIndex.of(store.load(store.publish(small_version())))
    results: list[Any] = []

    def ask() -> None:
        try:
            results.append(index.read(np.array([0]), 10).items.tolist())
        except StoreUnavailable as error:
            results.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    with own.client() as client:
        client.client_pause(300)  # every thread asks before any is answered
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert results == [[0, 2]] * 8
