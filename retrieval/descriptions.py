"""What is known of each item besides where it is found: its attributes, its title, and since when it is there.

The items of a version have this in its parts; what records of the log changed is kept beside it, by item id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index_store.version import npy
from retrieval.attributes import TITLE, Attribute, Attributes, AttributeSchema
from retrieval.changes import Change, Delete, Patch, Put
from retrieval.query import ItemId
from retrieval.vocabulary import Vocabulary


class Description(NamedTuple):
    """values: the attributes, `title` among them. since: when the item was put, in ms; 0 if it was trained with."""

    values: Mapping[str, Any]
    since: int


class Descriptions:
    """The descriptions of all items that a version and its overlay have."""

    def __init__(
        self,
        attributes: Attributes,
        since: NDArray[np.int64],
        ends: NDArray[np.uint32],
        vocabulary: Vocabulary,
    ) -> None:
        """attributes, since, ends: of the V items of the version; see `index_store.version`."""
        self.schema = attributes.schema
        self._attributes, self._since, self._ends, self._vocabulary = attributes, since, ends, vocabulary
        self._changed: dict[ItemId, Description | None] = {}  # None: deleted

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply changes, in order. A value of None takes an attribute away."""
        for change in changes:
            item = self._vocabulary.canonical(change.item_id)
            if item is None:
                continue
            if isinstance(change, Delete):
                self._changed[item] = None
            elif isinstance(change, Put):
                found = self.of(item)
                if found is None or change.evidence.attributes:
                    known = found or Description({}, change.since)
                    self._changed[item] = Description(_merged(known.values, change.evidence.attributes), known.since)
            elif isinstance(change, Patch) and change.attributes and (found := self.of(item)):
                self._changed[item] = Description(_merged(found.values, change.attributes), found.since)

    def of(self, item: ItemId) -> Description | None:
        """The description of a canonical id; None if no item has it, or if it was deleted."""
        if item in self._changed:
            return self._changed[item]
        place = self._vocabulary.version_index(item)
        if place is None or self._ends[place] == 0:
            return None
        title = self._attributes.title(place)
        values = self._attributes.values(place)
        return Description(values | ({TITLE: title} if title is not None else {}), int(self._since[place]))

    def folded_parts(self, names: Sequence[ItemId]) -> dict[str, bytes]:
        """The parts of a version with these items, ascending."""
        old = np.array([-1 if (i := self._vocabulary.version_index(name)) is None else i for name in names])
        table = self._attributes
        known = old >= 0
        new = {row: found for row, name in enumerate(names) if (found := self._changed.get(name))}
        attributes = _with_new_categories(table.schema, [found.values for found in new.values()])
        schema = replace(table.schema, attributes=attributes)
        codes, numbers = _encoded(schema, new)
        width = max(table.codes.shape[1], max(map(len, codes.values()), default=0))
        all_codes = np.full((len(names), width), -1, np.int32)
        all_codes[known, : table.codes.shape[1]] = _shifted(table, schema)[old[known]]
        all_numbers = np.full((len(names), table.numbers.shape[1]), np.nan)
        all_numbers[known] = table.numbers[old[known]]
        times = np.zeros(len(names), np.int64)
        times[known] = self._since[old[known]]
        for row, found in new.items():
            all_codes[row] = -1
            all_codes[row, : len(codes[row])] = codes[row]
            all_numbers[row], times[row] = numbers[row], found.since
        titles = [new[row].values.get(TITLE) if row in new else None for row in range(len(names))]
        folded = Attributes.make(schema, all_codes, all_numbers, titles).with_titles_of(table, old, set(new))
        return folded.parts() | {"item_since.npy": npy(times)}


def _merged(known: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**known, **new}.items() if value is not None}


def _with_new_categories(schema: AttributeSchema, described: Sequence[Mapping[str, Any]]) -> tuple[Attribute, ...]:
    """The attributes with the categories that only new items have, at the end of the known ones."""
    made = []
    for attribute in schema.attributes:
        found: dict[str, None] = {}
        for values in described if not attribute.is_number else ():
            parsed = attribute.parse(values.get(attribute.name))
            found |= dict.fromkeys(parsed if isinstance(parsed, list) else [])
        more = tuple(text for text in found if text not in attribute.values)
        made.append(replace(attribute, values=attribute.values + more))
    return tuple(made)


def _encoded(
    schema: AttributeSchema, new: Mapping[int, Description]
) -> tuple[dict[int, list[int]], dict[int, list[float]]]:
    """The features of the attributes of each row, and its numbers."""
    attributes_only = replace(schema, words=())
    codes = {row: attributes_only.features(found.values) for row, found in new.items()}
    numbers: dict[int, list[float]] = {}
    for row, found in new.items():
        parsed = [each.parse(found.values.get(each.name)) for each in schema.attributes if each.is_number]
        numbers[row] = [number if isinstance(number, float) else np.nan for number in parsed]
    return codes, numbers


def _shifted(table: Attributes, schema: AttributeSchema) -> NDArray[np.int32]:
    """The codes of the version's items by a schema that has more categories."""
    before, after = table.schema.starts, schema.starts
    if before == after:
        return table.codes
    shift = np.concatenate(
        [np.full(end - start, new - start) for start, end, new in zip(before, before[1:], after, strict=False)]
    )
    return np.where(table.codes < 0, -1, table.codes + shift[np.maximum(table.codes, 0)]).astype(np.int32)
