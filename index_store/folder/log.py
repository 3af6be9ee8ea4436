"""The log of a store in a folder: segments of frames in `log/`, which only grow.

    log/LOCK                       who holds it may write
    log/00000000000000000001.log   a segment; its name is the number of its first record

A frame begins with three little-endian numbers of 4 bytes: the length of the rest, its CRC-32, and the CRC-32 of these
two numbers. The first frame of a segment
is JSON: the place after which the segment begins, and the last numbers of the producers. Every other frame is a group
of records, one a line, which became durable with one fsync.

A frame that is not whole is the end of the log: its writer is still writing, or was killed, or found no room. The next
writer moves these bytes to log/torn-..., and writes its own frame in their place. So a frame is cut off only at the end
of the last segment, and it was never acknowledged.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import logging
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index_store.errors import LogBroken, LogDamaged
from index_store.folder.files import sync_folder
from index_store.log import START, Draft, Place, Producers, Record, chained, encode, require_end

log = logging.getLogger(__name__)

SEGMENT = 64 * 2**20  # bytes after which a new segment begins
LONGEST = 256 * 2**20  # bytes of a frame
READERS = 4  # positions that are remembered
HEAD = struct.Struct("<III")  # length and CRC-32 of a frame, and the CRC-32 of both
SUFFIX = ".log"


@dataclass
class _Cursor:
    """A position between two frames: the segment, the bytes before the position, and the last record before it."""

    segment: Path
    offset: int
    place: Place
    start: int  # of the frame before the position
    head: bytes  # its first bytes

    @property
    def exists(self) -> bool:
        """Whether the log still has this position: it was neither trimmed nor replaced by an older copy."""
        try:
            with self.segment.open("rb") as file:
                file.seek(self.start)
                return file.read(HEAD.size) == self.head and os.fstat(file.fileno()).st_size >= self.offset
        except FileNotFoundError:
            return False


@dataclass
class _Tail(_Cursor):
    """The end of the log, as this object last saw it."""

    producers: Producers = field(default_factory=Producers)


class FolderLog:
    """The log of a FolderStore. One thread reads; any number of threads and processes append. Raises OSErrors as they
    are.
    """

    def __init__(self, folder: Path) -> None:
        """folder: of the log; the first append creates it."""
        self._folder = folder
        self._readers: dict[Place, _Cursor] = {}  # where reads ended; a version and the one after it are read in turn
        self._tail: _Tail | None = None

    def append(self, drafts: Sequence[Draft], expected: Place | None = None) -> list[int]:
        """Append drafts that are not repeats, and return the number of each one's record, when all are on disk."""
        self._folder.mkdir(exist_ok=True)
        with self._lock():
            tail = self._at_end()
            texts, numbers, place = [], [], tail.place
            producers = Producers(tail.producers.to_json())
            for draft in drafts:
                stored = producers.stored(draft)
                if stored is None:
                    place, text = encode(draft, place, time.time_ns() // 10**6)
                    producers.add(draft.producer, draft.number, place.seq)
                    texts.append(text)
                numbers.append(place.seq if stored is None else stored)
            if texts:
                require_end(tail.place, expected)
                end, head = _write(tail.segment, tail.offset, b"\n".join(texts))
                self._tail = _Tail(tail.segment, end, place, tail.offset, head, producers)
        return numbers

    def read(self, after: Place, most: int) -> list[Record]:
        """Records after `after`, in order: whole groups, until they are at least `most`. [] at the end of the log.

        Raises LogBroken if the log does not continue `after`, LogDamaged.
        """
        cursor = self._readers.get(after)
        if cursor is None or not cursor.exists:
            cursor = self._find(after)
        records: list[Record] = []
        while cursor and len(records) < most:
            later = [segment for segment in self._segments() if segment > cursor.segment]
            group = next(_groups(cursor, last=not later), None)
            if group:
                new, cursor = group
                records += [record for record in new if record.seq > after.seq]
            elif later:
                cursor = _start(later[0], cursor.place)
            else:
                break
        if cursor:
            self._readers.pop(cursor.place, None)  # so that it is the newest
            self._readers[cursor.place] = cursor
            if len(self._readers) > READERS:
                del self._readers[next(iter(self._readers))]
        return records

    def start(self) -> Place:
        """The place before the first record that was not trimmed."""
        segments = self._segments()
        return _start(segments[0]).place if segments else START

    def end(self) -> Place:
        """The place after the last record."""
        segments = self._segments()
        if not segments:
            return START
        place = (start := _start(segments[-1])).place
        for records, _ in _groups(start, last=True):
            place = records[-1].place
        return place

    def trim(self, before: int) -> None:
        """Remove the segments all of whose records have numbers below `before`.

        If the last segment has such records too, a new one begins, so that a later call can remove them.
        """
        if not self._folder.is_dir():
            return
        with self._lock():
            segments = self._segments()
            if segments and _first(segments[-1]) < before:
                tail = self._at_end()
                self._tail = _begin(self._folder, tail.place, tail.producers)
                segments = self._segments()
            for segment, following in itertools.pairwise(segments):
                if _first(following) <= before:
                    segment.unlink()
            sync_folder(self._folder)

    def _segments(self) -> list[Path]:
        """All segments, in order."""
        if not self._folder.is_dir():
            return []
        return sorted(entry for entry in self._folder.iterdir() if entry.suffix == SUFFIX and entry.stem.isdecimal())

    def _find(self, after: Place) -> _Cursor | None:
        """The cursor before the group that has the record after `after`; None if the log is empty, as `after` is.

        Raises LogBroken if the log does not have the record of `after`, or had it and removed it.
        """
        segments = self._segments()
        candidates = [segment for segment in segments if _first(segment) <= after.seq + 1]
        if not candidates:
            if not segments and after == START:
                return None
            raise LogBroken(
                f"the log begins with record {_first(segments[0])}, so record {after.seq + 1} was removed"
                if segments
                else f"the log is empty, but its record {after.seq} was read before"
            )
        cursor = _start(candidates[-1])
        while cursor.place.seq < after.seq:
            group = next(_groups(cursor, last=candidates[-1] == segments[-1]), None)
            if group is None:
                raise LogBroken(f"the log ends with record {cursor.place.seq}; its record {after.seq} was read before")
            records, following = group
            if records[-1].seq > after.seq:  # `after` is inside of this group
                _require_same(records[after.seq - records[0].seq].place, after)
                return cursor
            cursor = following
        _require_same(cursor.place, after)
        return cursor

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self._folder / "LOCK").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _at_end(self) -> _Tail:
        """The end of the log, with a segment that has room. What is not whole there is cut off. Needs the lock."""
        segments = self._segments()
        if not segments:
            return _begin(self._folder, START, Producers())
        tail = self._tail
        if tail is None or tail.segment != segments[-1] or not tail.exists:
            tail = _Tail(**vars(_start(segments[-1])), producers=Producers(_header(segments[-1])["producers"]))
        for records, cursor in _groups(tail, last=True):
            for record in records:
                tail.producers.add(record.producer, record.number, record.seq)
            tail.offset, tail.place, tail.start, tail.head = cursor.offset, cursor.place, cursor.start, cursor.head
        size = tail.segment.stat().st_size
        if size > tail.offset:
            _cut(tail.segment, tail.offset)
        self._tail = tail
        if size < SEGMENT:
            return tail
        return _begin(self._folder, tail.place, tail.producers)


