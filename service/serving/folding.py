"""Folds the version in service with the log into a new version: when asked, and by itself when the overlay fills up.

The fold runs in a process of its own, because it takes seconds of computing, beside which requests would wait. Of all
replicas, one folds; the others serve its version once it is current.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from index_store import errors
from index_store.errors import FoldRunning, IndexStoreError
from index_store.store import IndexStore
from retrieval.fold import LEASE, discard, tidy
from service.metrics import Metrics
from service.serving.failure_log import FailureLog
from service.serving.reloader import Reloader

log = logging.getLogger(__name__)

PROGRAM = str(Path(__file__).with_name("fold_program.py"))
FULL = 1 / 3  # of the overlay; from then on a fold is due
LOOK_SECONDS = 1.0  # between two looks at the overlay
AGAIN_SECONDS = 60.0  # from a fold that failed to the next one


class Folding:
    """Start `run` as a task, and cancel the task to stop."""

    def __init__(self, reloader: Reloader, store: IndexStore, url: str, password: str | None, metrics: Metrics) -> None:
        """url, password: of `store`, for the process that folds."""
        self._reloader, self._store, self._metrics = reloader, store, metrics
        self._secrets = {"DR_STORE": url} | ({"DR_STORE_PASSWORD": password} if password else {})
        self._failures = FailureLog(log)

    async def run(self) -> None:
        """Fold whenever the overlay is a third full, until cancelled."""
        due = 0.0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if time.monotonic() < due or self._reloader.fullness < FULL:
                continue
            due = time.monotonic() + AGAIN_SECONDS
            try:
                if await asyncio.to_thread(self._store.current) == self._reloader.retriever.name:
                    await self.fold()
                    self._failures.over()
            except FoldRunning:
                due = time.monotonic() + LOOK_SECONDS
            except Exception as error:  # noqa: BLE001 -- whatever is wrong, answers go on
                self._failures.failed(f"the log cannot be folded into a new version: {type(error).__name__}: {error}")

    async def fold(self) -> dict[str, Any]:
        """Make a new version of the current one and the log, and swap to it.

        Raises FoldRunning if another replica does so, PointerMoved if another version has become current meanwhile, and
        the other errors of `fold_current` and `Reloader.swap`.
        """
        started = time.monotonic()
        self._reloader.retriever  # noqa: B018 -- raises NotReady if no version is served
        async with self._lease():
            try:
                folded = await self._run_program()
                rollback, made = folded.pop("rollback", None), folded.pop("made", [])
                if folded["version"]:
                    await self._swap(folded["version"], folded["previous"], rollback, made)
            except Exception:
                self._metrics.folds.labels("failed").inc()
                raise
            if folded["version"]:
                self._metrics.folds.labels("done").inc()
                try:
                    await asyncio.to_thread(tidy, self._store)
                except IndexStoreError as error:  # for example, the service's user may not; the next fold tries again
                    log.info("records and versions that are not needed any more are kept: %s", error)
                log.info("folded %d records into %s", folded["records"], folded["version"])
        return {**folded, "version": folded["version"] or folded["previous"], "seconds": time.monotonic() - started}

    @asynccontextmanager
    async def _lease(self) -> AsyncIterator[None]:
        lease = self._store.lease(LEASE)
        mine = await asyncio.to_thread(lease.__enter__)
        try:
            if not mine:
                raise FoldRunning("another process folds the current version at the moment; its result will be served")
            yield
        finally:
            await asyncio.to_thread(lease.__exit__, None, None, None)

    async def _swap(self, name: str, replaced: str, rollback: str | None, made: list[str]) -> None:
        """Serve the folded version. If that fails, delete what was made, so that failing folds fill no store."""
        try:
            await self._reloader.swap(name, replaced, rollback)
        except Exception:
            await asyncio.to_thread(discard, self._store, made)
            raise

    async def _run_program(self) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", PROGRAM, *sys.path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C and docker's SIGTERM do not reach it; it is killed below
            env={name: value for name, value in os.environ.items() if not name.startswith("DR_")} | self._secrets,
        )
        try:
            output, complaint = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            result: dict[str, Any] = json.loads(output)
        except ValueError:
            text = complaint.decode(errors="replace").strip().rpartition("\n")[2]
            raise errors.FoldFailed(f"the process that folds ended with status {process.returncode}: {text}") from None
        if "error" in result:
            kind = getattr(errors, result["error"], IndexStoreError)
            raise kind(result["message"])
        return result
