"""The store contract on a Redis server or cluster (redis://, redis+cluster://). keys.py describes the keys.

A publisher claims a name, writes the parts, reads all parts back, writes the manifest, and last adds the name to the
list of versions. If the publisher dies before the last step, readers see no part of the version, and a repeated publish
writes the same keys. A delete first turns the published version into a claimed version. Removing keys needs no memory,
so even a full server can be pruned. Only keys named as in keys.py are ever written or removed.
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
from index_store.manifest import Expected, Manifest, check_name, counter
from index_store.redis.client import Server
from index_store.redis.keys import PIECE, Keys
from index_store.redis.listing import Listing
from index_store.redis.log import ServerLog
from index_store.redis.path_lists import RemotePaths
from index_store.version import LISTS, Buffer, ByteProgress, Version, parts_here

log = logging.getLogger(__name__)

BATCH = 1000  # keys written, read or removed in one round trip
BATCH_BYTES = 2**20  # a batch of writes ends earlier at this size
HOLD_MS = 60_000  # how long a replica's lease lasts
PUBLISH_MS = 5_000  # how long a publisher's lease lasts; every batch renews it
KEY_BYTES = 130  # memory of a key besides its name and value; 122 bytes measured on Redis 7.0
HEADROOM = 1.2  # free memory that a publish needs, as a multiple of the version's size
PROBE = "v1-000000000000"  # a version that does not exist, leased to test whether the server accepts writes


class ServerStore:
    """An IndexStore on a Redis server or cluster. Safe to use from several threads.

    copies: the folder on this host where `load` keeps copies and maps them; if None, `load` reads into memory.
    remote: `load` leaves the path lists on the server.
    """

    def __init__(self, server: Server, namespace: str, *, copies: Copies | None = None, remote: bool = False) -> None:
        self._server, self._keys = server, Keys(namespace)
        self._copies, self._remote = copies, remote
        self._listing = Listing(server, self._keys)
        records = ServerLog(server, self._keys)
        self.append, self.read, self.trim = records.append, records.read, records.trim
        self.log_start, self.log_end, self.lease = records.start, records.end, self._listing.task_lease
        self._holder = uuid.uuid4().hex
        self._held: set[str] = set()
        self._renew_at = 0.0  # when the leases of held versions are next renewed
        self._remote_paths = RemotePaths(server, self._keys)

    def __repr__(self) -> str:
        return f"ServerStore({self._server.address}, namespace {self._keys.namespace})"

    def __str__(self) -> str:
        return f"{self._server.address}, namespace {self._keys.namespace}"

    def require_readable(self) -> None:
        """Do nothing, because every other method reports a server that does not answer."""

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
            log.warning("%s was swept as abandoned while it was being published; starting again", name)
            self._erase(name)

    def versions(self) -> list[Manifest]:
        names = sorted(self._listing.published(), key=counter)
        manifests = []
        for name, text in zip(names, self._get([self._keys.manifest(name) for name in names]), strict=True):
            with suppress(IndexStoreError):  # damaged, or in a different format; `load` reports the defect
                manifests.append(Manifest.from_json(text or b"", name))
        return manifests

    def current(self) -> str | None:
        return self._listing.pointer(self._keys.current)

    def previous(self) -> str | None:
        return self._listing.pointer(self._keys.previous)

    def activate(self, version: str, expected: Expected = ..., previous: str | None = None) -> str | None:
        check_name(version)
        holder = uuid.uuid4().hex
        renew = functools.partial(self._listing.lease, version, holder, PUBLISH_MS)
        renew()  # so that no process deletes the version between the check and the move
        try:
            manifest = self._manifest(version)
            if self._server.address.cluster:  # a node may have lost its keys, so check all keys
                for sizes in (self._blob_sizes(manifest), self._list_sizes(manifest)):
                    self._require_keys(sizes, renew)
                renew()
                self._manifest(version)
            previous = previous if previous and previous in self._listing.published() else None
            replaced = self._listing.move_pointer(version, expected, previous)
        finally:
            with suppress(IndexStoreError):
                self._listing.release(version, holder)
        with suppress(IndexStoreError):  # the message is only a hint, because services poll as well
            self._server.tell(self._keys.current, version)
        return replaced

    def load(self, version: str) -> Version:
        manifest = self._manifest(version)
        remote = self._remote and LISTS in manifest.parts
        reader = functools.partial(self._remote_paths.read, version) if remote else None
        if reader:  # the path lists are not read now, so check at least that they exist
            self._require_keys(self._list_sizes(manifest))
        chunks = functools.partial(self._chunks, manifest)
        if self._copies is None:
            parts = {part: b"".join(chunks(part)) for part in parts_here(manifest, reader)}
            loaded = Version(manifest, parts, None, reader)
            loaded.verify_digests()
            loaded.validate()
            return loaded
        loaded = self._copies.copy(manifest, chunks, reader)
        for old in self._copies.versions():
            if old.version != version:
                with suppress(VersionInUse, VersionNotFound):  # another process on this host uses the old version
                    self._copies.delete(old.version)
        return loaded

    def delete(self, version: str) -> None:
        if check_name(version) not in self._listing.published():
            raise self._not_found(version)
        self._require_unused(version)
        if not self._listing.unseal(version):
            raise self._not_found(version)
        try:
            # A process that loads the version or makes it current first records a lease, then looks up the name. So
            # either this check sees the lease, or the other process finds no such version.
            self._require_unused(version)
        except BaseException:
            with suppress(IndexStoreError):  # if this fails, a later `sweep` seals the version
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
            if manifest and name in self._used():
                # The version is complete and in use: a deleter unsealed it, but died or failed before sealing again.
                self._listing.seal(name)
            elif self._listing.abandoned(name, HOLD_MS):
                self._give_up(name)
        names = sorted(self._listing.published() - self._used())
        for name, text in zip(names, self._get([self._keys.manifest(name) for name in names]), strict=True):
            if text is None:
                log.warning("the manifest of %s is missing in %s; removing the version", name, self._server.address)
                with suppress(VersionInUse, VersionNotFound):
                    self.delete(name)
        stored = {version for key in self._server.scan(self._keys.pattern()) if (version := self._keys.version_of(key))}
        # Read the sets of names after the scan, because a publisher claims a name before it writes the first key. The
        # current version is kept even if it is not listed. A previous version in neither set is removed: it left the
        # sets because a `delete` had begun to remove its keys.
        for orphan in sorted(stored - self._listing.listed() - self._listing.leased() - {str(self.current())}):
            self._erase(orphan)
        self._listing.forget_leases()

    # -- the steps of a publish --

    def _give_up(self, name: str) -> bool:
        """Remove all keys of a claimed version. Returns False if the claim was already removed."""
        unclaimed = self._listing.unclaim(name)
        if unclaimed or name not in self._listing.listed():  # else another process published the same bytes
            self._erase(name)
        return unclaimed

    def _write(self, version: Version, renew: Callable[[], None], progress: ByteProgress | None) -> bool:
        """Write, read back and list a claimed version. Returns False if the version was swept meanwhile."""
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
        """Read every part back. Raises VersionDamaged if a part's digest differs from the digest in the manifest."""
        for part, info in manifest.parts.items():
            digest = hashlib.sha256()
            for chunk in self._chunks(manifest, part):
                digest.update(chunk)
                step(len(chunk))
            if digest.hexdigest() != info.sha256:
                raise VersionDamaged(
                    f"{manifest.version} {part}: its SHA-256 differs from the published one; publish again"
                )

    def _is_whole(self, ours: Manifest, renew: Callable[[], None]) -> bool:
        try:
            manifest = self._manifest(ours.version)
            self._verify(manifest, lambda _: renew())
        except (VersionDamaged, VersionNotFound):
            return False
        if manifest.fingerprint != ours.fingerprint:
            raise VersionIncompatible(
                f"{ours.version} exists with other bytes (a chance of 2^-48); train with another seed"
            )
        return True

    def _require_room(self, size: int) -> None:
        """Raise if a server may evict keys, or has no room for its share of `size` bytes.

        Raises StoreMisconfigured, StoreFull.
        """
        servers = self._server.memory()
        needed = HEADROOM * size / len(servers)
        for memory in servers:
            policy = memory["maxmemory_policy"]
            if policy != "noeviction":
                raise StoreMisconfigured(
                    f"{self._server.address}: maxmemory-policy is {policy}, so it may delete parts of a version; "
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
        """Yield a part piece by piece. Raises VersionDamaged if a piece is missing."""
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
        """The arrays path_ids (P,) and path_offsets (P + 1,)."""
        parts = {part: b"".join(self._chunks(manifest, part)) for part in ("path_ids.npy", "path_offsets.npy")}
        version = Version(manifest, parts)
        return version.array("path_ids.npy"), version.array("path_offsets.npy")

    def _list_sizes(self, manifest: Manifest) -> Iterator[tuple[str, int]]:
        """The key and the size in bytes of each path list. Empty if the version has no path lists."""
        if LISTS not in manifest.parts:
            return
        ids, offsets = self._path_sizes(manifest)
        for path_id, size in zip(ids.tolist(), (4 * np.diff(offsets)).tolist(), strict=True):
            yield self._keys.path(manifest.version, path_id), size

    def _blob_sizes(self, manifest: Manifest) -> Iterator[tuple[str, int]]:
        """The key and the size in bytes of each blob of the parts other than the path lists."""
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
        """Raise VersionDamaged unless each key has the given size in bytes."""
        for group in _groups(entries):
            renew()
            sizes = self._server.sizes([key for key, _ in group])
            for (key, size), actual in zip(group, sizes, strict=True):
                if actual != size:
                    raise VersionDamaged(
                        f"{self._server.address}: {key} has {actual} bytes instead of {size}; publish the version again"
                    )

    def _erase(self, version: str) -> None:
        """Remove all keys of a version that is not listed."""
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
    """The entries in batches. A batch ends at BATCH keys, or as soon as it has BATCH_BYTES bytes."""
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
