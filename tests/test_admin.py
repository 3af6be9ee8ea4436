"""The admin routes: they need the token of the settings, and are off if the settings have none; swaps and rollbacks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from index_store.folder.store import FolderStore
from service.http.app import create_app
from service.process.settings import Settings
from tests.conftest import Planted
from tests.planted import changed
from tests.test_api import ADMIN, TOKEN, assert_problem, make_app


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer \xe9".encode("latin-1")},
    ],
)
def test_admin_needs_the_token(tmp_path: Path, headers: Any) -> None:
    """Any other credential gets 401, even one that is not ASCII."""
    with TestClient(make_app(FolderStore(str(tmp_path)))) as client:
        for method, path in (("GET", "versions"), ("POST", "swap"), ("POST", "rollback")):
            response = client.request(method, f"/admin/v1/{path}", headers=headers)
            assert_problem(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("token", [None, ""])
def test_admin_is_off_without_a_token(tmp_path: Path, token: str | None) -> None:
    """If the settings have no token, the answer is 403, even to an empty credential."""
    store = FolderStore(str(tmp_path))
    with TestClient(
        create_app(Settings.model_validate({"store": str(tmp_path), "admin_token": token}), store)
    ) as client:
        for headers in ({}, {"Authorization": "Bearer "}, ADMIN):
            assert_problem(client.get("/admin/v1/versions", headers=headers), 403)


@pytest.fixture
def store(planted: Planted, other: Planted, tmp_path: Path) -> FolderStore:
    """A store with two versions; the first is current."""
    store = FolderStore(str(tmp_path / "store"))
    store.activate(store.publish(planted.version))
    store.publish(other.version)
    return store


@pytest.fixture
def names(store: FolderStore) -> tuple[str, str]:
    """The names of the two versions."""
    first, second = (manifest.version for manifest in store.versions())
    return first, second


@pytest.fixture
def client(store: FolderStore) -> Iterator[TestClient]:
    """A client of a service on this store."""
    with TestClient(make_app(store)) as opened:
        yield opened


def swap(client: TestClient, version: str, **more: Any) -> Any:
    """POST /admin/v1/swap."""
    return client.post("/admin/v1/swap", json={"version": version, **more}, headers=ADMIN)


def served(client: TestClient) -> str:
    """The name of the version that the service answers with."""
    name: str = client.post("/v1/retrieve", json={"history": [1]}).json()["version"]
    return name


def test_a_swap_moves_the_pointer_and_this_replica(
    client: TestClient, store: FolderStore, names: tuple[str, str]
) -> None:
    """Once the new version answers, the swap returns 200 with version and previous."""
    response = swap(client, names[1])

    assert (response.status_code, response.json()) == (200, {"version": names[1], "previous": names[0]})
    assert store.current() == served(client) == names[1]


def test_a_swap_with_the_wrong_expectation_is_409(
    client: TestClient, store: FolderStore, names: tuple[str, str]
) -> None:
    """The current version stays what it was; with the right expectation the swap succeeds."""
    assert_problem(swap(client, names[1], expected=names[1]), 409)
    assert store.current() == served(client) == names[0]

    assert swap(client, names[1], expected=names[0]).status_code == 200


@pytest.mark.parametrize("name", ["v9-000000000000", "no-such"])
def test_an_unknown_version_is_404(client: TestClient, names: tuple[str, str], name: str) -> None:
    """The old version is still served, and the message does not repeat the name."""
    response = swap(client, name)
    assert_problem(response, 404)
    assert name not in response.text
    assert served(client) == names[0]


@pytest.mark.parametrize("name", ["../etc/passwd", "http://evil/x", "", "V1", "a/b"])
def test_a_name_that_is_a_path_or_url_is_422(client: TestClient, name: str) -> None:
    """The message does not repeat the name."""
    response = swap(client, name)

    assert_problem(response, 422)
    assert not name or name not in response.text


def test_rollback(client: TestClient, store: FolderStore, names: tuple[str, str]) -> None:
    """A rollback returns to the version that was current before; without one it answers 409."""
    assert_problem(client.post("/admin/v1/rollback", headers=ADMIN), 409)
    swap(client, names[1])

    response = client.post("/admin/v1/rollback", headers=ADMIN)

    assert response.json() == {"version": names[0], "previous": names[1]}
    assert store.current() == served(client) == names[0]


def test_versions_are_listed_with_their_state(client: TestClient, store: FolderStore, names: tuple[str, str]) -> None:
    """Versions are current, previous, or failed with the reason."""
    bad = store.publish(changed(store.load(names[0]), golden=b'{"nonsense": 1}'))
    swap(client, names[1])
    assert_problem(swap(client, bad), 422)

    body = client.get("/admin/v1/versions", headers=ADMIN).json()

    states = {entry["version"]: entry["state"] for entry in body["versions"]}
    assert body["current"] == names[1]
    assert states == {names[0]: "previous", names[1]: "current", bad: "failed"}
    assert "golden" in next(entry["reason"] for entry in body["versions"] if entry["version"] == bad)
    assert {"version", "state", "created", "items", "paths"} <= set(body["versions"][0])


def test_of_racing_swaps_only_one_succeeds(client: TestClient, store: FolderStore, names: tuple[str, str]) -> None:
    """Of eight swaps that expect the same version, one gets 200 and seven get 409."""
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
