"""The store contract, and the functions that work with every store."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Protocol

from index_store.address import Address, folder_of
from index_store.errors import InvalidName, PointerMoved, VersionInUse, VersionNotFound
from index_store.folder.store import FolderStore
from index_store.log import Draft, LogName, Place, Record
from index_store.manifest import VERSION, Expected, Manifest, check_name
from index_store.version import ByteProgress, Version

NEWEST = 3  # versions that an error message lists when a version was not found


class IndexStore(Protocol):
    """Write-once versions and one small pointer, `current`. Each docstring describes what a reader may observe.

    A method raises StoreUnavailable when it cannot reach the store; only `wait` never raises.
    """

    def require_readable(self) -> None:
        """Raise StoreMissing if the store does not exist. An existing store without versions is readable.

        Raises StoreMissing, StoreUnavailable.
        """

    def require_writable(self) -> None:
        """Check before hours of training that the store accepts writes. The room for a version is checked by `publish`.

        Raises StoreMisconfigured, StoreFull, StoreUnavailable.
        """

    def publish(self, version: Version, progress: ByteProgress | None = None) -> str:
        """Store all of `version` and return its name; `current` does not change.

        Readers see the whole version or nothing, even if the publisher dies. If the store already has a version with
        the same bytes, returns the name of the stored version. Raises VersionDamaged, StoreFull.
        """

    def versions(self) -> list[Manifest]:
        """The manifests of all complete versions, oldest first."""

    def current(self) -> str | None:
        """The version to serve, or None before the first activation."""

    def previous(self) -> str | None:
        """The version that a rollback returns to, usually the one that was current before `current`; or None."""

    def activate(self, version: str, expected: Expected = ..., previous: str | None = None) -> str | None:
        """Make `version` current, atomically, and return the version that was current before.

        previous: the version that a rollback then returns to, if it exists, instead of the one that was current before.
        If `expected` is given and is not the current version, raises PointerMoved. `expected=None` expects that no
        version is current. Raises VersionNotFound.
        """

    def load(self, version: str) -> Version:
        """Load the version and check every digest and shape. The result stays valid even if the version is deleted
        (with `remote=True` only until its path lists are gone).

        Raises VersionNotFound, VersionDamaged, VersionIncompatible.
        """

    def delete(self, version: str) -> None:
        """Remove `version`. Processes that have loaded the whole version keep their copy.

        Raises VersionNotFound, and VersionInUse while the version is current or held.
        """

    def hold(self, versions: Collection[str]) -> None:
        """Protect `versions` from deletion by any process, and release all other versions that this object held.

        In a folder, the protection ends when the process exits. Redis cannot see the exit, so in Redis the protection
        ends a minute after the last call, and callers renew it by calling again. Missing versions are ignored.
        """

    def wait(self, seconds: float) -> bool:
        """Return True as soon as `current` seems to have moved, else False after `seconds`. Never raises.

        The result is only a hint. It may be wrong, and a move of `current` may be missed.
        """

    def append(self, drafts: Sequence[Draft], log: LogName = "log", expected: Place | None = None) -> list[int]:
        """Append drafts to a log, and return the number of each one's record. A repeat is not stored again.

        expected: if something is to be stored, the log must end there; else LogMoved is raised.
        When this returns, the records are durable: on the disk of a folder, or in Redis as its `appendfsync` says.
        After an error, all of them were stored or none, and a repeat is safe. Raises StoreFull, LogDamaged.
        """

    def read(self, after: Place, most: int, log: LogName = "log") -> list[Record]:
        """Records of a log after `after`, in order, about `most`; [] at the end of the log. For one thread at a time.

        Raises LogBroken if the log does not continue `after`: the next record was removed, the record of `after` was
        lost, or the log belongs to another catalogue. Raises LogDamaged, LogIncompatible.
        """

    def log_start(self, log: LogName = "log") -> Place:
        """The place before the first record of a log that was not trimmed. Raises LogDamaged."""

    def log_end(self, log: LogName = "log") -> Place:
        """The place after the last record of a log. Raises LogDamaged."""

    def trim(self, before: int, log: LogName = "log") -> None:
        """Remove records of a log with numbers below `before`; some may be kept."""

    def lease(self, task: str) -> AbstractContextManager[bool]:
        """Whether this process may do `task` until the context ends; while it may, no other process may.

        If the process dies, another may at once (folder), or after 15 s (Redis).
        """

    def sweep(self) -> None:
        """Remove the leftovers of killed publishers and deleters. Keeps complete versions and running publishes."""


def open_store(
    url: str, *, password: str | None = None, cache: str | None = None, remote: bool = False, timeout: float = 0.1
) -> IndexStore:
    """The store at `url`: `file:///dir` or a plain path, redis://, rediss:// (TLS), redis+cluster://.

    A plain path may begin with ~, and has no ':' before its first '/'. Opens no connection yet. Raises InvalidName.

    The other arguments are for Redis. password: used if the URL has no password. cache: a folder on this host, to which
    versions are copied and from which they are mapped; without a cache, versions are loaded into memory. remote: leave
    the path lists in Redis and read, for each request, only the lists it needs, within `timeout` seconds.
    """
    folder = folder_of(url)
    if folder is not None:
        return FolderStore(str(folder))
    from index_store.folder.copies import Copies
    from index_store.redis.client import Server  # only a Redis store needs the client library
    from index_store.redis.store import ServerStore

    address = Address.parse(url.strip(), password)
    copies = None
    if cache:
        folder = folder_of(cache, "the cache folder (DR_CACHE)")
        if folder is None:
            raise InvalidName("the cache folder (DR_CACHE): expected a folder on this host, found a server's URL")
        copies = Copies(str(folder))
    return ServerStore(Server(address, timeout), address.namespace, copies=copies, remote=remote)


def find_version(store: IndexStore, given: str) -> str:
    """The full name for `given`, which is a full name or the beginning of exactly one version's name, such as v2.

    A full name is returned without a search in the store; the method that later uses the name reports a missing
    version. Raises InvalidName, VersionNotFound.
    """
    if VERSION.fullmatch(check_name(given)):
        return given
    names = [manifest.version for manifest in store.versions()]
    # A damaged version is not listed, but a pointer may name it. The method that uses the name reports the damage.
    names += [name for name in (store.previous(), store.current()) if name and name not in names]
    beginning = given if "-" in given else f"{given}-"
    matches = [name for name in names if name == given or name.startswith(beginning)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InvalidName(
            f"{given}: {len(matches)} versions begin like this: {', '.join(matches)}; write more of the name"
        )
    newest = f"the newest are {', '.join(names[: -NEWEST - 1 : -1])}" if names else "there are no versions"
    raise VersionNotFound(f"{given}: no such version in {store}; {newest}")


def rollback(store: IndexStore) -> tuple[str, str]:
    """Make the previous version current again. Returns (the version, the version that it replaced).

    A second rollback undoes the first. Raises PointerMoved if there is no previous version.
    """
    current, previous = rollback_target(store)
    store.activate(previous, expected=current)
    return previous, current


def rollback_target(store: IndexStore) -> tuple[str, str]:
    """(current version, previous version). Raises PointerMoved if one of them is missing."""
    current, previous = store.current(), store.previous()
    if current is None or previous is None:
        raise PointerMoved("nothing to roll back to: there is no current or no previous version")
    return current, previous


def prune(store: IndexStore, keep: int) -> list[str]:
    """Delete old versions and return their names. Also removes the leftovers of killed publishers.

    Keeps the newest `keep` versions, the current and the previous version, and versions in use.
    """
    names = [manifest.version for manifest in store.versions()]
    kept = {*names[max(0, len(names) - keep) :], store.current(), store.previous()}
    deleted = []
    for name in names:
        if name not in kept:
            with suppress(VersionInUse, VersionNotFound):  # a replica holds it, or another process deleted it
                store.delete(name)
                deleted.append(name)
    store.sweep()
    return deleted
