"""The attributes and the titles of all items that a version and its overlay have.

Those of the version's items are in its parts; what records of the log changed is kept beside them, by item id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.attributes import TITLE, Attribute, Attributes, AttributeSchema
from retrieval.changes import Change, Delete, Patch, Put
from retrieval.query import ItemId
from retrieval.vocabulary import Vocabulary


class Descriptions:
    """The descriptions: attributes by name, `title` among them."""

    def __init__(self, attributes: Attributes, vocabulary: Vocabulary) -> None:
        """attributes: of the V items of the version."""
        self.schema = attributes.schema
        self._attributes, self._vocabulary = attributes, vocabulary
        self._changed: dict[ItemId, Mapping[str, Any]] = {}

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply changes, in order. A value of None takes an attribute away; a delete takes all."""
        for change in changes:
            item = self._vocabulary.canonical(change.item_id)
            if item is None:
                continue
            if isinstance(change, Delete):
                self._changed.pop(item, None)
                if self._vocabulary.version_index(item) is not None:
                    self._changed[item] = {}
                continue
            new = change.evidence.attributes if isinstance(change, Put) else {}
            new = change.attributes if isinstance(change, Patch) else new
            if new:
                joined = {**self.of(item), **new}
                self._changed[item] = {name: value for name, value in joined.items() if value is not None}

    def of(self, item: ItemId) -> Mapping[str, Any]:
        """The description of a canonical id."""
        if item in self._changed:
            return self._changed[item]
        place = self._vocabulary.version_index(item)
        if place is None:
            return {}
        title = self._attributes.title(place)
        return self._attributes.values(place) | ({TITLE: title} if title is not None else {})

    def folded_parts(self) -> dict[str, bytes]:
        """The parts of a version with all items that have an id, ascending, for `fold.folded_parts`."""
        table = self._attributes
        old = self._vocabulary.version_rows()
        new = self._vocabulary.ascending_rows(self._changed)
        attributes = _with_new_categories(table.schema, list(new.values()))
        schema = replace(table.schema, attributes=attributes)
        codes, numbers = _encoded(schema, new)
        known, width = table.codes.shape[1], max(map(len, codes.values()), default=0)
        all_codes = np.full((len(old), max(known, width)), -1, np.int32)
        all_codes[old >= 0, :known] = _shifted(table, schema)[old[old >= 0]]
        all_numbers = np.full((len(old), table.numbers.shape[1]), np.nan)
        all_numbers[old >= 0] = table.numbers[old[old >= 0]]
        for row in new:
            all_codes[row] = -1
            all_codes[row, : len(codes[row])] = codes[row]
            all_numbers[row] = numbers[row]
        titles = {row: values.get(TITLE) for row, values in new.items()}
        return table.folded(schema, all_codes, all_numbers, old, titles).parts()


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
    schema: AttributeSchema, new: Mapping[int, Mapping[str, Any]]
) -> tuple[dict[int, list[int]], dict[int, list[float]]]:
    """The features of the attributes of each row, and its numbers."""
    attributes_only = replace(schema, words=())
    codes = {row: attributes_only.features(found) for row, found in new.items()}
    numbers: dict[int, list[float]] = {}
    for row, found in new.items():
        parsed = [each.parse(found.get(each.name)) for each in schema.attributes if each.is_number]
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
