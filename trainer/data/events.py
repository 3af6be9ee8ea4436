"""Where events come from: the log of events in a store, a file of JSON lines, or standard input."""

from __future__ import annotations

import os
import select
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from index_store.errors import LogBroken
from index_store.log import START, Place
from index_store.store import IndexStore
from retrieval.events import Event, read_event, read_events
from trainer.errors import DataError

LONGEST = 2**20  # bytes of a line


@dataclass
class Arrived:
    """Events in order. place: where to go on after them, as JSON. lines: messages about what could not be read."""

    events: list[Event] = field(default_factory=list)
    place: Any = None
    lines: list[str] = field(default_factory=list)


class EventSource(Protocol):
    """A source of events. `ended` is True once no event will follow."""

    ended: bool

    def read(self, most: int) -> Arrived:
        """The events that are there now, about `most` of them. Raises DataError, and the errors of a store."""


class StoreEvents:
    """The events that a service has written to a store."""

    ended = False

    def __init__(self, store: IndexStore, place: Any = None) -> None:
        """place: of the last event that was read, or None for the beginning."""
        self._store, self._place = store, Place(*place) if place else None

    def read(self, most: int) -> Arrived:
        """See EventSource."""
        lines = []
        if self._place is None:
            self._place = self._store.log_start("events")
        try:
            records = self._store.read(self._place, most, "events")
        except LogBroken as error:
            # Events may be lost; the catalogue's log may not. So learning goes on with what is there.
            self._place = self._store.log_start("events")
            lines.append(f"events are missing: {error}; going on with the oldest that is left")
            records = self._store.read(self._place, most, "events")
        if records:
            self._place = records[-1].place
        events = [event for record in records for event in read_events(record.payload)]
        return Arrived(events, list(self._place or START), lines)

    def forget(self, place: Any) -> None:
        """Remove the events up to a place from the store."""
        self._store.trim(Place(*place).seq + 1, "events")


class FileEvents:
    """The lines of a file, from a position on. A last line without its end is not read before it is whole."""

    def __init__(self, file: Path, place: Any = None, *, waits: bool = False) -> None:
        """place: bytes that were read before. waits: whether lines may be added to the file."""
        self._file, self._offset, self._waits = file, int(place or 0), waits
        self.ended = False
        self._line = 0 if not place else None  # the number of the last line, if it is known

    def read(self, most: int) -> Arrived:
        """See EventSource."""
        arrived = Arrived()
        try:
            with self._file.open("rb") as file:
                size = file.seek(0, 2)
                if size < self._offset:
                    raise DataError(
                        f"{self._file}: {size} bytes, but {self._offset} were read before; "
                        "it is another file, so name another --checkpoint"
                    )
                file.seek(self._offset)
                while len(arrived.events) < most:
                    line = file.readline(LONGEST)
                    if not line or (not line.endswith(b"\n") and self._waits and len(line) < LONGEST):
                        self.ended = not self._waits
                        break
                    self._offset += len(line)
                    self._line = None if self._line is None else self._line + 1
                    where = f"line {self._line}" if self._line else f"the line that ends at byte {self._offset}"
                    _add(line, f"{self._file}: {where}", arrived)
        except OSError as error:
            raise DataError(f"{self._file}: {error.strerror}") from None
        arrived.place = self._offset
        return arrived


class StandardInput:
    """The lines of standard input."""

    def __init__(self) -> None:
        self.ended = False
        self._line = 0
        self._rest = b""

    def read(self, most: int) -> Arrived:
        """See EventSource."""
        arrived = Arrived()
        descriptor = sys.stdin.fileno()
        while len(arrived.events) < most and select.select([descriptor], [], [], 0)[0]:
            piece = os.read(descriptor, 2**16)
            if not piece:
                self.ended = True
                piece = b"\n" if self._rest else b""
            *lines, self._rest = (self._rest + piece).split(b"\n")
            for line in lines:
                self._line += 1
                _add(line, f"standard input: line {self._line}", arrived)
            if self.ended:
                break
        return arrived


def _add(line: bytes, where: str, arrived: Arrived) -> None:
    """Add the event in a line. A line that is no event is left out, because a stream cannot be repaired."""
    if not line.strip():
        return
    try:
        arrived.events.append(read_event(line))
    except ValueError as error:
        arrived.lines.append(f"{where}: not an event ({error}); left out")
