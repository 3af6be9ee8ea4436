"""Changes of the catalogue over HTTP: who may make them, and that every replica and every version has them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from index_store.errors import StoreUnavailable
from index_store.folder.store import FolderStore
from index_store.log import START, Draft
from service.http.app import create_app
from service.process.settings import Settings
from service.serving import follower
from tests.conftest import SMALL, Planted, train_planted
from tests.test_api import ADMIN, assert_problem, items_of, make_app

WRITER = {"Authorization": "Bearer w"}


@pytest.fixture
def store(planted: Planted, tmp_path: Path) -> FolderStore:
    """A store whose current version is the planted one."""
    store = FolderStore(str(tmp_path / "store"))
    store.activate(store.publish(planted.version))
    return store


def replica(store: FolderStore) -> TestClient:
    """A replica that allows writing, with a store object of its own. It has to be entered."""
    return TestClient(make_app(FolderStore(str(store.folder)), write_token="w"))


@pytest.fixture
def client(store: FolderStore) -> Iterator[TestClient]:
    """A replica."""
    with replica(store) as opened:
        yield opened


@pytest.fixture(scope="module")
def refusing(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A replica that several tests use, because it refuses everything that they send."""
    store = FolderStore(str(tmp_path_factory.mktemp("store")))
    store.activate(store.publish(planted.version))
    with replica(store) as opened:
        yield opened


def ask(client: TestClient, **fields: Any) -> Any:
    """A retrieve request with a history of group 1."""
    response = client.post("/v1/retrieve", json={"history": [1, 5], "k": 6, **fields})
    assert response.status_code == 200, response.text
    return response


def delete(client: TestClient, *items: int | str) -> Any:
    """The answer to a delete."""
    response = client.post("/v1/items:delete", json={"item_ids": items}, headers=WRITER)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_deleted_item_is_not_answered(client: TestClient) -> None:
    """The next answer has it no more, and all others as before."""
    before = items_of(ask(client, k=8, beam=30))
    assert ask(client).json()["seq"] == 0
    assert delete(client, before[0], before[2]) == {"seq": 1, "unknown": 0}

    answer = ask(client, beam=30)
    assert items_of(answer) == [before[1], *before[3:]]
    assert answer.json()["seq"] == 1


def test_what_is_not_there_is_counted(client: TestClient) -> None:
    """Its delete is written all the same, because another replica may have put it a moment ago. "x" can be no id."""
    assert delete(client, "x") == {"seq": 0, "unknown": 1}
    assert delete(client, 3, "3", 999) == {"seq": 1, "unknown": 1}
    assert delete(client, 3) == {"seq": 2, "unknown": 1}


