"""Where events come from: the log of events in a store, a file of JSON lines, or standard input."""

from __future__ import annotations

import codecs
import os
import select
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from index_store.errors import LogBroken, LogDamaged
from index_store.log import START, Place
from index_store.store import IndexStore
from retrieval.events import Event, read_event, read_events
from trainer.errors import DataError

LONGEST = 2**20  # bytes of a line
RECORDS = 10  # read at once from a store; each may have a thousand events
HEAD = 1024  # first bytes of a file, by which a replaced file is known


@dataclass
class Arrived:
    """Events in order. place: where to go on after them, as JSON. lines: messages about what could not be read."""

    events: list[Event] = field(default_factory=list)
    place: Any = None
    lines: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.events) + len(self.lines)

    def add(self, line: bytes, where: str) -> None:
        """Add the event in a line. A line that is no event is left out, because a stream cannot be repaired."""
        line = line.removeprefix(codecs.BOM_UTF8).strip()
        if len(line) >= LONGEST:
            self.lines.append(f"{where}: longer than {LONGEST} bytes; left out")
        elif line:
            try:
                self.events.append(read_event(line))
            except ValueError as error:
                self.lines.append(f"{where}: not an event ({error}); left out")


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
        """See EventSource. Events of about RECORDS records more may be read."""
        arrived = Arrived()
        if self._place is None:
            self._place = self._store.log_start("events")
        while len(arrived) < most:
            try:
                records = self._store.read(self._place, RECORDS, "events")
            except LogBroken as error:
                # Events may be lost; the catalogue's log may not. So learning goes on with what can be read.
                start = self._store.log_start("events")
                self._place = start if start != self._place else self._store.log_end("events")
                arrived.lines.append(f"events are missing: {error}; going on after event record {self._place.seq}")
                continue
            if not records:
                break
            for record in records:
                try:
                    arrived.events += read_events(record.payload)
                except LogDamaged as error:
                    arrived.lines.append(str(error))
            self._place = records[-1].place
        arrived.place = list(self._place or START)
        return arrived

    def forget(self, place: Any) -> None:
        """Remove the events up to a place from the store."""
        self._store.trim(Place(*place).seq + 1, "events")


class FileEvents:
    """The lines of a file, from a position on. A last line without its end is not read before it is whole."""

    def __init__(self, file: Path, place: Any = None, *, waits: bool = False) -> None:
        """place: as `Arrived` gave it. waits: whether lines may be added to the file."""
        self._file, self._waits = file, waits
        self._offset: int  # bytes that were read
        self._head: int  # CRC-32 of the first HEAD of these
        self._offset, self._head = place or (0, 0)
        self.ended = False
        self._line = 0 if not place else None  # the number of the last line, if it is known

    def read(self, most: int) -> Arrived:
        """See EventSource."""
        arrived = Arrived()
        try:
            with self._file.open("rb") as file:
                if self._head != zlib.crc32(file.read(min(HEAD, self._offset))) or file.seek(0, 2) < self._offset:
                    raise DataError(f"{self._file}: another file than the one read before; name another --checkpoint")
                file.seek(self._offset)
                while len(arrived) < most:
                    line = file.readline(LONGEST)
                    if not line or (not line.endswith(b"\n") and self._waits and len(line) < LONGEST):
                        self.ended = not self._waits
                        break
                    self._offset += len(line)
                    self._line = None if self._line is None else self._line + 1
                    where = f"line {self._line}" if self._line else f"the line that ends at byte {self._offset}"
                    arrived.add(line, f"{self._file}: {where}")
                file.seek(0)
                self._head = zlib.crc32(file.read(min(HEAD, self._offset)))
        except OSError as error:
            raise DataError(f"{self._file}: {error.strerror}") from None
        arrived.place = [self._offset, self._head]
        return arrived


class StandardInput:
    """The lines of standard input."""

    def __init__(self) -> None:
        self.ended = False
        self._line = 0
        self._rest = b""  # of a line whose end has not come; of a line that is too long, only its beginning

    def read(self, most: int) -> Arrived:
        """See EventSource."""
        arrived = Arrived()
        descriptor = sys.stdin.fileno()
        while len(arrived) < most and not self.ended and select.select([descriptor], [], [], 0)[0]:
            piece = os.read(descriptor, 2**16)
            self.ended = not piece
            first, *others = (piece or b"\n").split(b"\n")
            self._rest = (self._rest + first)[: LONGEST + 1]
            for following in others:
                self._line += 1
                arrived.add(self._rest, f"standard input: line {self._line}")
                self._rest = following
        return arrived
