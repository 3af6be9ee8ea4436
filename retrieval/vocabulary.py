"""Conversion between the caller's item ids and item indices."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.query import ItemId

T = TypeVar("T")
#: An integer id as text, in files and requests. A fraction of zeros is allowed, because pandas writes 7 as 7.0 in a
#: column that has a missing value.
INTEGER = r"(0|-?[1-9][0-9]{0,18})(\.0+)?"
_INTEGER = re.compile(INTEGER)
FEW = 50  # ids that are looked up one by one
HASH, BITS = 0x9E3779B97F4A7C15, 2**64 - 1  # integers times it are spread over the upper bits of 64


class Vocabulary:
    """The ids of V items, ascending: all integers, or all strings. An item's index is the position of its id.

    Ids of new items may be added; their indices go on from V.
    """

    def __init__(self, ids: NDArray[np.int64] | list[str]) -> None:
        self._ids = ids
        self._places = {item: index for index, item in enumerate(ids)} if isinstance(ids, list) else None
        self._new = _NewIds(len(ids))

    @property
    def kind(self) -> str:
        """The type of the ids: "integer" or "string"."""
        return "integer" if self._places is None else "string"

    def indices(self, ids: Sequence[ItemId]) -> NDArray[np.int64]:
        """The indices of the known `ids`, in the given order. "7", 7, "7 " and "7.0" name the same item."""
        if not ids:
            return np.empty(0, np.int64)
        if self._places is not None:
            return np.fromiter(self._known_places(ids), np.int64)
        assert not isinstance(self._ids, list)
        numbers = ids if all(isinstance(item, int) for item in ids) else map(as_integer, ids)
        known = self.places([number for number in numbers if number is not None])
        return known[known >= 0]

    def places(self, ids: Sequence[ItemId] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The index of each canonical id, -1 if it is unknown."""
        if self._places is not None:
            return np.array([-1 if (place := self.index(str(item))) is None else place for item in ids], np.int64)
        assert not isinstance(self._ids, list)
        wanted = np.array(ids, np.int64)
        places = np.minimum(self._ids.searchsorted(wanted), len(self._ids) - 1)
        known: NDArray[np.int64] = np.where(self._ids[places] == wanted, places, -1)
        if len(self._new):
            newer = self._new.places(wanted)
            known = np.where(newer >= 0, newer, known)
        return known

    def lookup(self, ids: Sequence[ItemId]) -> NDArray[np.int64]:
        """The index of each id, -1 if it is unknown or not of this kind."""
        if self._places is not None or set(map(type, ids)) <= {int}:
            return self.places(ids)
        numbers = [as_integer(item) for item in ids]
        places = np.full(len(ids), -1, np.int64)
        right = np.array([number is not None for number in numbers], bool)
        places[right] = self.places([number for number in numbers if number is not None])
        return places

    def all_ids(self) -> NDArray[np.int64] | list[str]:
        """All ids, ascending; those that were added included."""
        if isinstance(self._ids, list):
            return sorted({*self._ids, *map(str, self._new.ids)})
        ids = np.sort(np.concatenate([self._ids, np.array(self._new.ids, np.int64)]))
        different: NDArray[np.int64] = ids[np.concatenate([[True], ids[1:] != ids[:-1]])]
        return different

    def index(self, item: ItemId) -> int | None:
        """The index of a canonical id, or None if it is unknown."""
        place = self._new.get(item, -1)
        return place if place >= 0 else self.version_index(item)

    def version_rows(self) -> NDArray[np.int64]:
        """For each of `all_ids`, the index that it has in the version, -1 for none."""
        ids = self.all_ids()
        if isinstance(ids, list):
            assert self._places is not None
            return np.array([self._places.get(name, -1) for name in ids], np.int64)
        assert not isinstance(self._ids, list)
        places = np.minimum(self._ids.searchsorted(ids), len(self._ids) - 1)
        return np.where(self._ids[places] == ids, places, -1)

    def ascending_rows(self, named: Mapping[ItemId, T]) -> dict[int, T]:
        """What is named, by positions in `all_ids`."""
        ids = self.all_ids()
        if isinstance(ids, list):
            return {bisect_left(ids, str(name)): value for name, value in named.items()}
        return dict(zip(ids.searchsorted(list(named)).tolist(), named.values(), strict=True)) if named else {}

    def version_index(self, item: ItemId) -> int | None:
        """The index that a canonical id has in the version, even if it was put again; None if it has none."""
        if self._places is not None:
            return self._places.get(str(item))
        assert not isinstance(self._ids, list)
        place = int(self._ids.searchsorted(item))
        return place if place < len(self._ids) and self._ids[place] == item else None

    def canonical(self, item: ItemId) -> ItemId | None:
        """The id as it is kept and returned: an integer, or a string. None if it is not of this kind."""
        return str(item) if self._places is not None else as_integer(item)

    def named(self, item: ItemId) -> ItemId | None:
        """The kept id of the item that a caller names: of a known one, or a new one. None if it is not of this kind.

        "7.0" names a known item 7, but a new item gets the id that was given, without blanks around it.
        """
        known = self.indices([item])
        text = str(item).strip()
        return self.names(known)[0] if len(known) else self.canonical(text) if text else None

    def names(self, items: NDArray[np.int64]) -> list[ItemId]:
        """The caller's ids for item indices."""
        count = len(self._ids)
        if isinstance(self._ids, list):
            return [self._ids[i] if i < count else self._new.ids[i - count] for i in items.tolist()]
        if not self._new.ids:
            names: list[ItemId] = self._ids[items].tolist()
            return names
        known = self._ids[np.minimum(items, count - 1)].tolist()
        return [name if i < count else self._new.ids[i - count] for i, name in zip(items.tolist(), known, strict=True)]

    def add(self, ids: Sequence[ItemId]) -> None:
        """Give the next indices to canonical `ids`: `names` knows them at once, `indices` after `publish`."""
        self._new.ids.extend(ids)

    def publish(self) -> None:
        """Let `indices` find the ids that were added. An id that had an index has a new one from now on."""
        self._new.publish()

    def _known_places(self, ids: Sequence[ItemId]) -> Iterator[int]:
        for item in ids:
            text = item if isinstance(item, str) else str(item)
            place = self.index(text)
            if place is None:  # padded with blanks, as in a fixed-width column, or written 7.0 for 7
                place = self.index(text.strip())
            if place is None and (number := as_integer(text)) is not None:
                place = self.index(str(number))
            if place is not None:
                yield place


