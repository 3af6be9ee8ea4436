"""Puts for items that came after the training, by the histories of those who click them.

An item that nobody has put is put with its first click. With each doubling of the histories an item is put again,
because more histories place it better; also one that was put by its attributes alone. What was deleted is not put.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from retrieval.changes import Change, Delete, Evidence, Put
from retrieval.events import Event
from retrieval.paths.overlay import NO_END
from retrieval.query import ItemId
from retrieval.searcher import Searcher

ENOUGH = 32  # histories, with which an item is put for the last time
LONGEST = 100  # items of a history that is kept
MOST = 100_000  # items whose histories are kept; the oldest are forgotten


class NewItems:
    """The histories of those who clicked an item that came after the training, and what was deleted."""

    def __init__(self) -> None:
        self._histories: dict[ItemId, list[list[ItemId]]] = {}
        self._deleted: set[ItemId] = set()

    def note(self, changes: Iterable[Change]) -> None:
        """Note changes of the catalogue, in order."""
        for change in changes:
            if isinstance(change, Delete):
                self._deleted.add(change.item_id)
                self._histories.pop(change.item_id, None)
            elif isinstance(change, Put):
                self._deleted.discard(change.item_id)
                known = self._histories.setdefault(change.item_id, [])
                if len(change.evidence.clicked_by) > len(known):
                    known[:] = map(list, change.evidence.clicked_by)

    def changes(
        self, searcher: Searcher, events: Sequence[Event], described: Mapping[ItemId, Mapping[str, Any]]
    ) -> list[Change]:
        """The puts that follow from events. Ids must be canonical. described: titles and attributes by item.

        An event that comes again changes nothing, because its history is known.
        """
        due: dict[ItemId, list[list[ItemId]]] = {}
        for event in events:
            item = event.item_id
            if not self._may_be_put(searcher, item):
                continue
            first = item not in self._histories
            histories = self._histories.setdefault(item, [])
            history = [other for other in (event.history or ())[-LONGEST:] if other != item]
            if history and history not in histories and len(histories) < ENOUGH:
                histories.append(history)
                if len(histories) & (len(histories) - 1) == 0:
                    due[item] = histories
            elif first:
                due[item] = histories  # nothing is known of it but that it exists
        while len(self._histories) > MOST:
            del self._histories[next(iter(self._histories))]
        schema = searcher.descriptions.schema
        evidence = [
            Evidence(list(histories), [], schema.normal(described.get(item, {}))) for item, histories in due.items()
        ]
        now = time.time_ns() // 10**6
        return [
            Put(item, placement, known, _expiry(searcher, item), now)
            for item, placement, known in zip(due, searcher.place(evidence), evidence, strict=True)
        ]

    def _may_be_put(self, searcher: Searcher, item: ItemId) -> bool:
        """Whether the item is not in the catalogue, or is live and came after the training; not if it was deleted."""
        if item in self._deleted:
            return False
        known = searcher.vocabulary.indices([item])
        return not len(known) or (int(searcher.structure.index.since(known)[0]) > 0 and searcher.is_live(item))


def _expiry(searcher: Searcher, item: ItemId) -> int | None:
    """When the item expires, in ms since 1970; a put would otherwise take that away."""
    known = searcher.vocabulary.indices([item])
    end = int(searcher.structure.index.end_of(known)[0]) if len(known) else NO_END
    return 1000 * end if end < NO_END else None
