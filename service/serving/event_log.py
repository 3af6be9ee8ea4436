"""Writes events to the store, for the trainer to learn from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from index_store.store import IndexStore
from service.errors import Overloaded
from service.serving.appender import Appender

LOOK_SECONDS = 1.0  # between two looks at what the trainer has removed, while the log is full


class EventLog:
    """Start `run` as a task, and cancel the task to stop. The trainer removes the records that it has learned."""

    def __init__(self, store: IndexStore, most: int) -> None:
        """most: records that may wait for the trainer; one more is kept, because Redis keeps the last one."""
        self._store, self._most = store, most
        self._appender = Appender(store, "events", self._nothing)
        self.run = self._appender.run
        self._first, self._last = 0, 0  # the last record that was removed, and the last one of all
        self._looking, self._looked = asyncio.Lock(), float("-inf")

    async def append(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Append events as one record; returns when it is durable.

        Raises Overloaded while `most` records wait for the trainer. For other errors see `Appender.append`.
        """
        if self._full:
            async with self._looking:  # the others wait for the one that looks
                if self._full and time.monotonic() - self._looked > LOOK_SECONDS:
                    self._first = (await asyncio.to_thread(self._store.log_start, "events")).seq
                    self._looked = time.monotonic()
        if self._full:
            raise Overloaded("events are not learned as fast as they come; run dr-trainer follow, or raise DR_EVENTS")
        self._last = max(self._last, await self._appender.append(events))

    @property
    def _full(self) -> bool:
        return self._last - self._first > self._most

    @staticmethod
    async def _nothing() -> None:
        """Nobody waits for the events to be learned."""
