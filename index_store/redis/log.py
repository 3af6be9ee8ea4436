"""The log of a store on Redis: a stream whose entry n-0 is record n, and the last number of each producer.

Both change in one transaction, so of several writers one succeeds and the others read the new end and try again.
Readers use no consumer group, because each of them must see every record.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from index_store.errors import LogBroken
from index_store.log import START, Draft, LogName, Place, Producers, Record, chained, decode, encode, require_end
from index_store.redis.client import Command, Server
from index_store.redis.keys import Keys

FIELD = b"record"  # the only field of an entry


class ServerLog:
    """The logs of a ServerStore."""

    def __init__(self, server: Server, keys: Keys) -> None:
        self._server, self._keys = server, keys

    def append(self, drafts: Sequence[Draft], log: LogName = "log", expected: Place | None = None) -> list[int]:
        """Append drafts that are not repeats, and return the number of each one's record, when the server has all."""
        numbers: list[int] = []

        def change(read: Any) -> list[Command] | None:
            numbers.clear()
            commands: list[Command] = []
            place = end = _place(read.xrevrange(self._keys.log(log), count=1))
            producers = Producers(json.loads(read.get(self._keys.producers(log)) or b"{}"))
            for draft in drafts:
                stored = producers.stored(draft)
                if stored is None:
                    place, text = encode(draft, place, time.time_ns() // 10**6)
                    producers.add(draft.producer, draft.number, place.seq)
                    commands.append(("XADD", self._keys.log(log), f"{place.seq}-0", FIELD, text))
                numbers.append(place.seq if stored is None else stored)
            if not commands:
                return None
            require_end(end, expected)
            return [*commands, ("SET", self._keys.producers(log), json.dumps(producers.to_json()))]

        self._server.transact([self._keys.log(log)], change)
        return numbers

    def read(self, after: Place, most: int, log: LogName = "log") -> list[Record]:
        """At most `most` records after `after`, in order. [] at the end of the log.

        Raises LogBroken if the log does not continue `after`, LogDamaged.
        """
        # The record of `after` itself is read too: if the server has lost it, another record may have its number.
        texts = [fields[FIELD] for _, fields in self._server.entries(self._keys.log(log), max(after.seq, 1), most + 1)]
        if texts and decode(texts[0]).seq == after.seq + 1:  # that of `after` was trimmed
            return chained(texts[:most], after)
        if after == START:
            return chained(texts[:most], START)
        if not texts or decode(texts[0]).place != after:
            raise LogBroken(f"record {after.seq} of the log was lost, or is another one than the one read before")
        return chained(texts[1:], after)

    def start(self, log: LogName = "log") -> Place:
        """The place before the first record that was not trimmed."""
        entries = self._server.entries(self._keys.log(log), 1, 1)
        first = decode(entries[0][1][FIELD]) if entries else None
        return Place(first.seq - 1, first.previous) if first else START

    def end(self, log: LogName = "log") -> Place:
        """The place after the last record."""
        return _place(self._server.last_entry(self._keys.log(log)))

    def trim(self, before: int, log: LogName = "log") -> None:
        """Remove the records with numbers below `before`, but not the last one, from which the log continues."""
        self._server.trim(self._keys.log(log), min(before, self.end(log).seq))


def _place(last: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> Place:
    return decode(last[0][1][FIELD]).place if last else START
