"""After a power failure the folder store has the version before or the one after, and all that it promised."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from random import Random

import pytest

from index_store.folder.store import FolderStore
from index_store.store import prune
from tests.chaos.conftest import Goal, amount
from tests.chaos.disk import Operation, watched
from tests.chaos.power_loss import Disk, State, restore
from tests.planted import small_version

BEFORE, AFTER = small_version("before"), small_version("after")
PLACE = "new/store"  # below a folder that the store has to create

KILLS = count()  # publishers killed so far
SAMPLED = 0.15  # the share of a recording's steps at which the power fails

#: What must hold after any crash from some step on: AFTER is published, AFTER is current.
Promises = set[str]


class Died(BaseException):
    """Raised where a process is killed, so that no more of its code runs."""


class Recorded:
    """A recording of the operations in `root`, and of what was promised after how many of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.disk = Disk(root)
        self.steps: list[Operation] = []
        self.promises: list[tuple[int, str]] = []

    def run(self, work: Callable[[Recorded], None], steps: int | None = None) -> None:
        """Run `work` and record it; with `steps`, its process is killed after so many steps."""
        end = None if steps is None else len(self.steps) + steps

        def record(operation: Operation) -> None:
            if len(self.steps) == end:
                raise Died
            if operation.kind not in {"open", "read", "list", "stat", "lock", "map"}:
                self.steps.append(operation)

        with watched(self.root, record), contextlib.suppress(Died):
            work(self)

    def promise(self, promised: str) -> None:
        """Record that this must hold from here on."""
        self.promises.append((len(self.steps), promised))

    def crashes(self, random: Random) -> Iterator[tuple[State, Promises]]:
        """Yield states after crashes at random steps and at the end, and what must hold in them. Call it once only."""
        for done in range(len(self.steps) + 1):
            promised = {promise for step, promise in self.promises if step <= done}
            for _ in range(4 if done == len(self.steps) else random.random() < SAMPLED):
                yield self.disk.crash(random), promised
            if done < len(self.steps):
                self.disk.do(self.steps[done])


def publish_and_activate(recorded: Recorded) -> None:
    """Publish and activate AFTER, as dr-trainer does."""
    store = FolderStore(str(recorded.root / PLACE))
    store.require_writable()
    name = store.publish(AFTER)
    recorded.promise("published")
    store.activate(name)
    recorded.promise("current")


def another_version(root: Path, _: Random) -> Recorded:
    """Record a publish to a store that has a current version."""
    store = FolderStore(str(root / PLACE))
    store.activate(store.publish(BEFORE))
    recorded = Recorded(root)
    recorded.run(publish_and_activate)
    return recorded


def the_first_version(root: Path, _: Random) -> Recorded:
    """Record a publish to a store whose folders do not exist yet."""
    root.mkdir()
    recorded = Recorded(root)
    recorded.run(publish_and_activate)
    return recorded


def activate_existing(recorded: Recorded) -> None:
    """Activate AFTER if it was published, as dr-index does it; its publisher has died."""
    store = FolderStore(str(recorded.root / PLACE))
    for manifest in store.versions():
        if manifest.fingerprint == AFTER.manifest.fingerprint:
            store.activate(manifest.version)
            recorded.promise("current")


def again_after_a_kill(root: Path, random: Random) -> Recorded:
    """Record a publish after another one was killed: at one of its last nine steps, or at a random step.

    The changes that the killed process had not synced may be on the disk or not.
    """
    turn = next(KILLS)
    first = [another_version, the_first_version][turn // 20 % 2]
    length = len(first(root, random).steps)
    shutil.rmtree(root)
    root.mkdir()
    if first is another_version:
        store = FolderStore(str(root / PLACE))
        store.activate(store.publish(BEFORE))
    recorded = Recorded(root)
    recorded.run(publish_and_activate, steps=length - 1 - turn % 10 if turn % 10 < 9 else random.randrange(length))
    recorded.promises.clear()
    recorded.run([publish_and_activate, activate_existing][turn // 10 % 2])
    return recorded


def delete_and_prune(recorded: Recorded) -> None:
    """Delete the oldest version by name, then all but the last two."""
    store = FolderStore(str(recorded.root / PLACE))
    store.delete(store.versions()[0].version)
    prune(store, keep=1)


def pruned(root: Path, _: Random) -> Recorded:
    """Record how versions are deleted: after a crash each of them must be there whole or not at all."""
    store = FolderStore(str(root / PLACE))
    for version in (BEFORE, small_version("x"), small_version("y"), AFTER):
        store.activate(store.publish(version))
    recorded = Recorded(root)
    recorded.promise("current")
    recorded.run(delete_and_prune)
    return recorded


def check(root: Path, promised: Promises) -> None:
    """Check that every visible version is whole, that the promises hold, and that the same publish succeeds again."""
    store = FolderStore(str(root / PLACE))
    wanted = {BEFORE.manifest.fingerprint, AFTER.manifest.fingerprint}
    current = store.current()
    assert current is None or store.load(current).manifest.fingerprint in wanted
    assert current is None or "current" not in promised or current.endswith(AFTER.manifest.fingerprint[:12])
    whole = {store.load(entry.name).manifest.fingerprint for entry in (store.folder / "versions").glob("[!.]*")}
    assert not promised or AFTER.manifest.fingerprint in whole
    assert current or "current" not in promised

    name = store.publish(AFTER)
    store.activate(name)
    store.sweep()

    assert store.current() == name
    assert store.load(name).manifest.fingerprint == AFTER.manifest.fingerprint
    assert not [*store.folder.glob("versions/.*"), *store.folder.glob(".CURRENT-*")]


def test_after_a_power_failure_the_store_has_before_or_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goal: Goal
) -> None:
    """Promise: power loss.

    The store is checked in random states of the disk, after random steps of publish, activate and delete.
    """
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the machine stays up, so a recorded sync need not be done
    random, wanted = Random(0), amount(3000)
    seen: set[tuple[frozenset[tuple[str, bytes | None]], frozenset[str]]] = set()
    scenarios = (another_version, the_first_version, pruned, *[again_after_a_kill] * 4)
    crashed = tmp_path / "crashed"
    while len(seen) < wanted:
        for scenario in scenarios:
            root = tmp_path / "root"
            recorded = scenario(root, random)
            for state, promised in recorded.crashes(random):
                kind = frozenset(state.items()), frozenset(promised)
                if kind not in seen:
                    seen.add(kind)
                    restore(state, crashed)
                    check(crashed, promised)
                    shutil.rmtree(crashed)
            shutil.rmtree(root)

    goal(
        f"power loss at random steps of publish, activate and delete, {len(seen)} different states of the disk: "
        "half versions accepted, promises broken, retries that failed",
        "0, 0, 0",
        reached=True,
    )
