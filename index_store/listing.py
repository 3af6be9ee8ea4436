"""The few keys of a store that change: the list of versions, `current`, and who uses what.

Each change is one transaction on one key (or two on one node), so any number of publishers, deleters and replicas may
be at it, and any of them may die.
"""

from __future__ import annotations

import time
import uuid
from types import EllipsisType
from typing import Any

from index_store.errors import PointerMoved, StoreMisconfigured
from index_store.keys import Keys
from index_store.redis import Command, Server
from index_store.version import NAME


class Listing:
    """What is in the namespace of `keys`. Raises StoreMisconfigured where another application wrote there."""

    def __init__(self, server: Server, keys: Keys) -> None:
        self._server, self._keys = server, keys
        self._holder = uuid.uuid4().hex  # in whose name leases are taken

    def claim(self, fingerprint: str) -> tuple[str, bool]:
        """The name that these bytes have or now get, and whether they are published already."""
        claimed = "", False

        def change(read: Any) -> list[Command] | None:
            nonlocal claimed
            published = self._names(self._keys.versions, read.smembers(self._keys.versions))
            publishing = self._names(self._keys.publishing, read.smembers(self._keys.publishing))
            for name in published | publishing:
                if name.endswith(f"-{fingerprint[:12]}"):
                    claimed = name, name in published
                    return None
            last = max(map(number, published | publishing), default=0)  # the counter is less only if it was lost
            new = max(self._server.increment(self._keys.counter), last + 1)
            claimed = f"v{new}-{fingerprint[:12]}", False
            return [("SADD", self._keys.publishing, claimed[0])]

        self._server.transact([self._keys.versions, self._keys.publishing], change)
        return claimed

    def published(self) -> set[str]:
        """The versions that are whole."""
        return self._names(self._keys.versions, self._server.members(self._keys.versions))

    def publishing(self) -> set[str]:
        """The versions that are being published, or were when their publisher died."""
        return self._names(self._keys.publishing, self._server.members(self._keys.publishing))

    def seal(self, version: str) -> bool:
        """From now on a claimed version is published. False if somebody took the claim away."""
        moved = self._server.move(version, self._keys.publishing, self._keys.versions)
        return moved or version in self.published()

    def unclaim(self, version: str) -> bool:
        """Take a claim away; False if there is none, as when it was sealed."""
        return self._server.discard(self._keys.publishing, version)

    def remove(self, version: str) -> bool:
        """Take a version from the published ones; False if it is none. Needs no memory of the server."""
        return self._server.discard(self._keys.versions, version)

    def restore(self, version: str) -> None:
        """Undo `remove`."""
        self._server.add(self._keys.versions, version)

    def _names(self, key: str, members: set[bytes]) -> set[str]:
        names = {member.decode("ascii", "replace") for member in members}
        if not all(NAME.match(name) and number(name) for name in names):
            raise self._foreign(key)
        return names

    def pointer(self, key: str) -> str | None:
        """The version that `key`, current or previous, names."""
        (value,) = self._server.get([key])
        return self._check_pointer(key, value)

    def _check_pointer(self, key: str, value: bytes | None) -> str | None:
        name = value.decode("ascii", "replace") if value is not None else None
        if name is not None and not NAME.match(name):
            raise self._foreign(key)
        return name

    def move_pointer(self, version: str, expected: str | EllipsisType | None) -> str | None:
        """Make `version` current; see IndexStore.activate."""
        key = self._keys.current
        replaced: str | None = None

        def change(read: Any) -> list[Command] | None:
            nonlocal replaced
            replaced = self._check_pointer(key, read.get(key))
            if expected is not ... and expected != replaced:
                raise PointerMoved(f"current is {replaced}, not {expected}; look again and repeat")
            if replaced == version:
                return None
            before: Command = ("SET", self._keys.previous, replaced) if replaced else ("UNLINK", self._keys.previous)
            return [before, ("SET", key, version)]

        self._server.transact([key], change)
        return replaced

    def lease(self, version: str, milliseconds: int) -> None:
        """Say that `version` is used for so long."""
        self._server.lease(self._keys.leases, f"{version} {self._holder}", milliseconds)

    def release(self, version: str) -> None:
        """Say that it is used no more."""
        self._server.release(self._keys.leases, f"{version} {self._holder}")

    def leased(self) -> set[str]:
        """The versions that anybody uses."""
        return {lease.partition(" ")[0] for lease in self._server.leases(self._keys.leases)}

    def abandoned(self, version: str) -> bool:
        """Whether nobody publishes `version`: waits for a lease that is not renewed to end."""

        def leases() -> dict[str, float]:
            found = self._server.leases(self._keys.leases)
            return {lease: end for lease, end in found.items() if lease.startswith(f"{version} ")}

        first = leases()
        while now := leases():
            if now != first:
                return False
            time.sleep(0.1)
        return True

    def _foreign(self, key: str) -> StoreMisconfigured:
        return StoreMisconfigured(
            f"{self._server.address}: {key} was not written by us, so another application uses this namespace; choose "
            "another with ?namespace= in the URL"
        )


def number(version: str) -> int:
    """7 of v7-0123456789ab; 0 of anything else."""
    digits = version[1:].partition("-")[0]
    return int(digits) if digits.isdecimal() else 0
