"""A reference model of a store: a set, two names and a dict, with which the real stores are compared step by step."""

from __future__ import annotations

from collections.abc import Collection
from types import EllipsisType

from index_store.errors import PointerMoved, VersionInUse, VersionNotFound
from index_store.manifest import counter


def content_of(name: str) -> str:
    """The part of a version's name that identifies its content: the 0123456789ab of v7-0123456789ab."""
    return name.partition("-")[2]


class ReferenceStore:
    """Versions by name, all of them whole: a killed process has done its work completely or not at all."""

    def __init__(self) -> None:
        self.versions: set[str] = set()
        self.current: str | None = None
        self.previous: str | None = None
        self.held: dict[str, set[str]] = {}  # holder -> versions
        self.half: set[str] = set()  # contents that a killed process may have left half published or deleted

    def names(self) -> list[str]:
        """All versions, the oldest first."""
        return sorted(self.versions, key=counter)

    def publish(self, published: str, name: str) -> None:
        """Record that the store published this content as `name`: its name so far, or a newer one than all others."""
        known = [version for version in self.versions if content_of(version) == published]
        newer = all(counter(name) > counter(version) for version in self.versions)
        assert content_of(name) == published
        assert [name] == known if known else newer or published in self.half
        self.versions.add(name)

    def activate(self, name: str, expected: str | EllipsisType | None = ...) -> str | None:
        if name not in self.versions:
            raise VersionNotFound
        if expected is not ... and expected != self.current:
            raise PointerMoved
        replaced = self.current
        if name != replaced:
            self.previous, self.current = replaced, name
        return replaced

    def rollback(self) -> tuple[str, str]:
        if self.current is None or self.previous is None:
            raise PointerMoved
        current, previous = self.current, self.previous
        self.activate(previous)
        return previous, current

    def delete(self, name: str) -> None:
        if name not in self.versions:
            raise VersionNotFound
        if name == self.current or any(name in names for names in self.held.values()):
            raise VersionInUse
        self.versions.remove(name)

    def prune(self, keep: int) -> list[str]:
        names = self.names()
        spared = {self.current, self.previous, *names[max(0, len(names) - keep) :]}.union(*self.held.values())
        self.versions &= spared
        return [name for name in names if name not in spared]

    def settle(self, names: Collection[str], current: str | None, previous: str | None, dying: str | None) -> None:
        """Take over the store's state after a process was killed over the content `dying`, or (None) after a sweep."""
        for name in self.versions - set(names):
            assert content_of(name) == dying
            self.delete(name)
        assert {content_of(name) for name in set(names) - self.versions} <= self.half
        self.versions = set(names)
        if current != self.current and current is not None and content_of(current) == dying:
            self.activate(current)
        assert (self.current, self.previous) == (current, previous)
