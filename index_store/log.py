"""The logs of a catalogue: numbered records of what changed in it after a version was made, and of what users did.

A record is a batch of changes that is applied as a whole, or a batch of events. Records are numbered 1, 2, 3, ...
without gaps. Each record has the digest of the record before it, so the records form a chain: a reader notices if
records were lost, and if their numbers were then given to others. The producer of a record numbers its own records, so
that a record which is sent again, because the answer was lost, is stored once.

What a change says is described in retrieval/changes.py, what an event says in retrieval/events.py; here both are any
JSON object.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from index_store.errors import LogBroken, LogDamaged, LogIncompatible, LogMoved

#: The two logs of a catalogue: the changes of its items, and the events from which the trainer learns.
LogName = Literal["log", "events"]
FORMAT = 1
CHANGES = b',"changes":'  # the last field of a record, which is read only by those who need it
#: The most producers of which a log remembers the last number. A record of an older producer could be stored twice.
PRODUCERS = 1000


class Place(NamedTuple):
    """How far somebody has read: the number of the last record, and its digest (16 hexadecimal digits)."""

    seq: int
    digest: str


START = Place(0, "0" * 16)


@dataclass(frozen=True)
class Draft:
    """A record as its producer sends it.

    producer: a name that no other producer has, of at most 64 characters. number: rises with each of the producer's
    drafts; a draft whose number is not above the last one is a repeat, and is not stored again.
    """

    producer: str
    number: int
    changes: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Record:
    """A record of the log. previous: the digest of the record before it. time: ms since 1970, by the writer's clock.

    payload: its changes, a JSON list.
    """

    seq: int
    digest: str
    previous: str
    producer: str
    number: int
    time: int
    payload: bytes

    @property
    def changes(self) -> list[Mapping[str, Any]]:
        """The changes, as JSON objects. Raises LogDamaged."""
        try:
            changes = json.loads(self.payload)
        except (ValueError, RecursionError):
            changes = None
        if not isinstance(changes, list) or not all(isinstance(change, dict) for change in changes):
            raise LogDamaged(f"record {self.seq} of the log has no list of changes")
        return changes

    @property
    def place(self) -> Place:
        """The place of a reader that has read up to this record."""
        return Place(self.seq, self.digest)


def encode(draft: Draft, after: Place, time: int) -> tuple[Place, bytes]:
    """The bytes of the record that follows `after`, one line of JSON without the line's end, and its place."""
    head = {
        "format": FORMAT,
        "seq": after.seq + 1,
        "previous": after.digest,
        "producer": draft.producer,
        "number": draft.number,
        "time": time,
    }
    text = b"%b%b%b}" % (_json(head)[:-1], CHANGES, _json(list(draft.changes)))
    return Place(after.seq + 1, _digest(text)), text


def decode(text: bytes) -> Record:
    """The record with these bytes. Raises LogDamaged, or LogIncompatible if a newer release has written it."""
    try:
        head, mark, rest = text.partition(CHANGES)  # no text within JSON has unescaped quotes, so this is its place
        fields = json.loads(head + b"}")
        its_format = fields.pop("format")
        if isinstance(its_format, int) and its_format > FORMAT:
            raise LogIncompatible(
                f"the log has records of format {its_format}, but this release reads format {FORMAT}; upgrade it"
            )
        record = Record(digest=_digest(text), payload=rest[:-1], **fields)
        if its_format != FORMAT or not mark or rest[-1:] != b"}" or record.seq < 1:
            raise TypeError
        if not type(record.seq) is type(record.number) is type(record.time) is int:
            raise TypeError
        if not type(record.producer) is type(record.previous) is str:
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LogDamaged(f"the log has a record that cannot be read: it begins with {text[:40]!r}") from None
    return record


def require_end(end: Place, expected: Place | None) -> None:
    """Raise LogMoved unless the log ends where a writer expects, if it expects anything."""
    if expected is not None and end != expected:
        raise LogMoved(f"the log ends with record {end.seq}, not with {expected.seq}; read it, then repeat")


def chained(texts: Iterable[bytes], after: Place) -> list[Record]:
    """The records with these bytes, if they follow `after` one by one. Raises LogBroken if they do not."""
    records = []
    for text in texts:
        record = decode(text)
        if record.seq != after.seq + 1:
            raise LogBroken(f"the log continues with record {record.seq} after {after.seq}: records are missing")
        if record.previous != after.digest:
            raise LogBroken(
                f"record {record.seq} of the log does not follow the record {after.seq} that was read before"
            )
        records.append(record)
        after = record.place
    return records


class Producers:
    """The last number of each producer, and the record that has it."""

    def __init__(self, last: Mapping[str, Sequence[int]] | None = None) -> None:
        """last: as `to_json` gives it."""
        self._last = {producer: (int(number), int(seq)) for producer, (number, seq) in (last or {}).items()}

    def stored(self, draft: Draft) -> int | None:
        """The number of the producer's last record, if `draft` is a repeat, else None.

        If the draft is older than that record, so is its own; a reader that waits for the later one has both.
        """
        number, seq = self._last.get(draft.producer, (-1, 0))
        return seq if draft.number <= number else None

    def add(self, producer: str, number: int, seq: int) -> None:
        """Note a record. If there are more than PRODUCERS, the one that was silent for longest is forgotten."""
        self._last.pop(producer, None)
        self._last[producer] = number, seq
        if len(self._last) > PRODUCERS:
            del self._last[next(iter(self._last))]

    def to_json(self) -> dict[str, Sequence[int]]:
        """Producers, those that were silent for longest first."""
        return dict(self._last)


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
