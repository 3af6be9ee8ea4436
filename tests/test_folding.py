"""Folds while a replica serves: asked for over HTTP, or by itself when the overlay fills up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient

from index_store.errors import VersionDamaged
from index_store.folder.store import FolderStore
from index_store.log import Draft
from retrieval.changes import Delete, to_json
from retrieval.fold import fold_current
from service.serving import folding
from service.serving.reloader import Reloader
from tests.conftest import Planted
from tests.test_api import ADMIN, assert_problem, items_of, make_app
from tests.test_catalogue import WRITER, ask, delete, put, replica, store

__all__ = ["store"]  # a fixture


@pytest.fixture
def client(store: FolderStore) -> Iterator[TestClient]:
    """A replica."""
    with replica(store) as opened:
        yield opened


def test_a_fold_changes_no_answer(store: FolderStore, client: TestClient) -> None:
    """The version that is served then has all records; what comes later is applied to it."""
    put(client, {"item_id": 1001, "clicked_by": [[1, 5, 9], [13, 17]]}, {"item_id": 1002, "like": [2]})
    delete(client, 5, 6)
    first = store.current()
    before = [ask(client, history=[item], k=12) for item in (1, 2, 1001, 5)]
    folded = client.post("/admin/v1/fold", headers=ADMIN)
    assert folded.status_code == 200, folded.text
    document = folded.json()
    assert (document["previous"], document["records"]) == (first, 2)
    assert document["version"] == store.current() == client.get("/v1/info").json()["version"]
    for answer, item in zip(before, (1, 2, 1001, 5), strict=True):
        after = ask(client, history=[item], k=12)
        assert after.json()["version"] == document["version"]
        assert after.json()["seq"] == answer.json()["seq"] == 2
        assert items_of(after) == items_of(answer)
    assert client.post("/admin/v1/fold", headers=ADMIN).json()["records"] == 0  # nothing new
    assert delete(client, 1001)["seq"] == 3
    assert 1001 not in items_of(ask(client, history=[1, 9], k=12))
    assert client.post("/admin/v1/rollback", headers=ADMIN).json()["version"] == first
    assert not {5, 6, 1001} & {*items_of(ask(client, history=[1, 9], k=30))}
    assert 1002 in items_of(ask(client, history=[2], k=12))


def test_a_rollback_after_a_fold(store: FolderStore, client: TestClient, other: Planted) -> None:
    """It brings back the network before, which the replica then serves with what was put since."""
    first = store.current()
    second = store.publish(other.version)
    assert client.post("/admin/v1/swap", json={"version": second}, headers=ADMIN).status_code == 200
    put(client, {"item_id": 1001, "clicked_by": [[1, 5, 9], [13, 17]]})
    delete(client, 5)
    folded = client.post("/admin/v1/fold", headers=ADMIN).json()
    assert {*folded} == {"version", "previous", "records", "seconds"}

    document = client.post("/admin/v1/rollback", headers=ADMIN).json()
    assert document["previous"] == folded["version"]
    assert client.get("/v1/info").json()["version"] == document["version"]
    manifests = {manifest.version: manifest for manifest in store.versions()}
    back = manifests[document["version"]]
    assert back.parts["model.onnx"] == manifests[str(first)].parts["model.onnx"]
    assert back.covers == store.log_end()
    found = items_of(ask(client, history=[1, 5, 9], k=30))
    assert 1001 in found
    assert 5 not in found


def test_a_fold_that_another_process_makes(store: FolderStore, client: TestClient) -> None:
    """The second gets 409."""
    delete(client, 5)
    with store.lease("fold") as mine:
        assert mine
        assert_problem(client.post("/admin/v1/fold", headers=ADMIN), 409)
    assert client.post("/admin/v1/fold", headers=ADMIN).json()["records"] == 1


def test_a_full_overlay_is_folded_by_itself(store: FolderStore) -> None:
    """A third of the room is enough. Then there is room again."""
    app = make_app(FolderStore(str(store.folder)), write_token="w", new_items=12)
    with TestClient(app) as client:
        first = store.current()
        for item in range(1001, 1020):
            while (
                response := client.post("/v1/items", json={"items": [{"item_id": item, "like": [1]}]}, headers=WRITER)
            ).status_code == 429:
                assert wait_until(lambda: client.get("/v1/info").json()["version"] != first, 60)
            assert response.status_code == 200
        assert store.current() != first
        assert {*range(1001, 1020)} <= {*items_of(ask(client, history=[1], k=60))}


def test_a_fold_that_cannot_be_served(store: FolderStore, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version is deleted again, so that folds which fail do not fill the store."""
    delete(client, 5)
    before = [manifest.version for manifest in store.versions()]

    async def fail(*_: object) -> None:
        raise VersionDamaged("it cannot be opened")

    with monkeypatch.context() as broken:
        broken.setattr(Reloader, "swap", fail)
        assert_problem(client.post("/admin/v1/fold", headers=ADMIN), 422)
    assert [manifest.version for manifest in store.versions()] == before
    assert client.post("/admin/v1/fold", headers=ADMIN).json()["records"] == 1


def test_folded_versions_are_not_kept(store: FolderStore) -> None:
    """Only the current and the previous one are; versions of trainings are left to `dr-index prune`."""
    trained = store.current()
    for item in (5, 6, 7, 8):
        store.append([Draft("p", item, [to_json(Delete(item))])])
        fold_current(store)
    assert [manifest.version for manifest in store.versions()] == [trained, store.previous(), store.current()]


def test_the_process_that_folds_dies(store: FolderStore, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request gets an error, and the next fold succeeds."""
    delete(client, 5)
    with monkeypatch.context() as broken:
        broken.setattr(folding, "PROGRAM", "/does/not/exist.py")
        assert_problem(client.post("/admin/v1/fold", headers=ADMIN), 500)
    assert client.post("/admin/v1/fold", headers=ADMIN).json()["records"] == 1


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition holds within that time."""
    end = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return held
