"""Appends records to a log of the store. Records that arrive during one append are appended together by the next."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from index_store.errors import StoreUnavailable
from index_store.log import Draft, LogName
from index_store.store import IndexStore
from service.errors import Overloaded

#: Records that wait for the append before them. Beyond it, writers are refused.
MOST = 1000
TOGETHER = 64  # records appended at once; each has at most the size of a request's body


@dataclass(frozen=True)
class _Entry:
    draft: Draft
    result: asyncio.Future[int]


class Appender:
    """Start `run` as a task, and cancel the task to stop."""

    def __init__(self, store: IndexStore, log: LogName, appended: Callable[[], Awaitable[None]]) -> None:
        """appended: called after each append, before those who wait for it go on."""
        self._store, self._log, self._appended = store, log, appended
        self._producer, self._number = uuid.uuid4().hex, 0
        self._waiting: list[_Entry] = []
        self._arrived = asyncio.Event()

    async def append(self, content: Sequence[Mapping[str, Any]]) -> int:
        """Append one record, and return its number once it is durable.

        Raises Overloaded, StoreUnavailable, StoreFull and the other errors of `IndexStore.append`. After an error the
        record may be stored or not.
        """
        if len(self._waiting) >= MOST:
            raise Overloaded("too many writes are waiting; try again later")
        self._number += 1
        draft = Draft(self._producer, self._number, content)
        entry = _Entry(draft, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._arrived.set()
        return await asyncio.shield(entry.result)  # a client that hangs up does not cancel what is being written

    async def run(self) -> None:
        """Append what waits, until cancelled."""
        while True:
            await self._arrived.wait()
            entries, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
            if entries:
                await self._append(entries)
            else:
                self._arrived.clear()

    async def _append(self, entries: list[_Entry]) -> None:
        drafts = [entry.draft for entry in entries]
        try:
            try:
                numbers = await asyncio.to_thread(self._store.append, drafts, self._log)
            except StoreUnavailable:  # perhaps only the answer was lost; a repeat is stored once
                numbers = await asyncio.to_thread(self._store.append, drafts, self._log)
        except Exception as error:  # noqa: BLE001 -- every waiting request gets the error
            for entry in entries:
                entry.result.set_exception(error)
            return
        await self._appended()
        for entry, number in zip(entries, numbers, strict=True):
            entry.result.set_result(number)
