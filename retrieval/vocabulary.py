"""Conversion between the caller's item ids and item indices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.query import ItemId

#: An integer id as text, in files and requests. A fraction of zeros is allowed, because pandas writes 7 as 7.0 in a
#: column that has a missing value.
INTEGER = r"(0|-?[1-9][0-9]{0,18})(\.0+)?"
_INTEGER = re.compile(INTEGER)


class Vocabulary:
    """The ids of V items, ascending: all integers, or all strings. An item's index is the position of its id."""

    def __init__(self, ids: NDArray[np.int64] | list[str]) -> None:
        self._ids = ids
        self._places = {item: index for index, item in enumerate(ids)} if isinstance(ids, list) else None

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
        wanted = np.array([number for number in numbers if number is not None], np.int64)
        places = np.minimum(self._ids.searchsorted(wanted), len(self._ids) - 1)
        known: NDArray[np.int64] = places[self._ids[places] == wanted]
        return known

    def names(self, items: NDArray[np.int64]) -> list[ItemId]:
        """The caller's ids for item indices."""
        if isinstance(self._ids, list):
            return [self._ids[i] for i in items.tolist()]
        names: list[ItemId] = self._ids[items].tolist()
        return names

    def _known_places(self, ids: Sequence[ItemId]) -> Iterator[int]:
        assert self._places is not None
        for item in ids:
            text = item if isinstance(item, str) else str(item)
            place = self._places.get(text)
            if place is None:  # padded with blanks, as in a fixed-width column, or written 7.0 for 7
                place = self._places.get(text.strip())
            if place is None and (number := as_integer(text)) is not None:
                place = self._places.get(str(number))
            if place is not None:
                yield place


def as_integer(item: ItemId) -> int | None:
    """`item`, or the integer in its text, if that fits in int64; else None."""
    if isinstance(item, int):
        return item
    match = _INTEGER.fullmatch(item.strip())
    number = int(match[1]) if match else 2**63
    return number if -(2**63) <= number < 2**63 else None