def test_replicas_that_have_not_heard_of_each_other(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that was put on one replica can be deleted and changed on another, before that one has the record."""
    monkeypatch.setattr(follower, "SECONDS", 60)
    with replica(store) as first, replica(store) as second:
        put(first, {"item_id": 1001, "like": [1, 5]}, {"item_id": 1002, "like": [1, 5]})
        assert put(second, {"item_id": 1002, "expires": 2**45})["items"][0]["placed_by"] == "kept"
        seq = delete(second, 1001)["seq"]
        put(first, {"item_id": 1003, "like": [1]})
        for each in (first, second):
            found = items_of(ask(each, k=43, exclude_history=False))
            assert 1001 not in found
            assert 1002 in found
        assert seq == 3


def test_text_ids_are_named_as_in_requests(tmp_path: Path) -> None:
    """Blanks around an id, and 7.0 for 7, name the same item in a write as in a request."""
    trained = train_planted(tmp_path / "text", SMALL, text_ids=True)
    store = FolderStore(str(tmp_path / "store"))
    store.activate(store.publish(trained.version))
    with replica(store) as client:
        everything = {"history": ["item-005"], "k": 40, "exclude_history": False}
        delete(client, " item-001 ")
        assert "item-001" not in items_of(ask(client, **everything))
        assert put(client, {"item_id": "item-002 ", "like": ["item-005"]})["items"][0]["item_id"] == "item-002"
        assert put(client, {"item_id": " new "})["items"][0]["item_id"] == "new"
        assert put(client, {"item_id": 77})["items"][0]["item_id"] == "77"
        assert len(items_of(ask(client, **everything))) == 40
        twice = {"items": [{"item_id": "a"}, {"item_id": "a "}]}
        assert_problem(client.post("/v1/items", json=twice, headers=WRITER), 422)
        assert_problem(client.post("/v1/items", json={"items": [{"item_id": " "}]}, headers=WRITER), 422)


def test_writing_needs_its_token(store: FolderStore, client: TestClient) -> None:
    """Without DR_WRITE_TOKEN it is off. The admin token is another one."""
    body = {"item_ids": [1]}
    for headers in ({}, ADMIN, {"Authorization": "Bearer wrong"}, {"Authorization": "w"}):
        assert_problem(client.post("/v1/items:delete", json=body, headers=headers), 401)
    with TestClient(create_app(Settings.model_validate({"store": str(store.folder)}), store)) as closed:
        problem = assert_problem(closed.post("/v1/items:delete", json=body, headers=WRITER), 403)
    assert "DR_WRITE_TOKEN" in problem["detail"]
    assert store.read(START, 1) == []


@pytest.mark.parametrize(
    "body", [{}, {"item_ids": []}, {"item_ids": [1.5]}, {"item_ids": [""]}, {"item_ids": [1] * 1001}, {"items": [1]}]
)
def test_wrong_bodies(refusing: TestClient, body: Any) -> None:
    """Each is a 422, and nothing is written."""
    assert_problem(refusing.post("/v1/items:delete", json=body, headers=WRITER), 422)
    assert ask(refusing).json()["seq"] == 0


def test_another_replica_follows(store: FolderStore, client: TestClient) -> None:
    """With `min_seq` it has the record; a replica that starts later has it at once."""
    with replica(store) as other:
        gone = items_of(ask(other))[0]
        seq = delete(client, gone)["seq"]
        answer = ask(other, min_seq=seq)
        assert gone not in items_of(answer)
        assert answer.json()["degraded"]["stale"] is False
    with replica(store) as late:
        assert gone not in items_of(ask(late))
        assert ask(late).json()["seq"] == seq


def test_a_record_that_does_not_come(client: TestClient) -> None:
    """The answer comes before the deadline and says that it is stale."""
    answer = ask(client, min_seq=7, timeout_ms=500).json()
    assert answer["degraded"]["stale"] is True
    assert answer["seq"] == 0
    assert len(answer["candidates"]) == 6


def test_swap_and_rollback_bring_nothing_back(store: FolderStore, planted: Planted, other: Planted) -> None:
    """Deletes hold in the version that is swapped in, and in the one that is rolled back to."""
    second = store.publish(other.version)
    with replica(store) as client:
        gone = {*items_of(ask(client, k=3))}
        seq = delete(client, *gone)["seq"]
        for verb, body in (("swap", {"version": second}), ("rollback", None), ("rollback", None)):
            assert client.post(f"/admin/v1/{verb}", json=body, headers=ADMIN).status_code == 200
            answer = ask(client, k=30)
            assert not gone & {*items_of(answer)}
            assert answer.json()["seq"] == seq
            one = items_of(ask(client))[0]
            seq = delete(client, one)["seq"]
            gone.add(one)


def test_writers_during_swaps(store: FolderStore, other: Planted) -> None:
    """During swaps, no answer that begins after a delete was answered has the item, and `seq` only rises."""
    first, second = str(store.current()), store.publish(other.version)
    with replica(store) as client:
        done = threading.Event()
        deleted: list[int] = []

        def write() -> None:
            for item in range(30):
                delete(client, item)
                deleted.append(item)
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        last, swaps = 0, 0
        while not done.is_set() or swaps < 4:
            target = (second, first)[swaps % 2]
            assert client.post("/admin/v1/swap", json={"version": target}, headers=ADMIN).status_code == 200
            swaps += 1
            for _ in range(5):
                known = set(deleted)
                answer = ask(client, history=[38, 39], k=10, exclude_history=False)
                assert answer.json()["seq"] >= max(last, len(known))
                last = answer.json()["seq"]
                assert not known & {*items_of(answer)}
                assert len(items_of(answer)) == 10
        writer.join()
    assert last == 30


@pytest.mark.parametrize("verb", ["activate", "current"])
def test_a_swap_that_fails(store: FolderStore, other: Planted, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """The version in service goes on to get all records."""
    second = store.publish(other.version)
    with replica(store) as client:
        served = ask(client).json()["version"]

        def fail(*_: object) -> None:
            raise StoreUnavailable("the disk is gone")

        with monkeypatch.context() as broken:
            broken.setattr(FolderStore, verb, fail)
            assert_problem(client.post("/admin/v1/swap", json={"version": second}, headers=ADMIN), 503)
        gone = items_of(ask(client))[0]
        delete(client, gone)
        answer = ask(client)
        assert (answer.json()["version"], answer.json()["seq"]) == (served, 1)
        assert gone not in items_of(answer)


def test_writes_and_searches_at_once(client: TestClient) -> None:
    """While items are put again and deleted, every answer has k different items, and none that was excluded."""
    done = threading.Event()
    failures: list[str] = []

    def search(k: int) -> None:
        while not done.is_set():
            answer = items_of(ask(client, history=[1, 5], k=k, exclude=[9, 13], exclude_history=False))
            if len(answer) != k or len(set(answer)) != k or {9, 13} & {*answer}:
                failures.append(f"{k}: {answer}")

    threads = [threading.Thread(target=search, args=(k,)) for k in (5, 36)]
    for thread in threads:
        thread.start()
    for i in range(20):
        put(client, *({"item_id": item, "clicked_by": [[i % 4, 4 + i % 4]]} for item in (1, 9, 13, 17)))
        delete(client, 2)
        put(client, {"item_id": 2, "like": [6]})
    done.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_replica_whose_records_were_lost(store: FolderStore, client: TestClient) -> None:
    """If the log has other records than were applied, as after a crash of Redis, the replica takes those of the log."""
    (first, second, third) = items_of(ask(client, k=3))
    delete(client, first)
    (segment,) = (store.folder / "log").glob("*.log")
    backup = segment.read_bytes()
    delete(client, second)
    segment.write_bytes(backup)
    FolderStore(str(store.folder)).append([Draft("another", 1, [{"op": "delete", "item_id": third}])])

    assert client.portal
    reloader = client.app_state["reloader"]
    client.portal.call(reloader.follower.advance)
    client.portal.call(reloader.follow)
    answer = ask(client, beam=30)
    assert answer.json()["seq"] == 2
    assert second in items_of(answer)
    assert not {first, third} & {*items_of(answer)}


def test_a_log_that_is_damaged(store: FolderStore, client: TestClient) -> None:
    """What is served stays, and writers are told."""
    delete(client, 3)
    delete(client, 7)
    (segment,) = (store.folder / "log").glob("*.log")
    content = bytearray(segment.read_bytes())
    content[-200] ^= 1
    segment.write_bytes(content + content[-4:])
    with replica(store) as other:
        assert_problem(other.get("/readyz"), 503)
    assert ask(client).json()["seq"] == 2


def put(client: TestClient, *items: dict[str, Any]) -> Any:
    """The answer to a put."""
    response = client.post("/v1/items", json={"items": items}, headers=WRITER)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_new_item_is_answered(store: FolderStore, client: TestClient) -> None:
    """An item whose clicks, or whose like, are of a group is answered to users of the group, on every replica."""
    clicked = {"item_id": 1001, "clicked_by": [[1, 5, 9], [13, 17], [5, 21]]}
    like = {"item_id": "1002", "like": [2, 6]}
    answer = put(client, clicked, like)

    assert answer["seq"] == 1
    assert [(item["item_id"], item["placed_by"]) for item in answer["items"]] == [(1001, "clicks"), (1002, "like")]
    assert all(0 <= node < 6 for item in answer["items"] for path in item["paths"] for node in path)
    with replica(store) as other:
        for each in (client, other):
            assert 1001 in items_of(ask(each, history=[1, 9], k=12, min_seq=1))
            assert 1002 in items_of(ask(each, history=[2, 10], k=12, min_seq=1))
            assert 1001 not in items_of(ask(each, history=[1, 9, 1001], k=12))
            assert ask(each, history=[1001]).json()["coverage"]["unknown_history"] == 0


def test_an_item_that_exists_is_kept_or_placed_again(client: TestClient) -> None:
    """Without new evidence it stays where it is; with evidence it moves; a deleted one comes back only by a put."""
    place = put(client, {"item_id": 1})["items"][0]
    assert (place["placed_by"], len(place["paths"])) == ("kept", len(place["paths"]))
    assert place["paths"]
    moved = put(client, {"item_id": 1, "clicked_by": [[2, 6], [10, 14]]})["items"][0]
    assert moved["placed_by"] == "clicks"
    assert put(client, {"item_id": 1})["items"][0]["paths"] == sorted(moved["paths"])
    found = items_of(ask(client, history=[2, 6], k=40, exclude_history=False))
    assert found.count(1) == 1

    delete(client, 1)
    assert 1 not in items_of(ask(client, history=[2, 6], k=39, exclude_history=False))
    put(client, {"item_id": 1, "like": [2]})
    assert items_of(ask(client, history=[2, 6], k=40, exclude_history=False)).count(1) == 1


def test_an_item_of_which_nothing_is_known(client: TestClient) -> None:
    """It says so; it is in the catalogue, and is found when everything is asked for."""
    for item in ({"item_id": 1001}, {"item_id": 1002, "like": [999]}, {"item_id": 1003, "clicked_by": [[], [999]]}):
        assert put(client, item)["items"] == [{"item_id": item["item_id"], "paths": [], "placed_by": "none"}]
    assert {1001, 1002, 1003} <= {*items_of(ask(client, history=[], k=43))}


def test_items_expire(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item is in no answer from its time on. A later put can take the end away."""
    now = time.time()
    put(client, {"item_id": 1001, "like": [1, 5], "expires": round(1000 * (now + 1000))})
    put(client, {"item_id": 5, "expires": round(1000 * (now + 500))})
    everything = {"history": [1], "k": 41, "exclude_history": False}
    assert {5, 1001} <= {*items_of(ask(client, **everything))}
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: now + 700)
        assert 5 not in items_of(ask(client, **everything))
        assert 1001 in items_of(ask(client, **everything))
        assert put(client, {"item_id": 5})["items"][0]["placed_by"] == "kept"
        assert 5 in items_of(ask(client, **everything))
    put(client, {"item_id": 1001, "expires": 0})
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: now + 5000)
        assert 1001 in items_of(ask(client, **everything))


