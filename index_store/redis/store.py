"""redis:// and redis+cluster:// -- the store contract on a key-value server. keys.py has the keys.

A publisher first claims a name, then writes, reads all of it back, writes the manifest, and last lists the name among
the versions: whenever it dies, readers see nothing of it, and doing it again writes the same keys. A delete makes a
published version a claimed one first. Removing needs no memory, so a full server can be pruned.
Only keys named as in keys.py are ever written or removed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import time
import uuid
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
    VersionDamaged,
    VersionIncompatible,
    VersionInUse,
    VersionNotFound,
)
from index_store.folder.copies import Copies
from index_store.manifest import Manifest, check_name
from index_store.redis.client import Server
from index_store.redis.keys import PIECE, Keys
from index_store.redis.listing import Listing, number
from index_store.redis.path_lists import RemotePaths
from index_store.version import LISTS, Buffer, ByteProgress, Version

log = logging.getLogger(__name__)

BATCH = 1000  # keys written, read or removed together, or
BATCH_BYTES = 2**20  # bytes written together, whichever is reached first
HOLD_MS = 60_000  # how long a replica's lease lasts
PUBLISH_MS = 5_000  # and a publisher's, which is renewed with every batch
KEY_BYTES = 130  # what a key costs the server beside its name and value; 122 measured on Redis 7.0
HEADROOM = 1.2  # a publish needs so many times its own bytes free
PROBE = "v1-000000000000"  # a version that is none, leased to see whether the server takes writes


class ServerStore:
    """IndexStore on a server. Safe to use from several threads.

    copies: where `load` keeps versions on this host, to be mapped; without, it loads into memory. remote: `load`
    leaves the path lists on the server.
    """

    def __init__(self, server: Server, namespace: str, *, copies: Copies | None = None, remote: bool = False) -> None:
        self._server, self._keys = server, Keys(namespace)
        self._copies, self._remote = copies, remote
        self._listing = Listing(server, self._keys)
        self._holder = uuid.uuid4().hex
        self._held: set[str] = set()
        self._renew_at = 0.0  # when the leases of what is held are renewed
        self._remote_paths = RemotePaths(server, self._keys)

    def __repr__(self) -> str:
        return f"ServerStore({self._server.address}, namespace {self._keys.namespace})"

    def __str__(self) -> str:
        return f"{self._server.address}, namespace {self._keys.namespace}"

    def require_readable(self) -> None:
        """A server that is not there says so itself, at every verb."""

    def require_writable(self) -> None:
        self._listing.require_ours()
        self._require_room(0)
        self._listing.lease(PROBE, self._holder, PUBLISH_MS)
        self._listing.release(PROBE, self._holder)

    def publish(self, version: Version, progress: ByteProgress | None = None) -> str:
        version.validate()
        version.verify_digests()
        self._listing.require_ours()
        publisher = uuid.uuid4().hex
        while True:
            name, published = self._listing.claim(version.manifest.fingerprint)
            named = dataclasses.replace(version, manifest=dataclasses.replace(version.manifest, version=name))
            renew = functools.partial(self._listing.lease, name, publisher, PUBLISH_MS)
            try:
                renew()
                if (published and self._is_whole(named.manifest, renew)) or self._write(named, renew, progress):
                    return name
            except VersionDamaged:
                if name in self._listing.published() or self._give_up(name):
                    raise
            except BaseException:
                with suppress(IndexStoreError):
                    self._give_up(name)
                raise
            finally:
                with suppress(IndexStoreError):
                    self._listing.release(name, publisher)
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
        holder = uuid.uuid4().hex
        renew = functools.partial(self._listing.lease, version, holder, PUBLISH_MS)
        renew()  # so that nobody deletes it between the look and the move
        try:
            manifest = self._manifest(version)
            if self._server.address.cluster:  # nodes fail one by one, so each is asked for its share
                for sizes in (self._blob_sizes(manifest), self._list_sizes(manifest)):
                    self._require_keys(sizes, renew)
                renew()
                self._manifest(version)
            replaced = self._listing.move_pointer(version, expected)
        finally:
            with suppress(IndexStoreError):
                self._listing.release(version, holder)
        with suppress(IndexStoreError):  # a hint; who misses it polls
            self._server.tell(self._keys.current, version)
        return replaced

    def load(self, version: str) -> Version:
        manifest = self._manifest(version)
        remote = self._remote and LISTS in manifest.parts
        reader = functools.partial(self._remote_paths.read, version) if remote else None
        if reader:  # what is read later must be there now
            self._require_keys(self._list_sizes(manifest))
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

    def delete(self, version: str) -> None:
        if check_name(version) not in self._listing.published():
            raise self._not_found(version)
        self._require_unused(version)
        if not self._listing.unseal(version):
            raise self._not_found(version)
        try:
            # Whoever loads it or makes it current leases it first and looks for its name second, so that one of us
            # sees the other.
            self._require_unused(version)
        except BaseException:
            with suppress(IndexStoreError):  # then `sweep` does it
                self._listing.seal(version)
            raise
        self._give_up(version)

    def hold(self, versions: Collection[str]) -> None:
        if self._copies:
            self._copies.hold(versions)
        wanted = set(versions)
        if wanted == self._held and time.monotonic() < self._renew_at:
            return
        for name in self._held - wanted:
            self._listing.release(name, self._holder)
            self._held.discard(name)
        for name in wanted:
            self._listing.lease(name, self._holder, HOLD_MS)
            self._held.add(name)
        self._renew_at = time.monotonic() + HOLD_MS / 12_000

    def wait(self, seconds: float) -> bool:
        return self._server.wait(self._keys.current, seconds)

    def sweep(self) -> None:
        for name in self._listing.publishing():
            (manifest,) = self._get([self._keys.manifest(name)])  # written last
            if manifest and name in self._used():  # whole: its delete gives way, or died before it could
                self._listing.seal(name)
            elif self._listing.abandoned(name, HOLD_MS):
                self._give_up(name)
        names = sorted(self._listing.published() - self._used())
        for name, text in zip(names, self._get([self._keys.manifest(name) for name in names]), strict=True):
            if text is None:
                log.warning("%s has lost its manifest in %s; it is removed", name, self._server.address)
                with suppress(VersionInUse, VersionNotFound):
                    self.delete(name)
        found = {version for key in self._server.scan(self._keys.pattern()) if (version := self._keys.version_of(key))}
        # Looked at after the scan: who publishes lists a version before its first key. What is served is kept even
        # so, whatever became of the list; the version before, if a dead deleter had unlisted it, is lost anyway.
        for orphan in sorted(found - self._listing.listed() - self._listing.leased() - {str(self.current())}):
            self._erase(orphan)
        self._listing.forget_leases()

    # -- the steps of a publish --

    def _give_up(self, name: str) -> bool:
        """Remove all of a claimed version; False if the claim was gone."""
        unclaimed = self._listing.unclaim(name)
        if unclaimed or name not in self._listing.listed():  # else somebody with the same bytes published it
            self._erase(name)
        return unclaimed

    def _write(self, version: Version, renew: Callable[[], None], progress: ByteProgress | None) -> bool:
        """Write, read back and list a claimed version; False where it was swept meanwhile."""
        manifest, name = version.manifest, version.manifest.version
        parts = sum(info.size for info in manifest.parts.values())
        names = len(self._keys.path(name, 2**40))
        lists = len(version.array("path_ids.npy")) if LISTS in version.parts else 0
        self._require_room(parts + lists * (KEY_BYTES + names))
        total, done = 2 * sum(info.size for info in manifest.parts.values()), 0

        def step(size: int) -> None:
            nonlocal done
            done += size
            renew()
            if progress:
                progress(done, total)

        for batch in _batches(self._keys.entries(version)):
            self._server.put(batch)
            step(sum(len(value) for _, value in batch))
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

    def _is_whole(self, ours: Manifest, renew: Callable[[], None]) -> bool:
        try:
            manifest = self._manifest(ours.version)
            self._verify(manifest, lambda _: renew())
        except (VersionDamaged, VersionNotFound):
            return False
        if manifest.fingerprint != ours.fingerprint:
            raise VersionIncompatible(f"{ours.version} has other bytes, by a chance of 2^-48; train with another seed")
        return True

    def _require_room(self, size: int) -> None:
        """Raise unless every server keeps what it is given, and has room for its share of `size` bytes."""
        servers = self._server.memory()
        needed = HEADROOM * size / len(servers)
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
        yield present(self._get(self._keys.blobs(name, LISTS, 1))[0])
        for keys in _groups(self._keys.path(name, path_id) for path_id in self._path_sizes(manifest)[0].tolist()):
            yield b"".join(map(present, self._get(keys)))

    def _path_sizes(self, manifest: Manifest) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """path_ids (P,) and path_offsets (P + 1,)."""
        parts = {part: b"".join(self._chunks(manifest, part)) for part in ("path_ids.npy", "path_offsets.npy")}
        version = Version(manifest, parts)
        return version.array("path_ids.npy"), version.array("path_offsets.npy")

    def _list_sizes(self, manifest: Manifest) -> Iterator[tuple[str, int]]:
        """The keys of the path lists, and their bytes; none where the version has no path lists."""
        if LISTS not in manifest.parts:
            return
        ids, offsets = self._path_sizes(manifest)
        for path_id, size in zip(ids.tolist(), (4 * np.diff(offsets)).tolist(), strict=True):
            yield self._keys.path(manifest.version, path_id), size

    def _blob_sizes(self, manifest: Manifest) -> Iterator[tuple[str, int]]:
        """The keys of the other parts, and their bytes."""
        for part, info in manifest.parts.items():
            if part != LISTS:
                for i, key in enumerate(self._keys.blobs(manifest.version, part, info.size)):
                    yield key, min(PIECE, info.size - i * PIECE)

    def _get(self, keys: list[str]) -> list[bytes | None]:
        return self._server.get(keys) if keys else []

    def _used(self) -> set[str | None]:
        return {*self._listing.leased(), self.current(), self.previous()}

    def _require_unused(self, version: str) -> None:
        if version == self.current():
            raise VersionInUse(f"{version} is current; activate another version before deleting it")
        if version in self._listing.leased():
            raise VersionInUse(f"{version} is held by a service; delete it when none uses it")

    def _require_keys(self, entries: Iterable[tuple[str, int]], renew: Callable[[], None] = lambda: None) -> None:
        """Raise VersionDamaged unless the keys have so many bytes each."""
        for group in _groups(entries):
            renew()
            found = self._server.sizes([key for key, _ in group])
            for (key, size), there in zip(group, found, strict=True):
                if there != size:
                    raise VersionDamaged(
                        f"{self._server.address}: {key} has {there} bytes instead of {size}; publish the version again"
                    )

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
