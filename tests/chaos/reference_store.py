"""The store contract as a set, two names and a dict: what the real stores are compared with, step by step."""

from __future__ import annotations

from collections.abc import Collection
from types import EllipsisType

from index_store.errors import PointerMoved, VersionInUse, VersionNotFound
from index_store.redis.listing import number


def content(name: str) -> str:
    """The bytes that a version's name stands for: the 0123456789ab of v7-0123456789ab."""
    return name.partition("-")[2]


class ReferenceStore:
    """All versions are whole, by name, and so is what somebody died over: done or not done, never half."""

    def __init__(self) -> None:
        self.versions: set[str] = set()
        self.current: str | None = None
        self.previous: str | None = None
        self.held: dict[str, set[str]] = {}  # by whom
        self.half: set[str] = set()  # contents that the dead left half published or deleted; a sweep ends that

    def names(self) -> list[str]:
        """Oldest first."""
        return sorted(self.versions, key=number)

    def publish(self, what: str, name: str) -> None:
        """The store called it `name`: what it is called already, or newer than all."""
        known = [each for each in self.versions if content(each) == what]
        newer = all(number(name) > number(each) for each in self.versions)
        assert content(name) == what
        assert [name] == known if known else newer or what in self.half
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
        """Somebody died who published and activated, or deleted, `dying`. None: what the dead left was swept."""
        for name in self.versions - set(names):
            assert content(name) == dying
            self.delete(name)
        assert {content(name) for name in set(names) - self.versions} <= self.half
        self.versions = set(names)
        if current != self.current and current is not None and content(current) == dying:
            self.activate(current)
        assert (self.current, self.previous) == (current, previous)