class _NewIds:
    """Added ids, and the index of each: of an id that was added twice, the later one.

    A hash table with open addressing whose entries are positions in the list of ids. With an id of 10 characters it
    takes 75 bytes an id, and 8 more if ids are integers; a dictionary would take 180.
    """

    def __init__(self, first: int) -> None:
        """first: the index of the first id."""
        self._first = first
        self.ids: list[ItemId] = []
        self._published = 0  # how many of the ids are in the table
        self._table = array("i", [-1] * 64)
        self._numbers = np.empty(0, np.int64)  # the published ids, if they are integers

    def __len__(self) -> int:
        return self._published

    def get(self, item: ItemId, default: int) -> int:
        """The index of a published id."""
        table = self._table
        place = table[self._slot(table, item)] if self._published else -1
        return default if place < 0 else self._first + place

    def places(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        """The index of each of many published ids that are integers, -1 for the others."""
        if len(wanted) < FEW:
            return np.array([self.get(item, -1) for item in wanted.tolist()], np.int64)
        table = np.frombuffer(self._table, np.int32)
        last = len(table) - 1
        slots = (wanted.view(np.uint64) * np.uint64(HASH) >> np.uint64(32)).astype(np.int64) & last
        found = np.full(len(wanted), -1, np.int64)
        left = np.arange(len(wanted))
        while len(left):
            places = table[slots[left]]
            right = places >= 0
            right[right] = self._numbers[places[right]] == wanted[left[right]]
            found[left[right]] = places[right] + self._first
            left = left[~right & (places >= 0)]
            slots[left] = slots[left] + 1 & last
        return found

    def publish(self) -> None:
        """Enter the ids that were added since the last call."""
        if self._published == len(self.ids):
            return
        table, first = self._table, self._published
        if not isinstance(self.ids[0], str):
            if len(self.ids) > len(self._numbers):
                more = np.empty(len(self.ids), np.int64)
                self._numbers = np.concatenate([self._numbers[:first], more])
            self._numbers[first : len(self.ids)] = self.ids[first:]
        if 2 * len(self.ids) > len(table):
            size = len(table)
            while 2 * len(self.ids) > size:
                size *= 2
            table, first = array("i", [-1]) * size, 0
        for place in range(first, len(self.ids)):
            table[self._slot(table, self.ids[place])] = place
        self._table, self._published = table, len(self.ids)  # readers see the old table or the new one

    def _slot(self, table: array[int], item: ItemId) -> int:
        """The position of the id's entry in the table, or of the free entry for it."""
        last = len(table) - 1
        slot = ((item if isinstance(item, int) else hash(item)) * HASH & BITS) >> 32 & last
        while (place := table[slot]) >= 0 and self.ids[place] != item:
            slot = slot + 1 & last
        return slot


def as_integer(item: ItemId) -> int | None:
    """`item`, or the integer in its text, if that fits in int64; else None."""
    if isinstance(item, int):
        return item
    match = _INTEGER.fullmatch(item.strip())
    number = int(match[1]) if match else 2**63
    return number if -(2**63) <= number < 2**63 else None
