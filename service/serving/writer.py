"""Writes changes of items to the log of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from index_store.store import IndexStore
from retrieval.changes import Change, read_changes, to_json, write_changes
from service.serving.appender import Appender
from service.serving.follower import Follower


class Writer:
    """Start `run` as a task, and cancel the task to stop."""

    def __init__(self, store: IndexStore, follower: Follower) -> None:
        self._follower, self._appender = follower, Appender(store, "log", follower.advance)
        self.run = self._appender.run
        self.reserved = 0  # new items that are being placed
        self.placing = ThreadPoolExecutor(1, "placing")

    async def append(self, changes: Sequence[Change]) -> int:
        """Append one record, and return its number once it is durable and the version in service has it.

        Without changes nothing is appended, and the number is that of the last record.

        The version in service may lack it if it cannot follow the log at present. For errors see `Appender.append`.
        """
        if not changes:
            return self._follower.seq
        read_changes(write_changes(changes))  # what a replica could not read must not be in the log
        return await self._appender.append([to_json(change) for change in changes])