def _first(segment: Path) -> int:
    """The number of a segment's first record."""
    return int(segment.stem)


def _require_same(found: Place, expected: Place) -> None:
    if found != expected:
        raise LogBroken(f"record {expected.seq} of the log is another one than the one that was read before")


def _begin(folder: Path, after: Place, producers: Producers) -> _Tail:
    """Make the segment of the records after `after`."""
    segment = folder / f"{after.seq + 1:020d}{SUFFIX}"
    header = {"seq": after.seq, "digest": after.digest, "producers": producers.to_json()}
    partial = segment.with_suffix(".partial")
    end, head = _write(partial, 0, json.dumps(header).encode())
    partial.rename(segment)
    sync_folder(folder)
    sync_folder(folder.parent)  # the log's own name, if this is its first segment
    return _Tail(segment, end, after, 0, head, producers)


def _header(segment: Path) -> dict[str, Any]:
    """The first frame of a segment. It is whole, because a segment gets its name when it has a header."""
    payload, end, head = next(_frames(segment, 0, last=False), (b"", 0, b""))
    try:
        header: dict[str, Any] = json.loads(payload)
        return {**header, "place": Place(header["seq"], header["digest"]), "end": end, "head": head}
    except (ValueError, KeyError, TypeError):
        raise LogDamaged(f"{segment}: the first frame cannot be read") from None


