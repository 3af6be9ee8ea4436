"""The catalogue changes while everything else happens: folds are killed, versions swap, replicas die and come back."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from index_store.folder.store import FolderStore
from index_store.log import Draft
from index_store.store import IndexStore, open_store
from retrieval.changes import Change, Delete, Evidence, Put, to_json
from retrieval.fold import catalogue, fold_current, read_all
from retrieval.searcher import Searcher
from tests.chaos.conftest import FULL, Goal, amount
from tests.chaos.victims import Victim, append_and_fold, follow_events
from tests.conftest import Planted
from tests.fleet import Replica, fleet
from tests.test_server import keys_of

WRITER = {"Authorization": "Bearer w"}
SETTLED = {"folder": 0.5, "Redis": 0.3}  # seconds after which another replica should have a record
NEW = range(1000, 1100)  # ids that come and go
CLICKED = range(2000, 2040)  # ids that the learner puts and the writers delete and put


@pytest.fixture(params=["folder", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    return str(tmp_path / "store") if request.param == "folder" else str(request.getfixturevalue("url"))


def catalogue_of(store: IndexStore) -> Searcher:
    """The current version with all records of the log."""
    version = store.load(str(store.current()))
    searcher = Searcher.open(version, 100)
    records = read_all(store, version.manifest.covers)
    if records:
        searcher.apply(records)
    return searcher


def test_a_fold_killed_before_any_step(store_url: str, client: Any, planted: Planted, goal: Goal) -> None:
    """Promise: killed folds. It dies before each operation on the disk or message to the server, appends included."""
    ids = planted.searcher.vocabulary.names(np.arange(planted.index.items))
    put = Put(5000, planted.searcher.place([Evidence(like=ids[:2])])[0], Evidence(like=ids[:2]))
    changes: list[list[Change]] = [[put], [Delete(ids[0])], [Delete(ids[5]), Delete(ids[6])]]
    drafts = [Draft("p", n, [to_json(change) for change in each]) for n, each in enumerate(changes)]
    every, killed = amount(1, 6), 0
    kept: Counter[int] = Counter()
    for steps in range(0, 10_000, every):
        url = f"{store_url}{steps}"
        store = open_store(url)
        first = store.publish(planted.version)
        store.activate(first)
        store.append([Draft("before", 1, [to_json(Delete(ids[9]))])])
        victim = Victim(append_and_fold, url, drafts, steps)
        victim.wait()
        if not victim.kill():
            break
        killed += 1

        store = open_store(url)
        searcher = catalogue_of(store)
        assert not searcher.is_live(ids[9])
        seq = searcher.structure.index.seq
        kept[seq] += 1
        assert seq in (1, 4)  # the three records were appended together
        assert [searcher.is_live(item) for item in (5000, ids[0], ids[5], ids[6])] == (
            [False, True, True, True] if seq == 1 else [True, False, False, False]
        )
        if "://" in store_url:
            client.delete(f"{url.partition('namespace=')[2]}:task:fold")  # its lease would last some seconds
        assert store.append(drafts)[-1] == store.log_end().seq == 4  # a repeat, perhaps
        folded = fold_current(store)
        again = catalogue_of(store)
        assert [again.is_live(item) for item in (5000, ids[0], ids[5], ids[6], ids[9])] == [True] + 4 * [False]
        assert store.load(str(store.current())).manifest.covers == store.log_end()
        assert folded.version or store.current() != first
        if "://" in store_url:
            client.delete(*keys_of(client, url.partition("namespace=")[2]))
    kind = "folder" if "://" not in store_url else "Redis"
    goal(
        f"append and fold killed before each of {killed} steps ({kind}): records lost or torn, deleted items back, "
        "folds that failed afterwards",
        "0, 0, 0",
        reached=killed * every > 40 and (set(kept) == {1, 4} or not FULL),
    )


def test_a_learner_killed_before_any_step(
    store_url: str, client: Any, planted: Planted, tmp_path: Path, goal: Goal
) -> None:
    """Promise: killed learners. It dies before each operation on the disk or message to the server, in three rounds."""
    names = planted.searcher.vocabulary.names(np.arange(20))
    events = [{"item_id": item, "history": [history]} for item, history in zip(names[:5], names[5:10], strict=True)]
    file = tmp_path / "events.jsonl"
    file.write_text("".join(json.dumps(event) + "\n" for event in [*events, {"item_id": 5000, "history": names[:3]}]))
    every, killed = amount(3, 24), 0
    for steps in range(0, 10_000, every):
        url, folder = f"{store_url}{steps}", str(tmp_path / f"run{steps}")
        store = open_store(url)
        store.activate(store.publish(planted.version))
        victim = Victim(follow_events, url, str(file), folder, steps)
        victim.wait()
        ended = not victim.kill()
        killed += not ended
        again = Victim(follow_events, url, str(file), folder, None)
        again.wait()
        assert not again.kill()

        store = open_store(url)
        searcher = catalogue_of(store)
        assert searcher.manifest.metrics["learned"] == 6, steps
        assert searcher.is_live(5000)
        assert [type(change) for change in catalogue(store)[0]] == [Put]
        assert store.log_end().seq == 1
        assert len(store.versions()) <= 4  # trained, previous, current, and what was published when it was killed
        if "://" in store_url:
            client.delete(*keys_of(client, url.partition("namespace=")[2]))
        if ended:
            break
    kind = "folder" if "://" not in store_url else "Redis"
    goal(
        f"a learner killed before {killed} steps ({kind}): clicks learned twice or never, items put twice or never",
        "0, 0",
        reached=killed * every > 100,
    )


#: What happens while the replicas answer.
EVENTS = "puts", "folds", "swaps", "kills", "deletes", "rollbacks", "learners killed", "versions learned"


class Deleted(NamedTuple):
    """A delete that was answered. seq: its record. when: by time.monotonic."""

    item: int
    seq: int
    when: float


class Catalogue:
    """Which items are certainly deleted: nobody has begun to put them since the delete was answered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deleted: dict[int, Deleted] = {}

    def write(self, item: int, request: Callable[[], int | None], *, delete: bool) -> None:
        """Send a change, and note the record that its answer names, if there is an answer."""
        with self._lock:
            self._deleted.pop(item, None)  # from now on it may be either
        seq = request()
        if delete and seq is not None:
            with self._lock:
                self._deleted[item] = Deleted(item, seq, time.monotonic())

    def deleted(self) -> set[Deleted]:
        """The deletes that hold now."""
        with self._lock:
            return set(self._deleted.values())


