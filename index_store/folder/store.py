"""The store in a folder (file://): one memory-mapped folder per version, and a file CURRENT that is replaced last.

    DIR/CURRENT                    two lines: the current version and the previous one
    DIR/versions/<version>/        the parts, and manifest.json
    DIR/versions/.partial-*        a version being written; the next publish removes what a killed publisher left
    DIR/versions/.deleted-*        a version being deleted; the next publish removes what a killed deleter left
    DIR/PUBLISH.lock, DIR/CURRENT.lock, DIR/FOLD.lock

A version folder is written under a temporary name, synced, and then renamed, so a reader sees the whole version or
nothing. Publishing and moving CURRENT use different locks, so a rollback never waits for a publish. A process that
holds a version has a shared lock on the version's manifest; the system releases the lock when the process dies.

copies.py uses the same layout for a host's copies of the versions of a remote store.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from index_store.errors import (
    IndexStoreError,
    InvalidName,
    PointerMoved,
    StoreFull,
    StoreMissing,
    StoreUnavailable,
    VersionDamaged,
    VersionInUse,
    VersionNotFound,
)
from index_store.folder.files import map_file, sync_folder
from index_store.folder.log import FolderLog
from index_store.log import Draft, LogName, Place, Record
from index_store.manifest import NAME, Expected, Manifest, check_name, counter
from index_store.version import Buffer, ByteProgress, PathReader, Version, parts_here

MANIFEST = "manifest.json"
CHUNK = 16 * 2**20  # bytes written between two progress reports
MAX_MANIFEST = 16 * 2**20  # bytes; a manifest is a few KB
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class FolderStore:
    """An IndexStore in a folder of a local or POSIX network file system. The first publish creates the folder."""

    def __init__(self, folder: str) -> None:
        if not folder:
            raise InvalidName("store URL: the folder is missing; write file:///absolute/folder or a path")
        self.folder = Path(folder)
        self._versions = self.folder / "versions"
        self._logs = {name: FolderLog(self.folder / name) for name in get_args(LogName)}
        self._held: dict[str, int] = {}  # version -> descriptor of its manifest, with a shared lock

    def __repr__(self) -> str:
        return f"FolderStore({str(self.folder)!r})"

    def __str__(self) -> str:
        return str(self.folder)

    def require_readable(self) -> None:
        with self._errors("read"):
            if self.folder.is_dir():
                os.scandir(self.folder).close()
            elif self.folder.exists():
                raise StoreMissing(f"{self.folder}: not a folder, so it cannot be a store; correct the URL")
            else:
                raise StoreMissing(
                    f"{self.folder}: there is no such folder; correct the URL, or publish there with dr-trainer fit"
                )

    def require_writable(self) -> None:
        with self._errors("publish"):
            self._make_folders()
            with self._lock("PUBLISH.lock"):
                self._require_room(0)

    def publish(self, version: Version, progress: ByteProgress | None = None) -> str:
        version.validate()
        version.verify_digests()
        with self._errors("publish"):
            self._make_folders()
            with self._lock("PUBLISH.lock"):
                self._remove_leftovers()
                for manifest in self.versions():
                    if manifest.fingerprint == version.manifest.fingerprint and self._is_whole(manifest):
                        sync_folder(self._versions)  # the version's publisher may have died before this step
                        return manifest.version
                # Count the folders of damaged versions too, so that no number is used twice.
                taken = [counter(entry.name) for entry in self._versions.iterdir()]
                version = version.named(1 + max(taken, default=0))
                parts = {name: _pieces(part) for name, part in version.parts.items()}
                self._write(version.manifest, parts, progress)
        return version.manifest.version

    def versions(self) -> list[Manifest]:
        with self._errors("list"):
            if not self._versions.is_dir():
                return []
            names = [entry.name for entry in self._versions.iterdir() if not entry.name.startswith(".")]
        manifests = []
        for name in names:
            with contextlib.suppress(IndexStoreError):  # the version is damaged, as `load` reports, or was just deleted
                manifests.append(self._manifest(name))
        return sorted(manifests, key=lambda m: (counter(m.version), m.version))

    def current(self) -> str | None:
        return self._pointer()[0]

    def previous(self) -> str | None:
        return self._pointer()[1]

    def activate(self, version: str, expected: Expected = ..., previous: str | None = None) -> str | None:
        self._manifest(version)
        with self._errors("activate"), self._lock("CURRENT.lock"):
            try:
                current = self.current()
            except VersionDamaged:
                current = None  # CURRENT is unreadable; writing a version name repairs it
            if expected is not ... and expected != current:
                raise PointerMoved(f"current is {current}, not {expected}; look again and repeat")
            if not self._path(version).is_dir():
                raise VersionNotFound(f"{version}: it was deleted meanwhile")
            self._remove_left_pointers()
            if current != version:
                sync_folder(self._versions)  # make the version durable before the pointer; its publisher may have died
                self._replace_pointer(version, previous if previous and self._path(previous).is_dir() else current)
            sync_folder(self.folder)  # also if CURRENT did not move: an earlier mover may have died before this step
            return current

    def load(self, version: str) -> Version:
        return self.open(self._manifest(version))

    def open(self, manifest: Manifest, read_paths: PathReader | None = None) -> Version:
        """Map the version of `manifest` and check every digest and shape. With `read_paths`, leave out the path lists.

        Raises the same errors as `load`.
        """
        version, folder = manifest.version, self._path(manifest.version)
        with self._errors("load"):
            try:
                parts = {part: map_file(folder / part) for part in parts_here(manifest, read_paths)}
            except FileNotFoundError as error:
                raise VersionDamaged(f"{version}: {Path(error.filename).name} is missing; publish again") from None
        loaded = Version(manifest, parts, str(folder), read_paths)
        loaded.verify_digests()
        loaded.validate()
        return loaded

    def delete(self, version: str) -> None:
        self._manifest(version)
        with self._errors("delete"), self._lock("CURRENT.lock"):
            if version == self.current():
                raise VersionInUse(f"{version} is current; activate another version before deleting it")
            try:
                with (self._path(version) / MANIFEST).open("rb") as manifest:
                    fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    deleted = self._move_away(version)
            except FileNotFoundError:
                raise VersionNotFound(f"{version}: no such version in {self.folder}") from None
            except BlockingIOError:
                raise VersionInUse(f"{version} is held by a service; delete it when none uses it") from None
        shutil.rmtree(deleted, ignore_errors=True)

    def hold(self, versions: Collection[str]) -> None:
        for name in set(self._held) - set(versions):
            os.close(self._held.pop(name))
        for name in set(versions) - set(self._held):
            with self._errors("hold"), contextlib.suppress(FileNotFoundError, BlockingIOError):
                self._hold_file(name, self._path(name) / MANIFEST)

    def wait(self, seconds: float) -> bool:
        time.sleep(seconds)
        return False

    def sweep(self) -> None:
        for lock, remove in (("PUBLISH.lock", self._remove_leftovers), ("CURRENT.lock", self._remove_left_pointers)):
            with (
                self._errors("sweep"),
                contextlib.suppress(FileNotFoundError, BlockingIOError),  # another process has the lock: swept later
                self._lock(lock, fcntl.LOCK_NB),
            ):
                remove()

    def append(self, drafts: Sequence[Draft], log: LogName = "log", expected: Place | None = None) -> list[int]:
        with self._errors("append to the log"):
            return self._logs[log].append(drafts, expected)

    def read(self, after: Place, most: int, log: LogName = "log") -> list[Record]:
        with self._errors("read the log"):
            return self._logs[log].read(after, most)

    def log_start(self, log: LogName = "log") -> Place:
        with self._errors("read the log"):
            return self._logs[log].start()

    def log_end(self, log: LogName = "log") -> Place:
        with self._errors("read the log"):
            return self._logs[log].end()

    def trim(self, before: int, log: LogName = "log") -> None:
        with self._errors("trim the log"):
            self._logs[log].trim(before)

    # -- the steps of a publish --

    def _make_folders(self) -> None:
        """Create the store's folders. The names are made durable before anything is written into the folders."""
        self._versions.mkdir(parents=True, exist_ok=True)
        if not any(self._versions.iterdir()):
            for folder in self._versions.parents:
                with contextlib.suppress(PermissionError):  # a folder that cannot be opened was not created here
                    sync_folder(folder)

    def _is_whole(self, manifest: Manifest) -> bool:
        try:
            self.open(manifest)
        except IndexStoreError:
            return False
        return True

    def _require_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise self._full_error(
                f"{self.folder}: the version needs {needed / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free; "
                "free some space, for example with `dr-index prune`"
            )

    def _write(
        self,
        manifest: Manifest,
        parts: Mapping[str, Iterable[Buffer]],
        progress: ByteProgress | None,
        *,
        hold: bool = False,
    ) -> None:
        partial, final = self._versions / f".partial-{uuid.uuid4().hex}", self._path(manifest.version)
        total = sum(manifest.parts[part].size for part in parts)
        self._require_room(total + 2**20)
        done = 0
        try:
            partial.mkdir()
            for name, chunks in parts.items():
                with (partial / name).open("xb") as file:
                    for chunk in chunks:
                        done += file.write(chunk)
                        if progress:
                            progress(done, total)
                    file.flush()
                    os.fsync(file.fileno())
            with (partial / MANIFEST).open("xb") as file:
                file.write(manifest.to_json())
                file.flush()
                os.fsync(file.fileno())
            sync_folder(partial)
            if hold:  # before the rename to the final name, so that no process deletes the version first
                self._hold_file(manifest.version, partial / MANIFEST)
            if final.exists():  # a damaged copy
                self._move_away(manifest.version)
            partial.rename(final)
            sync_folder(self._versions)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _hold_file(self, version: str, manifest: Path) -> None:
        """Take a shared lock on the manifest. Raises FileNotFoundError, or BlockingIOError during a delete."""
        descriptor = os.open(manifest, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        before = self._held.pop(version, None)
        if before is not None:
            os.close(before)
        self._held[version] = descriptor

    def _inode(self, version: str) -> int | None:
        """The inode number of the version's folder; None if it is missing. A newly written folder has a new number."""
        try:
            return self._path(version).stat().st_ino
        except OSError:
            return None

    def _move_away(self, version: str) -> Path:
        """Rename the version's folder durably, so that no reader finds the version. A sweep removes the folder."""
        deleted = self._versions / f".deleted-{uuid.uuid4().hex}"
        self._path(version).rename(deleted)
        sync_folder(self._versions)
        return deleted

    def _remove_leftovers(self) -> None:
        """Remove the leftovers of killed publishers and deleters.

        The caller holds PUBLISH.lock, so no other publisher is writing. A deleter may be alive, but removes the same
        folder.
        """
        for entry in self._versions.iterdir():
            if entry.name.startswith((".partial-", ".deleted-")):
                shutil.rmtree(entry, ignore_errors=True)

    def _remove_left_pointers(self) -> None:
        """Remove temporary files of processes that were killed while moving CURRENT. The caller holds CURRENT.lock."""
        for left_over in self.folder.glob(".CURRENT-*"):
            left_over.unlink(missing_ok=True)

    # -- the pointer --

    def _pointer(self) -> tuple[str | None, str | None]:
        with self._errors("read current"):
            try:
                lines = (self.folder / "CURRENT").read_text("utf-8").split("\n")
            except FileNotFoundError:
                return None, None
            except UnicodeDecodeError:
                lines = []
        if len(lines) != 3 or lines[2] or not NAME.match(lines[0]) or (lines[1] and not NAME.match(lines[1])):
            raise VersionDamaged(
                f"{self.folder / 'CURRENT'}: not two version names; repair it with `dr-index activate`"
            )
        return lines[0], lines[1] or None

    def _replace_pointer(self, current: str, previous: str | None) -> None:
        temporary = self.folder / f".CURRENT-{uuid.uuid4().hex}"
        try:
            with temporary.open("x") as file:
                file.write(f"{current}\n{previous or ''}\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / "CURRENT")
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    @contextlib.contextmanager
    def lease(self, task: str) -> Iterator[bool]:
        with contextlib.ExitStack() as stack:
            try:
                with self._errors("lease"):
                    stack.enter_context(self._lock(f"{task.upper()}.lock", fcntl.LOCK_NB))
            except StoreUnavailable as error:
                if not isinstance(error.__cause__, BlockingIOError):
                    raise
                yield False
            else:
                yield True

    # -- files --

    def _path(self, version: str) -> Path:
        return self._versions / check_name(version)

    def _manifest(self, version: str) -> Manifest:
        path = self._path(version) / MANIFEST
        with self._errors("read"):
            try:
                with path.open("rb") as file:
                    text = file.read(MAX_MANIFEST)
            except (FileNotFoundError, NotADirectoryError):
                raise VersionNotFound(f"{version}: no such version in {self.folder}; see `dr-index list`") from None
        return Manifest.from_json(text, version)

    @contextlib.contextmanager
    def _lock(self, name: str, flags: int = 0) -> Iterator[None]:
        """Hold an exclusive lock among processes. The system releases the lock when the process dies."""
        with (self.folder / name).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | flags)
            yield

    @contextlib.contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = f"{verb}: {error.filename or self.folder}: {error.strerror or error}"
            if error.errno in NO_ROOM:
                raise self._full_error(f"{reason}; nothing was kept; free some space and repeat") from error
            raise self._disk_error(reason) from error

    def _full_error(self, reason: str) -> IndexStoreError:  # overridden in copies.py
        return StoreFull(reason)

    def _disk_error(self, reason: str) -> IndexStoreError:
        return StoreUnavailable(reason)


def _pieces(part: Buffer) -> Iterator[Buffer]:
    for start in range(0, len(part), CHUNK):
        yield part[start : start + CHUNK]