def _start(segment: Path, after: Place | None = None) -> _Cursor:
    """The cursor before the first group of a segment. after: the place at which it must begin."""
    header = _header(segment)
    if after:
        _require_same(header["place"], after)
    return _Cursor(segment, header["end"], header["place"], 0, header["head"])


def _groups(cursor: _Cursor, *, last: bool) -> Iterator[tuple[list[Record], _Cursor]]:
    """The groups of records after a cursor, to the end of its segment, and the cursor after each."""
    for payload, end, head in _frames(cursor.segment, cursor.offset, last=last):
        records = chained(payload.split(b"\n"), cursor.place)
        cursor = _Cursor(cursor.segment, end, records[-1].place, cursor.offset, head)
        yield records, cursor


def _frames(segment: Path, offset: int, *, last: bool) -> Iterator[tuple[bytes, int, bytes]]:
    """The frames after `offset`, each with its end and its head. last: whether the last frame may not be whole.

    Raises LogDamaged if a frame is damaged that was whole once: the head is, or something follows the frame.
    """
    with segment.open("rb") as file:
        file.seek(offset)
        while head := file.read(HEAD.size):
            length, checksum, head_checksum = HEAD.unpack(head.ljust(HEAD.size, b"\0"))
            damaged = len(head) == HEAD.size and zlib.crc32(head[:8]) != head_checksum
            payload = b"" if damaged else file.read(length)
            if damaged:
                damaged = any(head) or any(file.read())  # zeros: the power failed before the disk wrote
            elif len(head) == HEAD.size and len(payload) == length and zlib.crc32(payload) == checksum:
                offset += HEAD.size + length
                yield payload, offset, head
                continue
            elif file.read(1):
                damaged = True
            if damaged or not last:
                raise LogDamaged(f"{segment}: the bytes from {offset} on are damaged; restore the file from a copy")
            return


def _write(file: Path, offset: int, payload: bytes) -> tuple[int, bytes]:
    """Write a frame at `offset`, the end of the file, and make it durable. Returns its end and its head.

    After an error, the file is as before.
    """
    if len(payload) > LONGEST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(file))
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        numbers = struct.pack("<II", len(payload), zlib.crc32(payload))
        head = numbers + struct.pack("<I", zlib.crc32(numbers))
        frame = head + payload
        try:
            written = 0
            while written < len(frame):
                written += os.pwrite(descriptor, frame[written:], offset + written)
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):  # else the next writer cuts it off
                os.ftruncate(descriptor, offset)
            raise
    finally:
        os.close(descriptor)
    return offset + len(frame), head


def _cut(segment: Path, offset: int) -> None:
    """Move the bytes from `offset` on, which a killed writer left, to a file of their own."""
    with segment.open("r+b") as file:
        file.seek(offset)
        torn = segment.with_name(f"torn-{segment.stem}-{offset}")
        torn.write_bytes(file.read())
        log.warning("%s: %d bytes of an unfinished append, moved to %s", segment, torn.stat().st_size, torn.name)
        file.truncate(offset)
        os.fsync(file.fileno())
