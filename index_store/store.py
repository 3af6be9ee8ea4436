"""The store contract, and what follows from it on every backend."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from types import EllipsisType
from typing import Protocol

from index_store.address import Address, folder_of
from index_store.errors import InvalidName, PointerMoved, VersionInUse, VersionNotFound
from index_store.folder.store import FolderStore
from index_store.manifest import Manifest, check_name
from index_store.version import ByteProgress, Version

WHOLE_NAME = re.compile(r"v\d+-[0-9a-f]{12}")
NEWEST = 3  # versions that are named where one was not found


class IndexStore(Protocol):
    """Write-once versions and one small pointer, `current`. Each verb says what a reader may observe.

    Every verb raises StoreUnavailable when the store cannot be reached.
    """

    def require_readable(self) -> None:
        """Raise where there is nothing to read from: a store that is not there is not an empty one.

        StoreMissing, StoreUnavailable.
        """

    def require_writable(self) -> None:
        """Raise what `publish` would raise where nothing can be published: to be asked before hours of training.

        StoreMisconfigured, StoreFull, StoreUnavailable.
        """

    def publish(self, version: Version, progress: ByteProgress | None = None) -> str:
        """Store `version` whole and return its name; `current` stays where it is.

        Readers see all of it or nothing, whenever the publisher dies. Publishing bytes that are already
        there returns the name they have. Raises VersionDamaged, StoreFull.
        """

    def versions(self) -> list[Manifest]:
        """The manifests of all whole versions, oldest first."""

    def current(self) -> str | None:
        """The version to serve, or None before the first activation."""

    def previous(self) -> str | None:
        """The version that was current before `current`, or None."""

    def activate(self, version: str, expected: str | EllipsisType | None = ...) -> str | None:
        """Make `version` current, atomically, and return what was current before.

        With `expected`, only if that is current now (None: nothing is), else raises PointerMoved.
        Raises VersionNotFound.
        """

    def load(self, version: str) -> Version:
        """The version, every digest and shape checked. What is returned never changes, even if deleted.

        Raises VersionNotFound, VersionDamaged, VersionIncompatible.
        """

    def delete(self, version: str) -> None:
        """Remove `version`. Who has loaded it whole keeps it.

        Raises VersionNotFound, and VersionInUse while it is current or held.
        """

    def hold(self, versions: Collection[str]) -> None:
        """Keep `versions` from being deleted by anyone: of this object, these and no others.

        Lasts until the next call, the end of this process, or a minute where the store cannot tell that; so call
        it again and again. Versions that are not there are passed over.
        """

    def wait(self, seconds: float) -> bool:
        """Return True as soon as `current` seems to have moved, else False after `seconds`. Never raises.

        Only a hint: it may come for nothing, and it may be lost.
        """

    def sweep(self) -> None:
        """Remove what killed publishers and deleters left. Nothing that is whole or being written is touched."""


def open_store(
    url: str, *, password: str | None = None, cache: str | None = None, remote: bool = False, timeout: float = 0.1
) -> IndexStore:
    """The store at `url`: `file:///dir` or a plain path, redis://, rediss:// (TLS), redis+cluster://.

    A plain path may begin with ~, and has no ':' before its first '/'.

    What follows is for Redis. password: where the URL has none. cache: a folder of this host that loaded versions
    are copied to and mapped from; without, they are loaded into memory. remote: leave the path lists in Redis, and
    read those a request needs, within `timeout` seconds. Opens no connection yet. Raises InvalidName.
    """
    folder = folder_of(url)
    if folder is not None:
        return FolderStore(str(folder))
    from index_store.folder.copies import Copies
    from index_store.redis.client import Server  # only who uses Redis needs its client
    from index_store.redis.store import ServerStore

    address = Address.parse(url.strip(), password)
    copies = None
    if cache:
        folder = folder_of(cache, "the cache folder (DR_CACHE)")
        if folder is None:
            raise InvalidName("the cache folder (DR_CACHE): expected a folder of this host, found a server's URL")
        copies = Copies(str(folder))
    return ServerStore(Server(address, timeout), address.namespace, copies=copies, remote=remote)


def find_version(store: IndexStore, given: str) -> str:
    """The name of the version that `given` means: a whole name, or how just one begins, as v2 of v2-0123456789ab.

    A whole name is not looked for: what is done with it says if it is not there. Raises InvalidName, VersionNotFound.
    """
    if WHOLE_NAME.fullmatch(check_name(given)):
        return given
    names = [manifest.version for manifest in store.versions()]
    # One that cannot be listed is found by the pointer at least: what is done with it says what is wrong.
    names += [name for name in (store.previous(), store.current()) if name and name not in names]
    beginning = given if "-" in given else f"{given}-"
    found = [name for name in names if name == given or name.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidName(f"{given}: {len(found)} versions begin so: {', '.join(found)}; write more of the name")
    newest = f"the newest are {', '.join(names[: -NEWEST - 1 : -1])}" if names else "there are no versions"
    raise VersionNotFound(f"{given}: no such version in {store}; {newest}")


def rollback(store: IndexStore) -> tuple[str, str]:
    """Make the version that was current before current again. Returns (version, what it replaced).

    A second rollback undoes the first. Raises PointerMoved when there is nothing to go back to.
    """
    current, previous = store.current(), store.previous()
    if current is None or previous is None:
        raise PointerMoved("nothing to roll back to: fewer than two versions have been current")
    store.activate(previous, expected=current)
    return previous, current


def prune(store: IndexStore, keep: int) -> list[str]:
    """Delete all but the newest `keep` versions, the current, the previous and those in use. Returns what it deleted.

    Also removes what killed publishers left.
    """
    names = [manifest.version for manifest in store.versions()]
    kept = {*names[max(0, len(names) - keep) :], store.current(), store.previous()}
    gone = []
    for name in names:
        if name not in kept:
            with suppress(VersionInUse, VersionNotFound):  # held by a replica; deleted by somebody else
                store.delete(name)
                gone.append(name)
    store.sweep()
    return gone
