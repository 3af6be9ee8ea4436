"""redis:// and redis+cluster:// -- the store contract on a key-value server. keys.py has the keys.

A publisher first claims a name, then writes, reads all of it back, writes the manifest, and last lists the name among
the versions: whenever it dies, readers see nothing of it, and doing it again writes the same keys. Whoever deletes
takes the name from the list first. Removing needs no memory, so a full server can be pruned.
Only keys named as in keys.py are ever written or removed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.errors import (
    IndexStoreError,
    StoreFull,
    StoreMisconfigured,
    StoreUnavailable,
    VersionDamaged,
    VersionInUse,
    VersionNotFound,
)
from index_store.folder import FolderStore
from index_store.keys import Keys, lists_header
from index_store.listing import Listing, number
from index_store.redis import Server
from index_store.retrieval import Postings
from index_store.version import LISTS, Buffer, Manifest, Progress, Version, check_name

log = logging.getLogger(__name__)

BATCH = 1000  # keys written, read or removed together, or
BATCH_BYTES = 2**20  # bytes written together, whichever is reached first
HOLD_MS = 60_000  # how long a replica's lease lasts
PUBLISH_MS = 5_000  # and a publisher's, which is renewed with every batch
KEY_BYTES = 130  # what a key costs the server beside its name and value; 122 measured on Redis 7.0
HEADROOM = 1.2  # a publish needs so many times its own bytes free
PAUSE = 0.25  # seconds without asking again after the server did not answer a request


class ServerStore:
    """IndexStore on a server. Safe to use from several threads.

    copies: where `load` keeps versions on this host, to be mapped; without, it loads into memory. remote: `load`
    leaves the path lists on the server.
    """

    def __init__(
        self, server: Server, namespace: str, *, copies: FolderStore | None = None, remote: bool = False
    ) -> None:
        self._server, self._keys = server, Keys(namespace)
        self._copies, self._remote = copies, remote
        self._listing = Listing(server, self._keys)
        self._held: set[str] = set()
        self._renew_at = 0.0  # when the leases of what is held are renewed
        self._paused_until = 0.0  # until then no request asks

    def __repr__(self) -> str:
        return f"ServerStore({self._server.address}, namespace {self._keys.namespace})"

    def publish(self, version: Version, progress: Progress | None = None) -> str:
        version.validate()
        version.verify_digests()
        self.current()  # fails where the namespace is another application's
        while True:
            name, published = self._listing.claim(version.manifest.fingerprint)
            named = dataclasses.replace(version, manifest=dataclasses.replace(version.manifest, version=name))
            try:
                self._listing.lease(name, PUBLISH_MS)
                if (published and self._is_whole(name)) or self._write(named, progress):
                    return name
            except VersionDamaged:
                if published or self._give_up(name):
                    raise
            except BaseException:
                with suppress(IndexStoreError):
                    self._give_up(name)
                raise
            finally:
                with suppress(IndexStoreError):
                    self._listing.release(name)
            log.warning("%s was taken for abandoned and swept while it was published; beginning again", name)
            self._erase(name)

    def versions(self) -> list[Manifest]:
        names = sorted(self._listing.published(), key=number)
        found = []
        for name, text in zip(names, self._get([self._keys.manifest(name) for name in names]), strict=True):
            with suppress(IndexStoreError):  # damaged, or of another format: `load` says which
                found.append(Manifest.from_json(text or b"", name))
        return found

    def current(self) -> str | None:
        return self._listing.pointer(self._keys.current)

    def previous(self) -> str | None:
        return self._listing.pointer(self._keys.previous)

    def activate(self, version: str, expected: str | EllipsisType | None = ...) -> str | None:
        check_name(version)
        self._listing.lease(version, PUBLISH_MS)  # so that nobody deletes it between the look and the move
        try:
            manifest = self._manifest(version)
            if self._server.address.cluster:  # nodes fail one by one, so each is asked for its share
                self._require_all_keys(manifest)
            replaced = self._listing.move_pointer(version, expected)
        finally:
            if version not in self._held:
                self._listing.release(version)
        with suppress(IndexStoreError):  # a hint; who misses it polls
            self._server.tell(self._keys.current, version)
        return replaced

    def load(self, version: str) -> Version:
        manifest = self._manifest(version)
        reader = functools.partial(self._read_paths, version) if self._remote else None
        chunks = functools.partial(self._chunks, manifest)
        if self._copies is None:
            parts = {part: b"".join(chunks(part)) for part in manifest.parts if part != LISTS or reader is None}
            loaded = Version(manifest, parts, None, reader)
            loaded.verify_digests()
            loaded.validate()
            return loaded
        loaded = self._copies.copy(manifest, chunks, reader)
        for old in self._copies.versions():
            if old.version != version:
                with suppress(VersionInUse, VersionNotFound):  # a process of this host has it
                    self._copies.delete(old.version)
        return loaded

    def lookup(self, version: str, path_ids: NDArray[np.int64], n: int) -> Postings:
        manifest = self._manifest(version)
        parts = {part: b"".join(self._chunks(manifest, part)) for part in manifest.parts if part != LISTS}
        index = Version(manifest, parts, None, functools.partial(self._read_paths, version)).index
        return index.lookup(path_ids, n)

    def delete(self, version: str) -> None:
        if check_name(version) not in self._listing.published():
            raise self._not_found(version)
        self._require_unused(version)
        if not self._listing.remove(version):
            raise self._not_found(version)
        try:
            # Whoever loads it or makes it current leases it first and looks for its name second, so that one of us
            # sees the other.
            self._require_unused(version)
        except VersionInUse:
            self._listing.restore(version)
            raise
        self._erase(version)

    def hold(self, versions: Collection[str]) -> None:
        if self._copies:
            self._copies.hold(versions)
        wanted = set(versions)
        if wanted == self._held and time.monotonic() < self._renew_at:
            return
        for name in self._held - wanted:
            self._listing.release(name)
            self._held.discard(name)
        for name in wanted:
            self._listing.lease(name, HOLD_MS)
            self._held.add(name)
        self._renew_at = time.monotonic() + HOLD_MS / 3000

    def wait(self, seconds: float) -> bool:
        return self._server.wait(self._keys.current, seconds)

    def sweep(self) -> None:
        for name in self._listing.publishing():
            if self._listing.abandoned(name) and self._listing.unclaim(name):
                self._erase(name)
        found = {version for key in self._server.scan(self._keys.pattern()) if (version := self._keys.version_of(key))}
        # Looked at after the scan: who publishes lists a version before its first key. What is in use is kept even
        # so, whatever became of the list.
        listed = self._listing.publishing() | self._listing.published()
        used = {*listed, *self._listing.leased(), self.current(), self.previous()}
        for orphan in sorted(found - used):
            self._erase(orphan)
        self._server.forget_leases(self._keys.leases)

    # -- the steps of a publish --

    def _give_up(self, name: str) -> bool:
        """Remove what was written of a claimed version; False if the claim was gone, and all with it."""
        if not self._listing.unclaim(name):
            return False
        self._erase(name)
        return True

    def _write(self, version: Version, progress: Progress | None) -> bool:
        """Write, read back and list a claimed version; False where it was swept meanwhile."""
        manifest, name = version.manifest, version.manifest.version
        self._require_room(manifest)
        total, done = 2 * sum(info.size for info in manifest.parts.values()), 0

        def step(size: int) -> None:
            nonlocal done
            done += size
            self._listing.lease(name, PUBLISH_MS)
            if progress:
                progress(done, total)

        for batch in _batches(self._keys.entries(version)):
            self._server.put(batch)
            step(sum(len(value) for _, value in batch))
        step(len(lists_header(manifest)))
        self._verify(manifest, step)
        self._server.put([(self._keys.manifest(name), manifest.to_json())])
        return self._listing.seal(name)

    def _verify(self, manifest: Manifest, step: Callable[[int], None]) -> None:
        """Read every part back. Raises VersionDamaged unless it is what was to be published."""
        for part, info in manifest.parts.items():
            digest = hashlib.sha256()
            for chunk in self._chunks(manifest, part):
                digest.update(chunk)
                step(len(chunk))
            if digest.hexdigest() != info.sha256:
                raise VersionDamaged(f"{manifest.version} {part}: its SHA-256 is not the published one; publish again")

    def _is_whole(self, name: str) -> bool:
        try:
            self._verify(self._manifest(name), lambda _: self._listing.lease(name, PUBLISH_MS))
        except (VersionDamaged, VersionNotFound):
            return False
        return True

    def _require_room(self, manifest: Manifest) -> None:
        servers = self._server.memory()
        parts = sum(info.size for info in manifest.parts.values())
        names = len(self._keys.path(manifest.version, 2**40))
        needed = HEADROOM * (parts + manifest.paths * (KEY_BYTES + names)) / len(servers)
        for memory in servers:
            policy = memory["maxmemory_policy"]
            if policy != "noeviction":
                raise StoreMisconfigured(
                    f"{self._server.address}: maxmemory-policy is {policy}, so parts of a version may vanish unseen; "
                    "set it to noeviction (redis-cli config set maxmemory-policy noeviction)"
                )
            free = (memory["maxmemory"] or memory["total_system_memory"]) - memory["used_memory"]
            if free < needed:
                raise StoreFull(
                    f"{self._server.address}: the version needs {needed / 2**20:.0f} MiB on each server and one has "
                    f"{max(0, free) / 2**20:.0f} MiB free; delete versions with `dr-index prune` or raise maxmemory"
                )

    # -- reading a version --

    def _manifest(self, version: str) -> Manifest:
        """The manifest of a published version."""
        if check_name(version) not in self._listing.published():
            raise self._not_found(version)
        (text,) = self._get([self._keys.manifest(version)])
        if text is None:
            raise VersionDamaged(f"{version}: its manifest is missing in {self._server.address}; publish again")
        return Manifest.from_json(text, version)

    def _chunks(self, manifest: Manifest, part: str) -> Iterator[bytes]:
        """A part, piece by piece, as it is stored. Raises VersionDamaged where a piece is missing."""
        name = manifest.version

        def present(value: bytes | None) -> bytes:
            if value is None:
                raise VersionDamaged(f"{name} {part}: a piece is missing in {self._server.address}; publish again")
            return value

        if part != LISTS:
            for key in self._keys.blobs(name, part, manifest.parts[part].size):
                yield present(self._get([key])[0])
            return
        yield lists_header(manifest)
        path_ids = Version(manifest, {"path_ids.npy": b"".join(self._chunks(manifest, "path_ids.npy"))})
        for keys in _groups(self._keys.path(name, path_id) for path_id in path_ids.array("path_ids.npy").tolist()):
            yield b"".join(map(present, self._get(keys)))

    def _read_paths(self, version: str, path_ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int32]:
        """A PathReader for requests: one round trip, and a pause after the server did not answer."""
        if time.monotonic() < self._paused_until:
            raise StoreUnavailable(f"{self._server.address} did not answer a moment ago; it is asked again soon")
        try:
            keys = [self._keys.path(version, path_id) for path_id in path_ids.tolist()]
            found = self._server.heads(keys, (4 * lengths).tolist())
        except StoreUnavailable as error:
            self._paused_until = time.monotonic() + PAUSE
            log.error("requests are refused for now: %s", error)
            raise
        if np.any(np.fromiter(map(len, found), np.int64, len(found)) != 4 * lengths):
            # Not an empty path: those are not in use, and are not asked for.
            log.error("%s: path lists are missing or cut short in %s; publish it again", version, self._server.address)
            raise StoreUnavailable(f"{version}: a path list is missing or cut short; publish it again")
        return np.frombuffer(b"".join(found), "<i4")

    def _get(self, keys: list[str]) -> list[bytes | None]:
        return self._server.get(keys) if keys else []

    def _require_unused(self, version: str) -> None:
        if version == self.current():
            raise VersionInUse(f"{version} is current; activate another version before deleting it")
        if version in self._listing.leased():
            raise VersionInUse(f"{version} is held by a service; delete it when none uses it")

    def _require_all_keys(self, manifest: Manifest) -> None:
        """Raise VersionDamaged unless every node has all keys of the version that it should."""
        name = manifest.version
        path_ids = Version(manifest, {"path_ids.npy": b"".join(self._chunks(manifest, "path_ids.npy"))})
        keys = [self._keys.path(name, path_id) for path_id in path_ids.array("path_ids.npy").tolist()]
        for part, info in manifest.parts.items():
            keys += self._keys.blobs(name, part, info.size) if part != LISTS else []
        found = sum(map(self._server.count, _groups(keys)))
        if found != len(keys):
            raise VersionDamaged(f"{name}: {len(keys) - found} of {len(keys)} keys are missing; publish again")

    def _erase(self, version: str) -> None:
        """Remove all keys of an unlisted version."""
        ours = (key for key in self._server.scan(self._keys.pattern(version)) if self._keys.version_of(key) == version)
        for keys in _groups(ours):
            self._server.remove(keys)

    def _not_found(self, version: str) -> VersionNotFound:
        return VersionNotFound(f"{version}: no such version in {self._server.address}; see `dr-index list`")


def _groups(keys: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(keys)
    while group := list(islice(iterator, BATCH)):
        yield group


def _batches(entries: Iterable[tuple[str, Buffer]]) -> Iterator[list[tuple[str, Buffer]]]:
    """Entries by BATCH, or BATCH_BYTES if that is less."""
    batch: list[tuple[str, Buffer]] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        size += len(entry[1])
        if len(batch) >= BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
