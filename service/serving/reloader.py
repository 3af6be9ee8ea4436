"""Keeps the version that this process serves equal to the store's `current`.

Every process compares the version it serves with the pointer again and again, so a whole fleet converges even if
hints get lost. `Reloader.state` is one of four:

    state        event                                          next state
    WAITING      v is current                                   LOADING(v)
    LOADING(v)   v is loaded and still current                  SERVING(v)
    LOADING(v)   the load fails                                 REFUSED(v, reason, until)
    SERVING(v)   another version, w, is current                 LOADING(w)
    REFUSED(v)   `until` has passed, and v is still current     v is loaded again
    REFUSED(v)   another version, w, is current                 LOADING(w)
    not REFUSED  the store does not answer                      WAITING(reason)
    any          no version is current, and none is served      WAITING(reason)
    not SERVING  the version that is still served is current    SERVING(served)
    any          a swap or rollback has loaded w and moved      SERVING(w)
                 the pointer to it

The version that was served before answers until SERVING is entered again, so it answers through every failure. A
request reads `retriever` once and keeps it, so no answer mixes two versions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from index_store.errors import (
    CacheUnavailable,
    LogBroken,
    LogDamaged,
    LogIncompatible,
    PointerMoved,
    StoreMisconfigured,
    StoreMissing,
    StoreUnavailable,
    VersionDamaged,
    VersionIncompatible,
    VersionNotFound,
)
from index_store.manifest import Expected, check_name
from index_store.store import IndexStore, rollback_target
from service.errors import NotReady
from service.metrics import Metrics
from service.serving.failure_log import FailureLog
from service.serving.follower import Follower
from service.serving.holding import Holding
from service.serving.loading import TRANSIENT, Loader
from service.serving.retriever import SLOTS, Retriever

log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0  # from the refusal of a current version to the next try to load it
AGAIN_SECONDS = 5.0  # between two loads of a version because the log has other records
HINT_SECONDS = 0.25  # longest wait for a hint from the store; the end of the process waits for it too

#: The reasons why no version is served, as any client may read them: paths, hosts and names are only in the log.
REASONS: dict[type[Exception], str] = {
    StoreMissing: "the store's folder does not exist",
    CacheUnavailable: "the cache folder (DR_CACHE) cannot be used",
    StoreUnavailable: "the store cannot be read",
    StoreMisconfigured: "the store refuses the service",
    VersionNotFound: "the current version is not in the store",
    VersionDamaged: "the current version is damaged",
    VersionIncompatible: "the current version is of a format that this release does not read",
    LogBroken: "the log does not continue the current version",
    LogDamaged: "the log is damaged",
    LogIncompatible: "a newer release has written the log",
    Exception: "the current version is refused",
}
NO_VERSIONS = "the store has no versions; publish one with dr-trainer fit"
NONE_CURRENT = "none of the store's versions is current; choose one with dr-index activate"


@dataclass(frozen=True)
class Waiting:
    """The store has no current version, or does not answer."""

    reason: str = "the store has not answered yet"


@dataclass(frozen=True)
class Loading:
    """`version` is current; it is being loaded, tried, verified and warmed up."""

    version: str
    reason: str = "a version is being loaded"


@dataclass(frozen=True)
class Refused:
    """`version` is current, but could not be loaded. until: when it is loaded again, by time.monotonic."""

    version: str
    reason: str
    until: float


@dataclass(frozen=True)
class Serving:
    """`version` is current and answers new requests."""

    version: str


class Reloader:
    """The version that one process serves. All methods run on the event loop; slow work is done in threads."""

    def __init__(self, store: IndexStore, poll_seconds: float, metrics: Metrics, slots: int = SLOTS) -> None:
        """slots: see Retriever."""
        self._store, self._poll_seconds, self._metrics = store, poll_seconds, metrics
        self.holding = Holding(store)
        self.loader = Loader(store, self.holding, metrics, slots)
        self.follower = Follower(store, metrics)
        self.state: Waiting | Loading | Refused | Serving = Waiting()
        self.first_look_done = asyncio.Event()  # set after the first look at the pointer
        self._serving: Retriever | None = None
        self._before: Retriever | None = None  # kept in memory, so that a rollback loads nothing
        self._again_at = 0.0  # when a version may be loaded again because of the log, by time.monotonic
        self._moving = asyncio.Lock()  # the pointer and the served version change together
        self._follow_failures, self._hint_failures = FailureLog(log), FailureLog(log)

    @property
    def retriever(self) -> Retriever:
        """The version that answers requests. Raises NotReady until a first version is loaded."""
        if self._serving is None:
            raise NotReady(f"no version is loaded: {self._reason}")
        return self._serving

    @property
    def fullness(self) -> float:
        """The share of the room for new items that is in use; 0 until a version is loaded."""
        return self._serving.fullness if self._serving else 0.0

    def __str__(self) -> str:
        """The store and the served version, for the log."""
        served = f"serving {self._serving.name}" if self._serving else f"nothing to serve: {self._reason}"
        return f"store {self._store}; {served}"

    async def run(self) -> None:
        """Follow the store's pointer until cancelled."""
        while True:
            await self.follow()
            self.first_look_done.set()
            next_look = time.monotonic() + self._poll_seconds
            while (left := next_look - time.monotonic()) > 0:
                if await self._hint(min(left, HINT_SECONDS)):
                    break

    async def follow(self) -> None:
        """Read the pointer once and serve its version. Never raises: a failure is logged and becomes the state."""
        name: str | None = None
        try:
            name = await asyncio.to_thread(self._store.current)
            if name is None and self._serving is None:
                self.state = Waiting()  # a version that was refused is not current any more
                reason = await asyncio.to_thread(self._why_none)
                self.state = Waiting(reason)
                self._follow_failures.failed(f"nothing to serve from {self._store}: {reason}")
                return
            if self._serving and self._serving.name == name and isinstance(self.follower.problem, LogBroken):
                await self._load_again(self._serving)
            if name is not None:
                refused = self.state if isinstance(self.state, Refused) and self.state.version == name else None
                if refused and time.monotonic() < refused.until:
                    return
                if self._serving and self._serving.name == name:
                    self._serve(self._serving)
                else:
                    self.state = refused or Loading(name)
                    await self._load_and_serve(name)
            self._follow_failures.over()
        except Exception as error:  # noqa: BLE001 -- after any error, the version served before answers
            self._fail(name, error)

    async def swap(self, name: str, expected: Expected, rollback: str | None = None) -> dict[str, Any]:
        """Make `name` current in the store and serve it. The version is loaded and verified before the pointer moves.

        expected: swap only if this version is current; `...` swaps whichever is current. rollback: the version that
        `rollback` then returns to, instead of the one that was current. Raises InvalidName, VersionNotFound,
        VersionDamaged, VersionIncompatible, PointerMoved; after these errors nothing has changed.
        """
        check_name(name)
        current = await asyncio.to_thread(self._store.current)
        if expected is not ... and expected != current:
            raise PointerMoved("the current version is not the expected one; read it again, then repeat")
        retriever = await self.loader.load(name)
        async with self._moving:
            retriever = await self._prepared(retriever)
            try:
                replaced = await asyncio.to_thread(self._store.activate, name, expected, rollback)
                self._serve(retriever)
            finally:
                self.follower.give_up()
        await self.holding.renew()
        return {"version": name, "previous": replaced}

    async def rollback(self) -> dict[str, Any]:
        """Swap to the previous version."""
        current, previous = await asyncio.to_thread(rollback_target, self._store)
        return await self.swap(previous, current)

    async def versions(self) -> dict[str, Any]:
        """The document of GET /admin/v1/versions."""
        current, previous, manifests = await asyncio.to_thread(
            lambda: (self._store.current(), self._store.previous(), self._store.versions())
        )
        serving = self._serving.name if self._serving else None
        states: dict[str | None, str] = {previous: "previous"}
        states[current] = "current" if current == serving else "available"
        states |= dict.fromkeys(self.loader.refused, "failed")
        states[self.holding.loading] = "loading"
        listed = []
        for manifest in manifests:
            entry = manifest.summary(states.get(manifest.version, "available"))
            entry["metrics"] = manifest.metrics
            if manifest.version in self.loader.refused:
                entry["reason"] = self.loader.refused[manifest.version]
            listed.append(entry)
        return {"current": current, "serving": serving, "versions": listed}

    @property
    def _reason(self) -> str:
        return "" if isinstance(self.state, Serving) else self.state.reason

    async def _load_and_serve(self, name: str) -> None:
        retriever = await self.loader.load(name)
        async with self._moving:
            retriever = await self._prepared(retriever)
            try:
                # If the pointer has moved during the load, the next call of `follow` loads its new version.
                if await asyncio.to_thread(self._store.current) == name:
                    self._serve(retriever)
            finally:
                self.follower.give_up()
        await self.holding.renew()

    async def _load_again(self, broken: Retriever) -> None:
        """Replace a version whose records are not those of the log, for example because Redis lost its last second."""
        if time.monotonic() < self._again_at:
            return
        self._again_at = time.monotonic() + AGAIN_SECONDS
        log.warning("the log does not continue record %d; loading %s again", broken.place.seq, broken.name)
        async with self._moving:
            retriever = await self.loader.load(broken.name, again=True)
            await self.follower.prepare(retriever)
            if self._serving is broken:
                self._serving = retriever
                self.follower.serve(retriever)
            self.follower.give_up()

    async def _prepared(self, retriever: Retriever) -> Retriever:
        """The version with all records of the log. It is loaded again if it has records that the log does not have."""
        try:
            await self.follower.prepare(retriever)
        except LogBroken:
            if retriever.place == retriever.manifest.covers:
                raise
            retriever = await self.loader.load(retriever.name, again=True)
            await self.follower.prepare(retriever)
        return retriever

    def _serve(self, retriever: Retriever) -> None:
        self.state = Serving(retriever.name)
        if retriever is self._serving:
            return
        self._before, self._serving = self._serving, retriever
        self.follower.serve(retriever)
        self._metrics.serving(retriever.name, retriever.manifest.items, retriever.searcher.facts.paths)
        log.info("serving %s, before it %s", retriever.name, self._before.name if self._before else "nothing")

    def _fail(self, name: str | None, error: Exception) -> None:
        """Log a failure and keep it as the state. name: the version that was not loaded; None if the store failed."""
        if name is None:
            # Keep Refused, or the refused version would be loaded again each time the store recovers.
            if not isinstance(self.state, Refused):
                self.state = Waiting(_reason(error))
        elif not isinstance(self.state, Serving):  # if serving, a swap finished first and has moved the pointer
            wait = 0.0 if isinstance(error, TRANSIENT) else RETRY_SECONDS
            self.state = Refused(name, _reason(error), time.monotonic() + wait)
        subject = "the store cannot be followed" if name is None else f"version {name} is not served"
        self._follow_failures.failed(f"{subject}: {type(error).__name__}: {error}")

    def _why_none(self) -> str:
        """The reason why no version is current. Raises StoreMissing or StoreUnavailable if the store cannot be read."""
        self._store.require_readable()
        return NONE_CURRENT if self._store.versions() else NO_VERSIONS

    async def _hint(self, seconds: float) -> bool:
        """Wait for a hint from the store, and return whether `current` seems to have moved."""
        try:
            moved = await asyncio.to_thread(self._store.wait, seconds)
        except Exception as error:  # noqa: BLE001 -- for example no thread can be started; the next wait may succeed
            self._hint_failures.failed(f"the store's hints cannot be received: {type(error).__name__}: {error}")
            await asyncio.sleep(seconds)
            return False
        self._hint_failures.over()
        return moved


def _reason(error: Exception) -> str:
    kind = next(kind for kind in type(error).__mro__ if kind in REASONS)
    cause = error.__cause__.strerror if isinstance(error.__cause__, OSError) else None
    return f"{REASONS[kind]}: {cause}" if cause else f"{REASONS[kind]}; see the log"