def test_a_new_item_in_another_network(store: FolderStore, client: TestClient, other: Planted) -> None:
    """After a swap it is placed again, from the same evidence."""
    put(client, {"item_id": 1001, "clicked_by": [[1, 5, 9], [13, 17], [5, 21]]})
    second = store.publish(other.version)
    assert client.post("/admin/v1/swap", json={"version": second}, headers=ADMIN).status_code == 200
    answer = ask(client, history=[1, 9], k=12)
    assert answer.json()["version"] == second
    assert answer.json()["seq"] == 1
    assert 1001 in items_of(answer)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "items"),
        ({"items": []}, "at least 1"),
        ({"items": [{"item_id": 1, "colour": "red"}]}, "unknown field"),
        ({"items": [{"like": [1]}]}, "item_id"),
        ({"items": [{"item_id": "x", "like": [1]}]}, "expected an integer"),
        ({"items": [{"item_id": 7}, {"item_id": "7"}]}, "twice"),
        ({"items": [{"item_id": 7, "expires": 1000}]}, "future"),
        ({"items": [{"item_id": 7, "expires": -1}]}, "expires"),
        ({"items": [{"item_id": 7, "clicked_by": [1, 2]}]}, "clicked_by"),
        ({"items": [{"item_id": 7, "clicked_by": [[1]] * 101}]}, "at most 100"),
        ({"items": [{"item_id": 7, "like": ["y" * 257]}]}, "256"),
        ({"items": [{"item_id": i} for i in range(1001)]}, "at most 1000"),
    ],
)
def test_wrong_items(refusing: TestClient, body: Any, words: str) -> None:
    """Each is a 422 that says what is expected, and nothing is written."""
    response = refusing.post("/v1/items", json=body, headers=WRITER)
    assert_problem(response, 422)
    assert words in response.text
    assert ask(refusing).json()["seq"] == 0


def test_there_is_room_for_so_many_new_items(store: FolderStore) -> None:
    """Beyond it a put gets 429; deletes and answers go on."""
    with TestClient(make_app(store, write_token="w", new_items=20)) as client:
        assert_problem(
            client.post("/v1/items", json={"items": [{"item_id": i} for i in range(100, 119)]}, headers=WRITER), 429
        )
        put(client, *({"item_id": 1000 + i, "like": [1]} for i in range(18)))
        response = client.post("/v1/items", json={"items": [{"item_id": 2000}]}, headers=WRITER)
        problem = assert_problem(response, 429)
        assert "DR_NEW_ITEMS" in problem["detail"]
        assert "retry-after" in response.headers
        assert delete(client, 1001)["seq"] == 2
        assert 1001 not in items_of(ask(client, k=30))
