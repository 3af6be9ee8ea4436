"""Puts for items that are clicked and not in the catalogue yet, by the histories of those who clicked them.

With each doubling of its clicks a new item is put again, because more histories place it better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retrieval.changes import Change, Evidence, Put
from retrieval.events import Event
from retrieval.query import ItemId
from retrieval.searcher import Searcher

ENOUGH = 32  # clicks, after which a new item is not put again
LONGEST = 100  # items of a history that is kept


class NewItems:
    """The clicks of items that this process has put."""

    def __init__(self, histories: Mapping[ItemId, list[list[ItemId]]] | None = None) -> None:
        self.histories: dict[ItemId, list[list[ItemId]]] = dict(histories or {})

    def changes(
        self, searcher: Searcher, events: Sequence[Event], described: Mapping[ItemId, Mapping[str, Any]]
    ) -> list[Change]:
        """The puts that follow from events. Ids must be canonical. described: attributes by item."""
        due = {}
        for event in events:
            item = event.item_id
            if item not in self.histories:
                if len(searcher.vocabulary.indices([item])):
                    continue  # in the catalogue, or deleted from it: what was deleted stays deleted
                self.histories[item] = []
            histories = self.histories[item]
            histories.append(list(event.history[-LONGEST:]))
            if len(histories) & (len(histories) - 1) == 0:
                due[item] = histories
            if len(histories) >= ENOUGH:
                del self.histories[item]
        due = {item: histories for item, histories in due.items() if self._may_be_put(searcher, item)}
        schema = searcher.descriptions.schema
        evidence = [
            Evidence([history for history in histories if history], [], schema.normal(described.get(item, {})))
            for item, histories in due.items()
        ]
        return [
            Put(item, placement, each, None, 0)
            for item, each, placement in zip(due, evidence, searcher.place(evidence), strict=True)
        ]

    @staticmethod
    def _may_be_put(searcher: Searcher, item: ItemId) -> bool:
        return not len(searcher.vocabulary.indices([item])) or searcher.is_live(item)
