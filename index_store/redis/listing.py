"""The few keys of a store that change: the list of versions, the pointers `current` and `previous`, and the leases.

Each change is one transaction on one key, or on a few keys of one node. So any number of publishers, deleters and
replicas can run at once, and any process can die at any moment.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from index_store.errors import IndexStoreError, PointerMoved, StoreMisconfigured
from index_store.manifest import VERSION, Expected, counter
from index_store.redis.client import Command, Server
from index_store.redis.keys import Keys

LEASE = re.compile(rf"(?P<version>{VERSION.pattern}) [0-9a-f]{{32}}")
COUNT = re.compile(r"v\d+")
TASK_MS = 15_000  # how long the lease of a task lasts after its process has died; while it lives, it is renewed


class Listing:
    """The changing keys of one namespace. Raises StoreMisconfigured if a different application wrote these keys.

    A version name is either claimed (in the set `publishing`) or published (in the set `versions`). A name that has
    left both sets is never used again, so the remaining keys of that version can be removed at any time.
    """

    def __init__(self, server: Server, keys: Keys) -> None:
        self._server, self._keys = server, keys

    def claim(self, fingerprint: str) -> tuple[str, bool]:
        """(name, whether it is published) of the version with this fingerprint. Claims a new name if there is none."""
        claimed = "", False

        def change(read: Any) -> list[Command] | None:
            nonlocal claimed
            published = self._names(self._keys.versions, read.smembers(self._keys.versions))
            publishing = self._names(self._keys.publishing, read.smembers(self._keys.publishing))
            latest = self._ours(self._keys.counter, read.get(self._keys.counter), COUNT)
            for name in published | publishing:
                if name.endswith(f"-{fingerprint[:12]}"):
                    claimed = name, name in published
                    return None
            new = 1 + max(map(counter, {latest or "v0", *published, *publishing}))
            claimed = f"v{new}-{fingerprint[:12]}", False
            return [("SET", self._keys.counter, f"v{new}"), ("SADD", self._keys.publishing, claimed[0])]

        self._server.transact([self._keys.versions, self._keys.publishing, self._keys.counter], change)
        return claimed

    def require_ours(self) -> None:
        """Raise StoreMisconfigured if a different application uses the namespace."""
        self.listed()
        self._leases()
        self.pointer(self._keys.current)
        self.pointer(self._keys.previous)
        (counter,) = self._server.get([self._keys.counter])
        self._ours(self._keys.counter, counter, COUNT)

    def published(self) -> set[str]:
        """The complete versions."""
        return self._names(self._keys.versions, self._server.members(self._keys.versions))

    def publishing(self) -> set[str]:
        """The versions being published or deleted, even if their publisher or deleter has died."""
        return self._names(self._keys.publishing, self._server.members(self._keys.publishing))

    def listed(self) -> set[str]:
        """The published and the claimed versions, read atomically."""
        both = [self._keys.versions, self._keys.publishing]
        return self._names(self._keys.versions, self._server.members(*both))

    def seal(self, version: str) -> bool:
        """Turn a claimed version into a published version. Returns False if the claim was removed meanwhile."""
        moved = self._server.move(version, self._keys.publishing, self._keys.versions)
        return moved or version in self.published()

    def unclaim(self, version: str) -> bool:
        """Remove a claim. Returns False if there is no claim, for example because the version is published now."""
        return self._server.discard(self._keys.publishing, version)

    def unseal(self, version: str) -> bool:
        """Undo `seal`, as the first step of a delete. False if the version is not published. Needs no server memory."""
        moved = self._server.move(version, self._keys.versions, self._keys.publishing)
        return moved or version in self.publishing()  # a repeated command: the first one moved it

    def _names(self, key: str, members: set[bytes]) -> set[str]:
        return {name for member in members if (name := self._ours(key, member, VERSION))}

    def _ours(self, key: str, value: bytes | None, form: re.Pattern[str]) -> str | None:
        text = None if value is None else value.decode("ascii", "replace")
        if text is not None and not form.fullmatch(text):
            raise StoreMisconfigured(
                f"{self._server.address}: {key} was not written by Deep Retrieval, so another application uses this "
                "namespace; choose another with ?namespace= in the URL"
            )
        return text

    def pointer(self, key: str) -> str | None:
        """The version that the key `current` or `previous` names."""
        (value,) = self._server.get([key])
        return self._ours(key, value, VERSION)

    def move_pointer(self, version: str, expected: Expected, previous: str | None = None) -> str | None:
        """Make `version` current; see IndexStore.activate."""
        key, key_before = self._keys.current, self._keys.previous
        replaced: str | None = None
        mover = uuid.uuid4().hex  # shows, after a lost answer, whether this move was carried out

        def change(read: Any) -> list[Command] | None:
            nonlocal replaced
            current = self._ours(key, read.get(key), VERSION)
            self._ours(key_before, read.get(key_before), VERSION)
            if read.get(self._keys.mover) == mover.encode():
                return None
            replaced = current
            if expected is not ... and expected != replaced:
                raise PointerMoved(f"current is {replaced}, not {expected}; look again and repeat")
            if replaced == version:
                return None
            before = previous or replaced
            first: Command = ("SET", key_before, before) if before else ("UNLINK", key_before)
            return [first, ("SET", self._keys.mover, mover), ("SET", key, version)]

        self._server.transact([key], change)
        return replaced

    def lease(self, version: str, holder: str, milliseconds: int) -> None:
        """Record that `holder`, 32 hexadecimal digits, uses `version` for that time. Ignores names without the form of
        VERSION.
        """
        if VERSION.fullmatch(version):
            self._server.lease(self._keys.leases, f"{version} {holder}", milliseconds)

    def release(self, version: str, holder: str) -> None:
        """Record that `holder` no longer uses `version`."""
        self._server.release(self._keys.leases, [f"{version} {holder}"])

    def leased(self) -> set[str]:
        """The versions in use. On a full server no lease can be renewed, so there an ended lease counts as well."""
        full = self._server.full()
        return {lease.partition(" ")[0] for lease, left in self._leases().items() if left > 0 or full}

    @contextmanager
    def task_lease(self, task: str) -> Iterator[bool]:
        """See `IndexStore.lease`."""
        key, holder = self._keys.task(task), uuid.uuid4().hex
        mine = False

        def take(read: Any) -> list[Command] | None:
            nonlocal mine
            found = read.get(key)
            mine = found in (None, holder.encode())
            return [("SET", key, holder, "PX", TASK_MS)] if found is None else None

        def release(read: Any) -> list[Command] | None:
            return [("UNLINK", key)] if read.get(key) == holder.encode() else None

        def renew(read: Any) -> list[Command] | None:
            return [("SET", key, holder, "PX", TASK_MS)] if read.get(key) == holder.encode() else None

        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(TASK_MS / 3000):
                with suppress(IndexStoreError):  # the next attempt may succeed before the lease ends
                    self._server.transact([key], renew)

        self._server.transact([key], take)
        if not mine:
            yield False
            return
        keeper = threading.Thread(target=keep, name=f"lease of {task}", daemon=True)
        keeper.start()
        try:
            yield True
        finally:
            ended.set()
            keeper.join()
            with suppress(IndexStoreError):  # then the lease ends by itself
                self._server.transact([key], release)

    def forget_leases(self) -> None:
        """Remove the leases that have ended."""
        ended = [lease for lease, left in self._leases().items() if left <= 0]
        if ended and not self._server.full():
            self._server.release(self._keys.leases, ended)

    def _leases(self) -> dict[str, float]:
        """Every lease with the ms until its end."""
        key = self._keys.leases
        return {self._ours(key, lease, LEASE) or "": left for lease, left in self._server.leases(key).items()}

    def abandoned(self, version: str, longest: int) -> bool:
        """Whether no process is publishing `version`. Waits until a lease of `version` is renewed or ends.

        longest: the longest duration of a lease in ms. The wait ends after this time at the latest, in case the
        server's clock was set back.
        """
        end = time.monotonic() + longest / 1000

        def left() -> float:
            return max((ms for lease, ms in self._leases().items() if lease.startswith(f"{version} ")), default=0.0)

        before = left()
        while (now := left()) > 0 and time.monotonic() < end:
            if now > before:  # renewed
                return False
            before = now
            time.sleep(0.1)
        return True
