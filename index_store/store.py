"""The store contract, and what follows from it on every backend."""

from __future__ import annotations

from types import EllipsisType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index_store.errors import InvalidName, PointerMoved
from index_store.retrieval import Postings
from index_store.version import Manifest, Progress, Version


class IndexStore(Protocol):
    """Write-once versions and one small pointer, `current`. Each verb says what a reader may observe.

    Every verb raises StoreUnavailable when the store cannot be reached.
    """

    def publish(self, version: Version, progress: Progress | None = None) -> str:
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

    def lookup(self, version: str, path_ids: NDArray[np.int64], n: int) -> Postings:
        """The first n items of each of `path_ids` in `version`; a path not in use has none."""

    def delete(self, version: str) -> None:
        """Remove `version`. Who has loaded it keeps it. Raises VersionNotFound, VersionInUse."""


def open_store(url: str) -> IndexStore:
    """The store at `url`: `file:///dir` or a plain path."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "file":
        from index_store.folder import FolderStore

        return FolderStore(rest if separator else url)
    raise InvalidName(f"store URL: expected a path or file:///dir, found the scheme {scheme!r}")


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
    """Delete all but the newest `keep` versions, the current and the previous one. Returns what it deleted."""
    names = [manifest.version for manifest in store.versions()]
    kept = {*names[max(0, len(names) - keep) :], store.current(), store.previous()}
    gone = [name for name in names if name not in kept]
    for name in gone:
        store.delete(name)
    return gone
