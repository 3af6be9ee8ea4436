"""Append, fold and the learner on a disk that is full or broken at each of their operations in turn."""

from __future__ import annotations

import errno
import json
import os
import shutil
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from index_store.errors import IndexStoreError, StoreFull, StoreUnavailable
from index_store.folder.store import FolderStore
from index_store.log import Draft
from retrieval.changes import Change, Delete, Evidence, Put, to_json
from retrieval.fold import catalogue, fold_current
from tests.chaos.conftest import Goal, amount
from tests.chaos.disk import watched
from tests.chaos.test_disk_faults import FailingDisk
from tests.chaos.test_living import catalogue_of
from tests.chaos.victims import count_clicks
from tests.conftest import Planted
from trainer.__main__ import main as dr_trainer
from trainer.living import follow, learner

pytestmark = pytest.mark.usefixtures("quick_disk")


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the real fsync, which is slow: these tests check what a store asks of the disk, not what the disk does."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_fold_on_a_failing_disk(tmp_path: Path, planted: Planted, goal: Goal, error: int) -> None:
    """Promise: disk faults. An append is there as a whole or not at all, and what was there stays; a retry succeeds."""
    ids = planted.searcher.vocabulary.names(np.arange(planted.index.items))
    evidence = Evidence(like=ids[:2])
    changes: list[Change] = [Put(5000, planted.searcher.place([evidence])[0], evidence), Delete(ids[0])]
    before, draft = Draft("before", 1, [to_json(Delete(ids[9]))]), Draft("p", 1, [to_json(each) for each in changes])
    every, failed = amount(1, 5), 0
    of_store = StoreFull if error == errno.ENOSPC else StoreUnavailable
    for at in count(0, every):
        folder = tmp_path / "store"
        shutil.rmtree(folder, ignore_errors=True)
        store = FolderStore(str(folder))
        first = store.publish(planted.version)
        store.activate(first)
        store.append([before])
        disk, raised = FailingDisk(error, at), None
        try:
            with watched(folder, disk):
                store.append([draft])
                fold_current(store)
        except IndexStoreError as found:
            raised = found
        if disk.failed is None:
            assert raised is None
            break
        failed += 1
        if raised is not None:
            assert type(raised) is of_store, (disk.failed, raised)
            assert str(folder) in str(raised)
            assert os.strerror(error) in str(raised)
        searcher = catalogue_of(FolderStore(str(folder)))
        live = [searcher.is_live(item) for item in (5000, ids[0], ids[9])]
        assert live in ([False, True, False], [True, False, False]), disk.failed

        assert store.append([draft]) == [2]
        fold_current(store)
        searcher = catalogue_of(FolderStore(str(folder)))
        assert [searcher.is_live(item) for item in (5000, ids[0], ids[9])] == [True, False, False]
        assert searcher.manifest.covers == store.log_end()
    goal(
        f"{os.strerror(error).lower()} at each of {failed} points of append and fold: unclear errors, records lost or "
        "torn, retries that failed",
        "0, 0, 0",
        reached=failed * every > 40,
    )


@pytest.mark.parametrize("full", ["store", "run"])
def test_a_learner_on_a_full_disk(
    tmp_path: Path,
    planted: Planted,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    goal: Goal,
    full: str,
) -> None:
    """Promise: disk faults. It exits with 1 and a message; once there is room it learns each click once."""
    for name, value in {"TOGETHER": 2, "ENOUGH": 1, "SHARE": 0.0}.items():
        monkeypatch.setattr(follow, name, value)
    monkeypatch.setattr(learner, "renewed", count_clicks)
    names = planted.searcher.vocabulary.names(np.arange(20))
    events = [{"item_id": item, "history": [history]} for item, history in zip(names[:5], names[5:10], strict=True)]
    file = tmp_path / "events.jsonl"
    file.write_text("".join(json.dumps(event) + "\n" for event in [*events, {"item_id": 5000, "history": names[:3]}]))
    every, failed = amount(2, 12), 0
    for at in count(0, every):
        for folder in ("store", "run"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        store = FolderStore(str(tmp_path / "store"))
        store.activate(store.publish(planted.version))
        command = ["follow", "--store", str(store.folder), "--events", str(file), "--checkpoint", str(tmp_path / "run")]
        disk = FailingDisk(errno.ENOSPC, at)
        with watched(tmp_path / full, disk):
            status = dr_trainer(command)
        if disk.failed is None:
            break
        failed += 1
        printed = capsys.readouterr().err
        assert status == 1, disk.failed
        assert "dr-trainer: " in printed
        assert os.strerror(errno.ENOSPC) in printed
        assert str(tmp_path / full) in printed
        assert "Traceback" not in printed

        assert dr_trainer(command) == 0
        searcher = catalogue_of(FolderStore(str(store.folder)))
        assert searcher.manifest.metrics["learned"] == 6, disk.failed
        assert searcher.is_live(5000)
        assert [type(change) for change in catalogue(store)[0]] == [Put]
    assert status == 0
    goal(
        f"disk full at each of {failed} points of a learner ({full}): unclear errors, clicks learned twice or never, "
        "items put twice or never",
        "0, 0, 0",
        reached=failed * every > 10,
    )
