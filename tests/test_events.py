"""POST /v1/events: who may send events, what is refused, and that what was accepted is in the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from index_store.folder.store import FolderStore
from index_store.log import START
from index_store.store import IndexStore, open_store
from retrieval.events import Event, read_events
from service.serving import event_log
from tests.conftest import Planted
from tests.test_api import ADMIN, assert_problem, make_app
from tests.test_catalogue import WRITER
from trainer.data.events import StoreEvents


@pytest.fixture
def store(planted: Planted, tmp_path: Path) -> FolderStore:
    """A store whose current version is the planted one."""
    store = FolderStore(str(tmp_path / "store"))
    store.activate(store.publish(planted.version))
    return store


def send(client: TestClient, *events: Any, **headers: Any) -> Any:
    """The response to events."""
    return client.post("/v1/events", json={"events": events}, headers=headers or WRITER)


def stored(store: IndexStore) -> list[list[Event]]:
    """The events in the store, record by record."""
    return [read_events(record.payload) for record in store.read(START, 100, "events")]


def test_events_are_stored_in_order(store: FolderStore) -> None:
    """A request is one record, as it was sent; the log of the catalogue has nothing of it."""
    full = {"item_id": 5, "history": [1, "9"], "context": {"country": "France", "age": None}, "time": 1_790_000_000_000}
    with TestClient(make_app(store, write_token="w")) as client:
        first = send(client, full, {"item_id": "7"})
        second = send(client, {"item_id": 1001, "history": []})
    assert (first.status_code, first.json()) == (202, {"accepted": 2})
    assert second.json() == {"accepted": 1}
    assert stored(store) == [
        [Event(5, [1, "9"], {"country": "France", "age": None}, 1_790_000_000_000), Event("7")],
        [Event(1001)],
    ]
    assert store.read(START, 100) == []


def test_who_may_send_events(store: FolderStore) -> None:
    """Only who has the write token; without the setting nobody. Nothing is stored."""
    with TestClient(make_app(store, write_token="w", admin_token="t")) as client:
        for headers in ({"Authorization": "Bearer wrong"}, ADMIN):
            refused = send(client, {"item_id": 1}, **headers)
            assert_problem(refused, 401)
            assert "write token" in refused.json()["detail"]
    with TestClient(make_app(store)) as client:
        refused = send(client, {"item_id": 1})
        assert_problem(refused, 403)
        assert "DR_WRITE_TOKEN" in refused.json()["detail"]
    assert stored(store) == []


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({}, "item_id"),
        ({"item_id": "abc"}, "events.1.item_id: expected an integer"),
        ({"item_id": 1, "history": [[]]}, "history"),
        ({"item_id": 1, "history": [1] * 1001}, "history"),
        ({"item_id": 1, "time": "yesterday"}, "time"),
        ({"item_id": 1, "context": {"a": [1]}}, "context"),
        ({"item_id": 1, "user": 7}, "unknown field"),
    ],
)
def test_one_wrong_event_refuses_all(store: FolderStore, event: Any, message: str) -> None:
    """The answer names the field; nothing of the request is stored."""
    with TestClient(make_app(store, write_token="w")) as client:
        refused = send(client, {"item_id": 1}, event)
        assert_problem(refused, 422)
        assert message in refused.text
        assert send(client).status_code == 422
        assert send(client, *[{"item_id": 1}] * 1001).status_code == 422
    assert stored(store) == []


def test_a_full_log_refuses_events_until_the_trainer_has_learned(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then requests are accepted again."""
    monkeypatch.setattr(event_log, "LOOK_SECONDS", 0.0)
    with TestClient(make_app(store, write_token="w", events=1)) as client:
        for _ in range(2):
            assert send(client, {"item_id": 1}).status_code == 202
        refused = send(client, {"item_id": 1})
        assert_problem(refused, 429)
        assert "dr-trainer follow" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) > 0
        source = StoreEvents(store)
        source.forget(source.read(2).place)
        assert send(client, {"item_id": 1}).status_code == 202
    assert store.log_end("events").seq == 3


def test_the_two_logs_of_a_store_are_apart(every_url: str) -> None:
    """Numbers, producers and trimming of one do not touch the other."""
    from tests.test_log import drafts, numbers, read_all

    store = open_store(every_url)
    if isinstance(store, FolderStore):
        store.folder.mkdir()
    assert store.append(drafts(1, 2)) == [1, 2]
    assert store.append(drafts(1), "events") == [1]  # the same number of the same producer: no repeat
    assert numbers(store.read(START, 10, "events")) == [1]
    assert numbers(read_all(store)) == [1, 2]
    store.trim(3, "events")
    assert numbers(read_all(store)) == [1, 2]
    assert (store.log_end("events").seq, store.log_end().seq) == (1, 2)
