"""Damaged versions, offered to a live replica one after the other."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

from index_store.folder.store import FolderStore
from tests.chaos.conftest import Goal, amount
from tests.chaos.damage import stored_damage, write_version, wrong_versions
from tests.chaos.traffic import Traffic, answers_of
from tests.conftest import Planted
from tests.fleet import Replica, fleet

DAMAGED = 450  # damaged after they were stored; some 50 more are published with wrong content
REQUESTS = 10_000


def test_damaged_versions_are_refused(goal: Goal, planted: Planted, other: Planted, tmp_path: Path) -> None:
    """Promise: damaged versions. A live replica answers each swap to a damaged version with 422, naming it."""
    store = FolderStore(str(tmp_path / "store"))
    good, hurt = store.publish(planted.version), store.publish(other.version)
    store.activate(good)
    versions = store.folder / "versions"
    expected = {good: answers_of(planted.version), hurt: answers_of(other.version)}
    accepted: list[str] = []
    count = amount(DAMAGED)

    def refused(replica: Replica, name: str, damage: str) -> None:
        print(damage)  # if the test hangs, its last line names the damage
        reply = replica.swap(name)
        if reply.status_code != 422 or name not in reply.json()["detail"]:
            accepted.append(f"{damage}: {reply.status_code} {reply.text}")

    with (
        fleet(tmp_path / "fleet", str(store.folder), count=1, timeout_ms=10_000) as (replica,),
        Traffic([replica.port], 100, expected) as traffic,
    ):
        for damage, files in stored_damage(versions / hurt, versions / good, Random(0), count):
            before = {name: (versions / hurt / name).read_bytes() for name in files}
            for name, content in files.items():
                (versions / hurt / name).write_bytes(content)
            refused(replica, hurt, damage)
            for name, content in before.items():
                (versions / hurt / name).write_bytes(content)
        wrong = wrong_versions(store.load(good), store.load(hurt))
        for counter, (damage, (parts, facts)) in enumerate(wrong.items(), 100):
            name = write_version(versions, counter, planted.version.manifest, parts, facts)
            refused(replica, name, damage)
        meanwhile = traffic.answered
        while traffic.answered < amount(REQUESTS) and not traffic.failed + traffic.wrong:
            time.sleep(0.05)
        assert replica.swap(hurt).status_code == 200
        assert replica.swap(good).status_code == 200

    count += len(wrong)
    goal(
        f"{count} damaged versions: served, or refused without their name",
        len(accepted),
        reached=not accepted,
    )
    goal(
        f"{traffic.answered:,} requests, {meanwhile:,} of them while damaged versions were offered: failed, wrong",
        f"{len(traffic.failed)}, {len(traffic.wrong)}",
        reached=not traffic.failed and not traffic.wrong,
    )
    assert accepted == []
