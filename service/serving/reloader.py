"""Keeps the served version equal to the store's `current`: polls, loads, verifies, warms, swaps by one assignment.

Every process compares the version it has itself with the pointer, so that all of a fleet converge although hints are
lost; while the store does not answer, all serve on.

A version is loaded beside the one in service and takes over only when it has passed everything; until then, and if
it fails, the old one answers. Requests take `retriever` once and keep it, so no answer mixes two versions.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from contextlib import suppress
from types import EllipsisType
from typing import Any

from index_store.errors import (
    CacheUnavailable,
    PointerMoved,
    StoreFull,
    StoreMisconfigured,
    StoreMissing,
    StoreUnavailable,
    VersionDamaged,
    VersionIncompatible,
    VersionNotFound,
)
from index_store.manifest import check_name
from index_store.store import IndexStore
from retrieval.query import Limits
from service.errors import NotReady
from service.metrics import Metrics
from service.serving.retriever import Retriever
from service.serving.trial import try_model

log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0  # until a current version that was refused is loaded again
HOLD_SECONDS = 5.0  # between two renewals of what is held
WAIT_SECONDS = 0.25  # of one wait for a hint; a process that ends waits for it

#: Why nothing is served, for whoever may ask: without paths, hosts and names, which the log has.
REASONS: dict[type[Exception], str] = {
    StoreMissing: "the store's folder does not exist",
    CacheUnavailable: "the cache folder (DR_CACHE) cannot be used",
    StoreUnavailable: "the store cannot be read",
    StoreMisconfigured: "the store refuses the service",
    VersionNotFound: "the current version is not in the store",
    VersionDamaged: "the current version is damaged",
    VersionIncompatible: "the current version is of a format that this release does not read",
    Exception: "the current version is refused",
}
NO_VERSIONS = "the store has no versions; publish one with dr-trainer fit"
NONE_CURRENT = "none of the store's versions is current; choose one with dr-index activate"


class Reloader:
    """One replica's loaded version. All methods run on the event loop; the work is done in threads."""

    def __init__(self, store: IndexStore, poll_seconds: float, metrics: Metrics) -> None:
        self._store, self._poll_seconds, self._metrics = store, poll_seconds, metrics
        self._serving: Retriever | None = None
        self._before: Retriever | None = None  # kept loaded, so that a rollback takes no longer than a message
        self._alive: weakref.WeakSet[Retriever] = weakref.WeakSet()  # these two, and what requests still hold
        self._lock = asyncio.Lock()  # one load at a time
        self._moving = asyncio.Lock()  # the pointer and what is served move together
        self._holding = asyncio.Lock()
        self._loading: str | None = None
        self._failed: dict[str, str] = {}  # version -> why it was refused
        self._tried: set[tuple[str, int, int]] = set()  # models that did no harm, and what they were run on
        self._retry_at = 0.0  # when a current version that was refused is tried again
        self._reason = "the store has not answered yet"  # why nothing is served, while nothing is
        self._refused: str | None = None  # the version that was being loaded when the reason came up
        self._troubles: dict[str, str] = {}  # what was logged last of each kind, so that it is logged once

    @property
    def retriever(self) -> Retriever:
        """The version in service. Raises NotReady before the first."""
        if self._serving is None:
            raise NotReady(f"no version is loaded: {self._reason}")
        return self._serving

    def __str__(self) -> str:
        """What is served from where, in a line for the log."""
        served = f"serving {self._serving.name}" if self._serving else f"nothing to serve: {self._reason}"
        return f"store {self._store}; {served}"

    async def run(self) -> None:
        """Follow the store's pointer until cancelled."""
        while True:
            await self.follow()
            next_look = time.monotonic() + self._poll_seconds
            while (left := next_look - time.monotonic()) > 0:
                if await self._wait(min(left, WAIT_SECONDS)):
                    break

    async def _wait(self, seconds: float) -> bool:
        try:
            moved = await asyncio.to_thread(self._store.wait, seconds)
        except Exception as error:  # noqa: BLE001 -- as when no thread can be started; the next one may be
            self._complain("wait", f"hints of the store are not heard: {type(error).__name__}: {error}")
            await asyncio.sleep(seconds)
            return False
        self._troubles.pop("wait", None)
        return moved

    async def keep(self) -> None:
        """Hold what is in use until cancelled; also while a long load is under way."""
        while True:
            await self._hold()
            await asyncio.sleep(HOLD_SECONDS)

    async def follow(self) -> None:
        """Look at the pointer once and serve what it names. Never raises: what fails is logged and remembered."""
        async with self._lock:
            name: str | None = None
            try:
                name = await asyncio.to_thread(self._store.current)
                if name is None and self._serving is None:
                    self._reason = await asyncio.to_thread(self._nothing)
                    self._complain("follow", f"nothing to serve from {self._store}: {self._reason}")
                    return
                if name != self._refused:
                    self._reason = "a version is being loaded"
                served = self._serving.name if self._serving else None
                if name in self._failed and time.monotonic() < self._retry_at:
                    return  # what was wrong may pass: it is tried again, but not at every look
                if name is not None and name != served:
                    retriever = await self._load(name)
                    async with self._moving:
                        # It may have moved on meanwhile; then the next look follows it.
                        if await asyncio.to_thread(self._store.current) == name:
                            self._serve(retriever)
                    await self._hold()
                self._troubles.pop("follow", None)
            except Exception as error:  # noqa: BLE001 -- whatever is wrong with a version, the old one serves on
                self._retry_at = time.monotonic() + RETRY_SECONDS
                self._reason, self._refused = _reason(error), name
                what = "the store cannot be followed" if name is None else f"version {name} is not served"
                self._complain("follow", f"{what}: {type(error).__name__}: {error}")

    async def swap(self, name: str, expected: str | EllipsisType | None) -> dict[str, Any]:
        """Make `name` current in the store and serve it. Loads and verifies before the pointer moves.

        Raises InvalidName, VersionNotFound, VersionDamaged, PointerMoved; then nothing has changed.
        """
        return await self._swap(check_name(name), expected)

    async def rollback(self) -> dict[str, Any]:
        """Swap to the version that was current before."""
        current = await asyncio.to_thread(self._store.current)
        previous = await asyncio.to_thread(self._store.previous)
        if previous is None:
            raise PointerMoved("nothing to roll back to: fewer than two versions have been current")
        return await self._swap(previous, current)

    async def versions(self) -> dict[str, Any]:
        """The document of GET /admin/v1/versions."""
        current, previous, manifests = await asyncio.to_thread(
            lambda: (self._store.current(), self._store.previous(), self._store.versions())
        )
        serving = self._serving.name if self._serving else None
        states = {previous: "previous", current: "current" if current == serving else "available"}
        listed = []
        for manifest in manifests:
            name = manifest.version
            state = "failed" if name in self._failed else states.get(name, "available")
            entry = {
                "version": name,
                "state": "loading" if name == self._loading else state,
                "created": manifest.created,
                "items": manifest.items,
                "paths": manifest.structure.get("paths"),
                "bytes": sum(part.size for part in manifest.parts.values()),
                "metrics": manifest.metrics,
            }
            if name in self._failed:
                entry["reason"] = self._failed[name]
            listed.append(entry)
        return {"current": current, "serving": serving, "versions": listed}

    async def _swap(self, name: str, expected: str | EllipsisType | None) -> dict[str, Any]:
        current = await asyncio.to_thread(self._store.current)
        if expected is not ... and expected != current:
            raise PointerMoved("another version is current than the one expected; look again and repeat")
        retriever = self._at_hand(name)
        if retriever is None:
            async with self._lock:
                retriever = await self._load(name)
        async with self._moving:
            replaced = await asyncio.to_thread(self._store.activate, name, expected)
            self._serve(retriever)
        await self._hold()
        return {"version": name, "previous": replaced}

    async def let_go(self) -> None:
        """The process ends: hold nothing any more."""
        with suppress(Exception):
            await asyncio.to_thread(self._store.hold, [])

    async def _hold(self) -> None:
        """Keep from being deleted what is loaded, what requests still hold, and what is being loaded."""
        try:
            async with self._holding:
                names = {retriever.name for retriever in self._alive}
                if self._loading:
                    names.add(self._loading)
                await asyncio.to_thread(self._store.hold, names)
        except Exception as error:  # noqa: BLE001 -- a version may be served without; most likely nobody deletes it
            self._complain("hold", f"versions in use cannot be held: {type(error).__name__}: {error}")
        else:
            self._troubles.pop("hold", None)

    def _complain(self, kind: str, text: str) -> None:
        if self._troubles.get(kind) != text:
            log.error("%s", text)
        self._troubles[kind] = text

    async def _load(self, name: str) -> Retriever:
        """Load and verify, off the event loop, unless it is at hand. Remembers why a version was refused."""
        if retriever := self._at_hand(name):
            return retriever
        self._loading = name
        try:
            await self._hold()
            retriever = await asyncio.to_thread(self._open, name)
        except (StoreUnavailable, StoreMisconfigured, StoreFull, VersionNotFound):
            raise  # says nothing of the version
        except Exception as error:
            self._failed[name] = str(error)
            self._metrics.swaps.labels("refused").inc()
            raise
        finally:
            self._loading = None
        self._failed.pop(name, None)
        self._alive.add(retriever)
        return retriever

    def _nothing(self) -> str:
        """Why no version is current. Raises where the store is not there."""
        self._store.require_readable()
        return NONE_CURRENT if self._store.versions() else NO_VERSIONS

    def _open(self, name: str) -> Retriever:
        version = self._store.load(name)
        manifest = version.manifest
        trial = manifest.parts["model.onnx"].sha256, manifest.history, Limits.BEAM
        if trial not in self._tried:
            try_model(version)
            self._tried.add(trial)
        return Retriever(version)

    def _at_hand(self, name: str) -> Retriever | None:
        for retriever in (self._serving, self._before):
            if retriever and retriever.name == name:
                return retriever
        return None

    def _serve(self, retriever: Retriever) -> None:
        if retriever is self._serving:
            return
        before = self._serving
        self._serving, self._before = retriever, before
        self._metrics.serving(retriever.name, retriever.manifest.items, retriever.searcher.facts.paths)
        log.info("serving %s, before it %s", retriever.name, before.name if before else "nothing")


def _reason(error: Exception) -> str:
    kind = next(kind for kind in type(error).__mro__ if kind in REASONS)
    cause = error.__cause__.strerror if isinstance(error.__cause__, OSError) else None
    return f"{REASONS[kind]}: {cause}" if cause else f"{REASONS[kind]}; the log says more"
