"""Goal A2: no damaged version is served, each is refused with a reason, and who asks meanwhile notices nothing."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from index_store.errors import VersionDamaged
from index_store.folder.store import FolderStore
from index_store.version import Version
from service.serving import trial
from service.serving.reloader import Reloader
from service.serving.trial import try_model
from tests.chaos.conftest import Goal, amount
from tests.chaos.damage import endless, stored_damage, write_version, wrong_versions
from tests.chaos.traffic import Traffic, answers_of
from tests.conftest import Planted
from tests.fleet import Replica, fleet
from tests.planted import changed

DAMAGED = 450  # beside some 50 that are wrong in themselves
REQUESTS = 10_000


def test_damaged_versions_are_refused(goal: Goal, planted: Planted, other: Planted, tmp_path: Path) -> None:
    """By the swap endpoint of a live replica: each is 422 with its name and a reason, and the old one serves on."""
    store = FolderStore(str(tmp_path / "store"))
    good, hurt = store.publish(planted.version), store.publish(other.version)
    store.activate(good)
    versions = store.folder / "versions"
    expected = {good: answers_of(planted.version), hurt: answers_of(other.version)}
    accepted: list[str] = []
    count = amount(DAMAGED)

    def refused(replica: Replica, name: str, what: str) -> None:
        print(what)  # the last line of a test that hangs
        reply = replica.swap(name)
        if reply.status_code != 422 or name not in reply.json()["detail"]:
            accepted.append(f"{what}: {reply.status_code} {reply.text}")

    with (
        fleet(tmp_path / "fleet", str(store.folder), count=1, timeout_ms=10_000) as (replica,),
        Traffic([replica.port], 100, expected) as traffic,
    ):
        for what, files in stored_damage(versions / hurt, versions / good, Random(0), count):
            before = {name: (versions / hurt / name).read_bytes() for name in files}
            for name, content in files.items():
                (versions / hurt / name).write_bytes(content)
            refused(replica, hurt, what)
            for name, content in before.items():
                (versions / hurt / name).write_bytes(content)
        wrong = wrong_versions(store.load(good), store.load(hurt))
        for counter, (what, (parts, facts)) in enumerate(wrong.items(), 100):
            name = write_version(versions, counter, planted.version.manifest, parts, facts)
            refused(replica, name, what)
        meanwhile = traffic.answered
        while traffic.answered < amount(REQUESTS) and not traffic.failed + traffic.wrong:
            time.sleep(0.05)
        assert replica.swap(hurt).status_code == 200
        assert replica.swap(good).status_code == 200

    count += len(wrong)
    goal(
        "A2",
        f"{count} damaged versions: served, or refused without a reason",
        len(accepted),
        reached=not accepted,
    )
    goal(
        "A2",
        f"{traffic.answered:,} requests, {meanwhile:,} of them meanwhile: failed, wrong",
        f"{len(traffic.failed)}, {len(traffic.wrong)}",
        reached=not traffic.failed and not traffic.wrong,
    )
    assert accepted == []


def test_a_model_without_end_is_ended(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a limit on processor time, in a process of its own."""
    monkeypatch.setattr(trial, "SECONDS", 1)

    with pytest.raises(VersionDamaged, match=r"signal 9|longer than 3 s"):
        try_model(changed(planted.version, model=endless()))


@pytest.mark.parametrize("stored", [True, False])
def test_a_models_trial_passes_for_what_was_trained(planted: Planted, tmp_path: Path, *, stored: bool) -> None:
    """Whether it is a file or bytes."""
    store = FolderStore(str(tmp_path))
    version = store.load(store.publish(planted.version)) if stored else planted.version

    try_model(version)


def test_a_model_is_tried_once(planted: Planted, other: Planted, tmp_path: Path, monkeypatch: Any) -> None:
    """Not again when it comes back; another is."""
    import asyncio

    from service.metrics import Metrics

    store = FolderStore(str(tmp_path))
    names = [store.publish(planted.version), store.publish(other.version)]
    third = store.publish(changed(planted.version, context=bytes(planted.version.parts["context.json"]) + b" "))
    store.activate(names[0])
    tried: list[Version] = []
    monkeypatch.setattr("service.serving.loading.try_model", tried.append)

    async def swap() -> None:
        reloader = Reloader(store, 60, Metrics())
        for name in (*names, third, names[1]):
            await reloader.swap(name, ...)

    asyncio.run(swap())

    assert [version.manifest.version for version in tried] == names