def test_no_ghosts(store_url: str, planted: Planted, other: Planted, tmp_path: Path, goal: Goal) -> None:
    """Promise: ghosts.

    Two replicas answer while items are put and deleted, a learner puts items and publishes versions, versions are
    swapped, folded and rolled back, and replicas and the learner die by SIGKILL and are started again.
    """
    store = open_store(store_url)
    names = [store.publish(version) for version in (planted.version, other.version)]
    store.activate(names[0])
    kind = "folder" if isinstance(store, FolderStore) else "Redis"
    settled = SETTLED[kind]
    known, wanted = Catalogue(), amount(500_000, 60_000)
    faults: list[str] = []
    counts: Counter[str] = Counter()
    over = threading.Event()
    with fleet(tmp_path / "fleet", store_url, write_token="w", new_items=300, timeout_ms=10_000) as replicas:
        threads = [
            threading.Thread(target=_write, args=(replicas, known, over, Random(n), n, counts)) for n in range(2)
        ]
        threads += [
            threading.Thread(target=_ask, args=(each, known, settled, over, counts, faults)) for each in replicas
        ]
        threads.append(threading.Thread(target=_disturb, args=(replicas, over, counts)))
        threads.append(threading.Thread(target=_learn, args=(store_url, tmp_path, over, counts)))
        for thread in threads:
            thread.start()
        while counts["answers"] < wanted and not faults and any(thread.is_alive() for thread in threads):
            time.sleep(0.1)
        over.set()
        for thread in threads:
            thread.join()
    did = ", ".join(f"{counts[what]:,} {what}" for what in EVENTS)
    assert faults == []
    goal(
        f"{counts['answers']:,} answers ({kind}) during {did}: deleted items answered, items twice, answers under k",
        "0, 0, 0",
        reached=counts["answers"] >= wanted and min(counts[what] for what in (EVENTS if FULL else EVENTS[:4])) > 0,
    )
    goal(
        f"answers without a record that was acknowledged more than {settled} s before ({kind})",
        f"{counts['late']:,} of {counts['answers']:,}",
        reached=counts["late"] == 0,
        timing=True,
    )


