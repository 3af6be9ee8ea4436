"""Appends changes of items to the log. Changes that arrive during one append are appended together by the next."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from index_store.errors import StoreUnavailable
from index_store.log import Draft
from index_store.store import IndexStore
from retrieval.changes import Change, read_changes, to_json, write_changes
from service.errors import Overloaded
from service.serving.follower import Follower

#: Records that wait for the append before them. Beyond it, writers are refused.
MOST = 1000
TOGETHER = 64  # records appended at once; each has at most the size of a request's body


@dataclass(frozen=True)
class _Entry:
    draft: Draft
    result: asyncio.Future[int]


class Writer:
    """Start `run` as a task, and cancel the task to stop."""

    def __init__(self, store: IndexStore, follower: Follower) -> None:
        self._store, self._follower = store, follower
        self._producer, self._number = uuid.uuid4().hex, 0
        self._waiting: list[_Entry] = []
        self._arrived = asyncio.Event()
        self.reserved = 0  # new items that are being placed
        self.placing = ThreadPoolExecutor(1, "placing")

    async def append(self, changes: Sequence[Change]) -> int:
        """Append one record, and return its number once it is durable and the version in service has it.

        Without changes nothing is appended, and the number is that of the last record.

        The version in service may lack it if it cannot follow the log at present. Raises Overloaded, StoreUnavailable,
        StoreFull and the other errors of `IndexStore.append`. After an error the record may be stored or not.
        """
        if not changes:
            return self._follower.seq
        if len(self._waiting) >= MOST:
            raise Overloaded("too many writes are waiting; try again later")
        read_changes(write_changes(changes))  # what a replica could not read must not be in the log
        self._number += 1
        draft = Draft(self._producer, self._number, [to_json(change) for change in changes])
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
                numbers = await asyncio.to_thread(self._store.append, drafts)
            except StoreUnavailable:  # perhaps only the answer was lost; a repeat is stored once
                numbers = await asyncio.to_thread(self._store.append, drafts)
        except Exception as error:  # noqa: BLE001 -- every waiting request gets the error
            for entry in entries:
                entry.result.set_exception(error)
            return
        await self._follower.advance()
        for entry, number in zip(entries, numbers, strict=True):
            entry.result.set_result(number)
