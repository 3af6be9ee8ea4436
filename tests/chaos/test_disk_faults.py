"""The folder store and the commands on a disk that is full or broken."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from index_store.errors import CacheUnavailable, IndexStoreError, StoreFull, StoreUnavailable, VersionNotFound
from index_store.folder.copies import Copies
from index_store.folder.store import FolderStore
from index_store.version import Version
from tests.chaos.conftest import Goal, amount
from tests.chaos.disk import TAKE_ROOM, Operation, watched
from tests.planted import small_version, write_interactions
from tests.test_commands import QUICK
from trainer.__main__ import main as dr_trainer

BEFORE, AFTER = small_version("before"), small_version("after")


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the real fsync, which is slow: these tests check what a store asks of the disk, not what the disk does."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def fill(folder: Path) -> FolderStore:
    """A store with a current version."""
    store = FolderStore(str(folder))
    store.activate(store.publish(BEFORE))
    return store


def require_whole_versions(store: FolderStore) -> None:
    """Every folder with a version's name can be loaded, and is BEFORE or AFTER."""
    for entry in (store.folder / "versions").glob("[!.]*"):
        fingerprint = store.load(entry.name).manifest.fingerprint
        assert fingerprint in {BEFORE.manifest.fingerprint, AFTER.manifest.fingerprint}


class FailingDisk:
    """Fails operation number `at`, from 0 on. A full disk counts only those that need room, and keeps failing them."""

    def __init__(self, error: int, at: int) -> None:
        self._error, self._left = error, at
        self.failed: Operation | None = None

    def __call__(self, operation: Operation) -> None:
        if self._error == errno.ENOSPC and operation.kind not in TAKE_ROOM:
            return
        self._left -= 1
        if self._left == -1 or (self._left < 0 and self._error == errno.ENOSPC):
            self.failed = self.failed or operation
            filename = None if operation.kind in {"read", "write", "fsync", "lock", "map"} else operation.path
            raise OSError(self._error, os.strerror(self._error), filename)


def publish(store: FolderStore, _: Version) -> None:
    store.publish(AFTER)


def activate(store: FolderStore, version: Version) -> None:
    store.activate(version.manifest.version)


def load(store: FolderStore, version: Version) -> None:
    store.load(version.manifest.version)


def copy(store: FolderStore, version: Version) -> None:
    """Copy a version as a host does with the versions of a remote store."""
    name = f"v9-{version.manifest.fingerprint[:12]}"
    Copies(str(store.folder)).copy(
        dataclasses.replace(version.manifest, version=name), lambda part: [version.parts[part]]
    )


def delete(store: FolderStore, version: Version) -> None:
    with contextlib.suppress(VersionNotFound):  # the attempt that failed has deleted it
        store.delete(version.manifest.version)


def fail_everywhere(verb: Callable[[FolderStore, Version], None], error: int, folder: Path) -> tuple[int, int]:
    """Fail each disk operation of `verb` in turn and check the store. Returns how many failed, and how many raised."""
    reported = 0
    for at in count():
        shutil.rmtree(folder, ignore_errors=True)
        store = fill(folder)
        first = str(store.current())
        version = store.load(store.publish(AFTER) if verb in {activate, load, delete} else first)
        disk = FailingDisk(error, at)
        raised: IndexStoreError | None = None
        try:
            with watched(folder, disk):
                verb(store, version)
        except IndexStoreError as failed:
            raised = failed
        if raised:
            reported += 1
            of_store = StoreFull if error == errno.ENOSPC else StoreUnavailable
            assert type(raised) is (CacheUnavailable if verb is copy else of_store), disk.failed
            assert str(folder) in str(raised)
            assert os.strerror(error) in str(raised)
        if disk.failed is None:
            return at, reported
        current = store.current()
        assert current == first or (verb is activate and current == version.manifest.version), disk.failed
        store.load(current)
        require_whole_versions(store)
        assert disk.failed.kind in {"rmdir", "unlink"} or verb is delete or not list(store.folder.glob("versions/.*"))

        verb(store, version)

        require_whole_versions(store)
        store.sweep()
        assert not [*store.folder.glob("versions/.*"), *store.folder.glob(".CURRENT-*")], disk.failed
    raise AssertionError


@pytest.mark.usefixtures("quick_disk")
def test_a_failing_disk_is_reported_and_changes_nothing(tmp_path: Path, goal: Goal) -> None:
    """Promise: disk faults.

    The disk is full or broken at each operation in turn: the error names the folder, and a retry succeeds.
    """
    failures = reported = 0
    for verb in (publish, activate, load, copy, delete):
        for error in (errno.ENOSPC, errno.EIO):
            more = fail_everywhere(verb, error, tmp_path / "store")
            failures, reported = failures + more[0], reported + more[1]

    asked = f"disk full or broken at every point of publish, activate, load, copy and delete ({failures} points, "
    asked += f"{reported} of them errors of the verb): unclear errors, lost or half versions, retries that failed"
    goal(asked, "0, 0, 0", reached=failures >= 100 and reported > failures / 2)


CUT_WHEN_MAPPED = """
import mmap, os, sys
from index_store.errors import StoreUnavailable
from index_store.folder.store import FolderStore
store = FolderStore(sys.argv[1])
(manifest,) = store.versions()
map_file = mmap.mmap
def cut(descriptor, *args, **kwargs):
    mapped = map_file(descriptor, *args, **kwargs)
    os.truncate(f"/proc/self/fd/{descriptor}", 0)
    return mapped
mmap.mmap = cut
try:
    store.load(manifest.version)
except StoreUnavailable as error:
    print(error)
"""


def test_a_mapped_page_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """Promise: disk faults. A file that is cut short after it was mapped gives an error, not SIGBUS."""
    name = str(fill(tmp_path).current())
    done = subprocess.run(
        [sys.executable, "-c", CUT_WHEN_MAPPED, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done
    assert f"load: {tmp_path}/versions/{name}/" in done.stdout


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("full", ["store", "run"])
def test_fit_on_a_full_disk_ends_with_an_error_and_can_be_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], full: str
) -> None:
    """Promise: disk faults.

    `fit` exits with 1, a message and a store that still works; once there is room it resumes and succeeds.
    """
    file = write_interactions(tmp_path)
    store, run = tmp_path / "store", tmp_path / "run"
    command = ["fit", str(file), *QUICK, "--store", str(store), "--resume", str(run)]
    fill(store)
    before = FolderStore(str(store)).current()
    run.mkdir()
    for at in count(0, amount(5, 25)):
        disk = FailingDisk(errno.ENOSPC, at)
        with watched(tmp_path / full, disk):
            status = dr_trainer(command)
        if disk.failed is None:
            break
        printed = capsys.readouterr()
        assert (status, printed.out) == (1, ""), disk.failed
        assert "dr-trainer: " in printed.err
        assert os.strerror(errno.ENOSPC) in printed.err
        assert str(tmp_path / full) in printed.err
        assert "Traceback" not in printed.err
        FolderStore(str(store)).load(str(FolderStore(str(store)).current()))
    assert status == 0
    assert at > 3
    assert FolderStore(str(store)).previous() == before


@pytest.mark.parametrize("command", [["list"], ["list", "--json"]])
def test_a_full_standard_output_is_reported_in_one_line(tmp_path: Path, command: list[str]) -> None:
    """Promise: disk faults. `dr-index list > FILE` on a full disk exits with 1."""
    fill(tmp_path)
    with Path("/dev/full").open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "index_store", *command, "--store", str(tmp_path)],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr == f"dr-index: standard output: {os.strerror(errno.ENOSPC)}\n"