def _write(
    replicas: list[Replica], known: Catalogue, over: threading.Event, random: Random, turn: int, counts: Any
) -> None:
    """Put and delete items; each writer has its own."""
    with httpx.Client(trust_env=False, timeout=30, headers=WRITER) as client:
        while not over.is_set():
            item = random.choice([item for item in (*range(30), *NEW, *CLICKED) if item % 2 == turn])
            delete = random.random() < 0.5
            address = random.choice(replicas).address
            body = (
                {"item_ids": [item]}
                if delete
                else {"items": [{"item_id": item, "like": random.sample(range(30, 40), 2)}]}
            )

            def send(route: str = "/v1/items:delete" if delete else "/v1/items", body: Any = body) -> int | None:
                try:
                    response = client.post(address + route, json=body)  # noqa: B023
                except httpx.TransportError:  # the replica was killed; the record may be written or not
                    return None
                return int(response.json()["seq"]) if response.status_code == 200 else None

            known.write(item, send, delete=delete)
            counts["deletes" if delete else "puts"] += 1


def _ask(
    replica: Replica, known: Catalogue, settled: float, over: threading.Event, counts: Any, faults: list[str]
) -> None:
    """Ask in batches, and check each answer: ten items that are never deleted are always live."""
    random = Random(replica.port)
    with httpx.Client(trust_env=False, timeout=30, base_url=replica.address) as client:
        while not over.is_set() and not faults:
            asked: list[dict[str, Any]] = [
                {
                    "history": random.sample(range(40), random.randrange(4)),
                    "k": random.choice([3, 10]),
                    "exclude_history": False,
                }
                for _ in range(32)
            ]
            gone, asked_at = known.deleted(), time.monotonic()
            try:
                response = client.post("/v1/retrieve:batch", json={"requests": asked})
            except httpx.TransportError:
                continue
            if response.status_code != 200:
                counts[f"status {response.status_code}"] += 1
                continue
            certain = gone & known.deleted()
            for request, answer in zip(asked, response.json()["responses"], strict=True):
                items = [candidate["item_id"] for candidate in answer["candidates"]]
                if len(set(items)) < len(items):
                    faults.append(f"twice: {items}")
                ghosts = [each for each in certain if each.item in items and each.seq <= answer["seq"]]
                faults += [f"deleted: {each} by {answer['version']} at {answer['seq']}" for each in ghosts]
                counts["late"] += any(each.seq > answer["seq"] and asked_at - each.when > settled for each in certain)
                if len(items) < request["k"]:
                    faults.append(f"short: {len(items)} of {request['k']}")
            counts["answers"] += len(asked)


def _learn(url: str, folder: Path, over: threading.Event, counts: Any) -> None:
    """Learn from one long file of events, by processes that die after some time."""
    random, file = Random(0), folder / "events.jsonl"
    file.write_text(
        "".join(
            json.dumps({"item_id": random.choice(CLICKED), "history": random.sample(range(30, 40), 3)}) + "\n"
            for _ in range(200_000)
        )
    )
    store, learned = open_store(url), set[str]()
    while not over.is_set():
        victim = Victim(follow_events, url, str(file), str(folder / "learner"), None, 50)
        victim.wait(random.uniform(0.1, 5))
        counts["learners killed"] += victim.kill()
        learned |= {manifest.version for manifest in store.versions() if "round" in manifest.metrics}
        counts["versions learned"] = len(learned)


def _disturb(replicas: list[Replica], over: threading.Event, counts: Any) -> None:
    """Fold, swap, roll back and kill, one after another."""
    random = Random(0)
    for what in _forever(random):
        if over.wait(0.5):
            return
        replica = random.choice(replicas)
        try:
            if what == "kills":
                assert replica.process
                replica.process.kill()
                replica.process.wait()
                replica.start()
                replica.wait_until("/readyz")
                counts[what] += 1
                continue
            body = None
            if what == "swaps":
                versions = [entry["version"] for entry in replica.client.get("/admin/v1/versions").json()["versions"]]
                body = {"version": random.choice(versions[-2:])}
            verb = {"folds": "fold", "swaps": "swap", "rollbacks": "rollback"}[what]
            counts[what] += replica.client.post(f"/admin/v1/{verb}", json=body).status_code == 200
        except httpx.TransportError:
            continue


def _forever(random: Random) -> Iterator[str]:
    while True:
        yield from random.sample(["folds", "folds", "swaps", "rollbacks", "kills"], 5)
