"""The store contract, and the functions that work with every store."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from types import EllipsisType
from typing import Protocol

from index_store.address import Address, folder_of
from index_store.errors import InvalidName, PointerMoved, VersionInUse, VersionNotFound
from index_store.folder.store import FolderStore
from index_store.manifest import VERSION, Manifest, check_name
from index_store.version import ByteProgress, Version

NEWEST = 3  # versions that an error message lists when a version was not found


class IndexStore(Protocol):
    """Write-once versions and one small pointer, `current`. Each method says what a reader may observe.

    Every method raises StoreUnavailable when the store cannot be reached.
    """

    def require_readable(self) -> None:
        """Raise StoreMissing if the store does not exist, because that is not the same as an empty store.

        Raises StoreMissing, StoreUnavailable.
        """

    def require_writable(self) -> None:
        """Check that `publish` could work, before hours of training.

        Raises StoreMisconfigured, StoreFull, StoreUnavailable.
        """

    def publish(self, version: Version, progress: ByteProgress | None = None) -> str:
        """Store all of `version` and return its name; `current` does not change.

        Readers see all of it or nothing, even if the publisher dies. If the store already has the same bytes,
        returns the name of that version. Raises VersionDamaged, StoreFull.
        """

    def versions(self) -> list[Manifest]:
        """The manifests of all complete versions, oldest first."""

    def current(self) -> str | None:
        """The version to serve, or None before the first activation."""

    def previous(self) -> str | None:
        """The version that was current before `current`, or None."""

    def activate(self, version: str, expected: str | EllipsisType | None = ...) -> str | None:
        """Make `version` current, atomically, and return what was current before.

        If `expected` is given and is not the current version, raises PointerMoved; None expects no current version.
        Raises VersionNotFound.
        """

    def load(self, version: str) -> Version:
        """Load the version and check every digest and shape. The result stays valid even if the version is deleted.

        Raises VersionNotFound, VersionDamaged, VersionIncompatible.
        """

    def delete(self, version: str) -> None:
        """Remove `version`. Processes that have loaded all of it keep their copy.

        Raises VersionNotFound, and VersionInUse while it is current or held.
        """

    def hold(self, versions: Collection[str]) -> None:
        """Protect `versions` from deletion by anyone, and release all other versions that this object held.

        The protection ends when the process exits. Redis cannot see that, so there it ends a minute after the last
        call: call again before. Versions that do not exist are ignored.
        """

    def wait(self, seconds: float) -> bool:
        """Return True as soon as `current` seems to have moved, else False after `seconds`. Never raises.

        The result is only a hint: it may be wrong, and a move may be missed.
        """

    def sweep(self) -> None:
        """Remove what killed publishers and deleters left. Complete versions and running publishes are not touched."""


def open_store(
    url: str, *, password: str | None = None, cache: str | None = None, remote: bool = False, timeout: float = 0.1
) -> IndexStore:
    """The store at `url`: `file:///dir` or a plain path, redis://, rediss:// (TLS), redis+cluster://.

    A plain path may begin with ~, and has no ':' before its first '/'.

    The other arguments are for Redis. password: used if the URL has none. cache: a folder on this host; versions are
    copied to it and mapped from it. Without it, versions are loaded into memory. remote: leave the path lists in Redis
    and read those that a request needs, within `timeout` seconds. Opens no connection yet. Raises InvalidName.
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
    """The full name of the version that `given` means: a full name, or the beginning of exactly one, such as v2.

    A full name is returned without looking for it; the method that uses it reports a missing version. Raises
    InvalidName, VersionNotFound.
    """
    if VERSION.fullmatch(check_name(given)):
        return given
    names = [manifest.version for manifest in store.versions()]
    # A damaged version is not listed, but the pointers may name it; the method that uses it reports the damage.
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

    A second rollback undoes the first. Raises PointerMoved when there is nothing to go back to.
    """
    current, previous = rollback_target(store)
    store.activate(previous, expected=current)
    return previous, current


def rollback_target(store: IndexStore) -> tuple[str, str]:
    """The current version and the one before it. Raises PointerMoved when there is nothing to go back to."""
    current, previous = store.current(), store.previous()
    if current is None or previous is None:
        raise PointerMoved("nothing to roll back to: fewer than two versions have been current")
    return current, previous


def prune(store: IndexStore, keep: int) -> list[str]:
    """Delete all but the newest `keep` versions, the current, the previous and those in use. Returns the deleted names.

    Also removes what killed publishers left.
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
