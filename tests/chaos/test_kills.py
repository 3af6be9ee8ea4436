"""Publishers killed at any moment: readers see the version before or the one after, and no cleaning up is needed."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from index_store.folder.store import FolderStore
from index_store.redis.store import ServerStore
from index_store.store import IndexStore, open_store, prune
from index_store.version import Version
from service.metrics import Metrics
from service.serving.reloader import Reloader, Serving
from tests.chaos.conftest import FULL, Goal, amount
from tests.chaos.traffic import answers_of
from tests.chaos.victims import Victim, publish_and_activate
from tests.conftest import Planted
from tests.fleet import same
from tests.planted import changed, large_version, small_version
from tests.test_server import keys_of


@pytest.fixture(params=["folder", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    return str(tmp_path / "store") if request.param == "folder" else str(request.getfixturevalue("url"))


def orphans(store_url: str, client: Any) -> set[str]:
    """The names of everything in a store that belongs to no listed version, pointer or lease."""
    whole = {manifest.version for manifest in open_store(store_url).versions()}
    if "://" not in store_url:
        return {entry.name for entry in Path(store_url, "versions").iterdir()} - whole | {
            entry.name for entry in Path(store_url).glob(".*")
        }
    namespace = store_url.partition("namespace=")[2]
    versions = {key.split(":")[1] for key in keys_of(client, namespace) if re.match(r"[^:]*:v\d+-", key)}
    claimed = {name.decode() for name in client.smembers(f"{namespace}:publishing:{{{namespace}:versions}}")}
    return versions - whole | claimed


def listed(store: IndexStore) -> set[str]:
    """Every version name that a reader may see, even if the version is not whole."""
    if isinstance(store, ServerStore):
        return store._listing.published()
    assert isinstance(store, FolderStore)
    return {entry.name for entry in (store.folder / "versions").glob("[!.]*")}


def check_after_a_kill(store: IndexStore, before: str, version: Version) -> str:
    """Check that `before` or `version` is current, and that every listed version is whole. Returns the current name."""
    current = store.current()
    assert current
    loaded = store.load(current)
    assert current == before or loaded.manifest.fingerprint == version.manifest.fingerprint
    for name in listed(store):
        store.load(name)
    return current


def repeat(store: IndexStore, version: Version) -> str:
    """Publish and activate the same version again. Returns its name."""
    name = store.publish(version)
    store.activate(name)
    assert store.load(name).manifest.fingerprint == version.manifest.fingerprint
    return name


def test_killed_before_any_step_of_publish_and_activate(store_url: str, client: Any, goal: Goal) -> None:
    """Promise: killed publishers. The publisher dies before each operation on the disk or message to the server."""
    every = amount(1, 4)
    killed = 0
    outcomes = set()
    for steps in range(0, 1000, every):
        store = open_store(f"{store_url}{steps}")
        before = store.publish(small_version("before"))
        store.activate(before)
        version = large_version() if "://" in store_url else small_version("after")
        victim = Victim(publish_and_activate, f"{store_url}{steps}", version, steps)
        victim.wait()
        if not victim.kill():
            break
        killed += 1

        outcomes.add(check_after_a_kill(store, before, version) == before)
        if killed % 2:
            prune(store, keep=2)
            assert orphans(f"{store_url}{steps}", client) == set()
        repeat(store, version)
        assert orphans(f"{store_url}{steps}", client) == set()
        if "://" in store_url:  # a sweep scans all keys of the server: fewer keys make the next one quick
            client.delete(*keys_of(client, f"{store_url.partition('namespace=')[2]}{steps}"))
    kind = "folder" if "://" not in store_url else "Redis"
    goal(
        f"publisher killed before each of {killed} steps of publish and activate ({kind}): half versions seen, retries "
        "that failed, leftover files or keys",
        "0, 0, 0",
        reached=killed * every > 25 and (outcomes == {False, True} or not FULL),
    )


class Follower:
    """A replica that follows the store while publishers die: every version that it loads must answer rightly."""

    def __init__(self, store_url: str, cache: Path, answers: dict[str, Any]) -> None:
        self._store = open_store(store_url, cache=str(cache))
        self._answers = answers  # the right answers by the digest of the model
        self._news = threading.Condition()
        self._over = False
        self.served: list[str] = []
        self.faults: list[str] = []

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow the store during the context."""
        thread = threading.Thread(target=lambda: asyncio.run(self._follow()))
        thread.start()
        try:
            yield
        finally:
            self._over = True
            thread.join()

    def wait_until_served(self, name: str) -> None:
        """Return when the follower serves this version, or has found a fault."""
        with self._news:
            assert self._news.wait_for(lambda: self.faults or self.served[-1:] == [name], 60), name

    async def _follow(self) -> None:
        reloader = Reloader(self._store, 60, Metrics())
        while not self._over:
            await reloader.follow()
            self._store.wait(0.02)
            if not isinstance(reloader.state, Serving):
                continue
            served = reloader.retriever
            if self.served[-1:] != [served.name]:
                model = served.manifest.parts["model.onnx"].sha256
                right = all(map(same, answers_of(served.searcher.version), self._answers[model]))
                with self._news:
                    self.served.append(served.name)
                    self.faults += [] if right else [f"{served.name} answers wrongly"]
                    self.faults += reloader.loader.refused.values()
                    self._news.notify()
        await reloader.holding.release()


def test_killed_at_any_moment(
    store_url: str, client: Any, tmp_path: Path, planted: Planted, other: Planted, goal: Goal
) -> None:
    """Promise: killed publishers.

    Publishers die at random moments while a replica follows; then the same or another version is published.
    """
    random, store, wanted = Random(0), open_store(store_url), amount(200)
    models = [planted.version, other.version]
    answers = {model.manifest.parts["model.onnx"].sha256: answers_of(model) for model in models}
    before = store.publish(models[0])
    store.activate(before)
    follower = Follower(store_url, tmp_path / "cache", answers)
    killed = after = turn = 0
    longest = 0.0
    with follower.following():
        while killed < wanted:
            version = changed(models[turn % 2], context=bytes(models[0].parts["context.json"]) + b" " * turn)
            started = time.monotonic()
            victim = Victim(publish_and_activate, store_url, version)
            victim.wait(random.uniform(0, longest) if turn > 2 else None)
            longest = longest if turn > 2 else time.monotonic() - started
            dead = victim.kill()
            killed += dead
            current = check_after_a_kill(store, before, version)
            after += dead and current != before
            if turn % 2:
                current = repeat(store, version)
            before = current
            if turn % 5 == 0:
                follower.wait_until_served(before)
                prune(store, keep=2)
                assert orphans(store_url, client) == set()
            turn += 1
    prune(store, keep=1)

    assert orphans(store_url, client) == set()
    assert follower.faults == []
    kind = "folder" if isinstance(store, FolderStore) else "Redis"
    goal(
        f"publisher killed by SIGKILL at {killed} random moments ({kind}; {after} had moved the pointer), a replica "
        f"following ({len(follower.served)} versions served): half versions or wrong answers seen, retries that "
        "failed, leftover files or keys after pruning",
        "0, 0, 0",
        reached=killed >= wanted and len(follower.served) > wanted / 10,
    )
