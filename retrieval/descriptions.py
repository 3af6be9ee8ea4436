"""The attributes and the titles of all items that a version and its overlay have.

Those of the version's items are in its parts; what records of the log changed is kept beside them, by item id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.version import npy
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

    def folded_parts(self, features: NDArray[np.float16]) -> dict[str, bytes]:
        """The parts of a version with all items that have an id, ascending, for `fold.folded_parts`.

        features: the version's feature_vectors.npy. Categories that only new items have add nothing to a vector.
        """
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
        vectors = np.zeros((schema.size + 1, features.shape[1]), np.float16)
        vectors[_moved(table.schema, schema)] = features[: table.schema.starts[-1]]
        vectors[schema.starts[-1] :] = features[table.schema.starts[-1] :]
        parts = table.folded(schema, all_codes, all_numbers, old, titles).parts()
        return parts | {"feature_vectors.npy": npy(vectors)}


def _with_new_categories(schema: AttributeSchema, described: Sequence[Mapping[str, Any]]) -> tuple[Attribute, ...]:
    """The attributes with the categories that only new items have, at the end of the known ones."""
    made = []
    for attribute in schema.attributes:
        found: dict[str, None] = {}
        for values in described if not attribute.is_number else ():
            parsed = attribute.parse(values.get(attribute.name))
            found |= dict.fromkeys(parsed if isinstance(parsed, list) else [])
        known = set(attribute.values)
        more = tuple(text for text in found if text not in known)
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
    if table.schema.starts == schema.starts:
        return table.codes
    return np.where(table.codes < 0, -1, _moved(table.schema, schema)[np.maximum(table.codes, 0)]).astype(np.int32)


def _moved(before: AttributeSchema, after: AttributeSchema) -> NDArray[np.int64]:
    """The number that each feature of the attributes has in a schema with more categories."""
    starts = zip(before.starts, before.starts[1:], after.starts, strict=False)
    return np.concatenate([np.empty(0, np.int64), *(new + np.arange(end - start) for start, end, new in starts)])
