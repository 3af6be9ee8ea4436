"""Read the items' attributes and titles. Their features say where an item without clicks belongs.

An attribute is a number, a time, a category, or a list of categories. Numbers and times are cut into BUCKETS ranges
with about equally many items, so each value of an attribute is one of a few features. A title has a feature for each of
its words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse
from numpy.typing import NDArray

from retrieval.attributes import MAX_VALUES, TITLE, Attribute, Attributes, AttributeSchema, Kind, words_of
from retrieval.context import MAX_CATEGORIES, as_text, is_absent
from retrieval.query import Value
from trainer.data.columns import Indices
from trainer.data.context import are_numbers, read_numbers
from trainer.data.files import Table
from trainer.data.plain import plain
from trainer.errors import DataError
from trainer.progress import counted

BUCKETS = 16  # ranges of a number or a time
WORDS = 20_000  # most frequent words of titles that are features
SEPARATOR = "|"  # between the categories of a list that is written as text, as in MovieLens' genres


@dataclass(frozen=True)
class ItemAttributes:
    """The attributes of V items. notes: messages to print about how the columns were read."""

    table: Attributes
    notes: tuple[str, ...] = ()

    def features(self) -> scipy.sparse.csr_array:
        """A sparse matrix, items x features: 1 over the root of the number of the item's features, where it has one."""
        codes, schema = self.table.codes, self.table.schema
        items, place = np.nonzero(codes >= 0)
        found = [codes[items, place]]
        if schema.words:
            words = [schema.word_features(self.table.title(item)) for item in range(len(codes))]
            items = np.concatenate([items, np.repeat(np.arange(len(codes)), list(map(len, words)))])
            found.append(np.array([word for each in words for word in each], np.int32))
        columns = np.concatenate(found)
        entries = 1 / np.sqrt(np.bincount(items, minlength=len(codes))[items])
        return scipy.sparse.csr_array((entries, (items, columns)), shape=(len(codes), schema.size))


@dataclass(frozen=True)
class _Values:
    """The values of one attribute: the row of each value, int64 (N,), and its feature.

    numbers: of a number or a time, that of each item, (V,).
    """

    attribute: Attribute
    rows: Indices
    codes: Indices
    numbers: NDArray[np.float64] | None = None


def read_attributes(specs: Sequence[str], catalogue: Table, rows: Indices) -> ItemAttributes:
    """Read the columns that `specs` names, and the titles. rows: (V,), the catalogue's row of each item, or -1.

    The kind follows from the column's type; a text with SEPARATOR is a list. A spec that ends in ":category" or
    ":number" sets the kind. Raises DataError for a missing column, or one with too many values.
    """
    notes: list[str] = []
    blocks: list[Indices] = [np.empty((len(rows), 0), np.int64)]
    numbers: list[NDArray[np.float64]] = [np.empty((0, len(rows)))]
    attributes: list[Attribute] = []
    size = 0
    for spec in specs:
        name, _, kind = spec.partition(":")
        label = f"{catalogue.file}: column {name}"
        read = _read(name, catalogue.column(name), rows, kind, label, notes, is_text=name in catalogue.texts)
        if not len(read.rows):
            raise DataError(f"{label}: no item of the catalogue has a value")
        block, cut = _padded(read, len(rows))
        if cut:
            notes.append(
                f"{label}: {counted(cut, 'item')} with more than {MAX_VALUES} values; the most frequent are used"
            )
        blocks.append(np.where(block < 0, -1, block + size))
        size += read.attribute.size
        attributes.append(read.attribute)
        numbers += [] if read.numbers is None else [read.numbers[None]]
    titles = _titles(catalogue, rows, notes)
    schema = AttributeSchema(tuple(attributes), _frequent_words(titles))
    codes = np.concatenate(blocks, axis=1).astype(np.int32)
    # The codes of an item come before its -1.
    codes = np.take_along_axis(codes, np.argsort(codes < 0, axis=1, kind="stable"), axis=1)
    codes = codes[:, : int((codes >= 0).sum(axis=1).max(initial=0))]
    return ItemAttributes(Attributes.make(schema, codes, np.concatenate(numbers).T, titles), tuple(notes))


def _titles(catalogue: Table, rows: Indices, notes: list[str]) -> list[str | None]:
    """The title of each item, if the catalogue has titles."""
    if TITLE not in catalogue.names:
        return [None] * len(rows)
    try:
        column = plain(catalogue.column(TITLE), f"{catalogue.file}: column {TITLE}").cast(pa.string())
    except DataError as error:
        notes.append(f"titles are not read: {error}")
        return [None] * len(rows)
    titles: list[str | None] = column.take(pa.array(rows, mask=rows < 0)).to_pylist()
    return titles


def _frequent_words(titles: Sequence[str | None]) -> tuple[str, ...]:
    """The words of two titles or more, ascending; at most WORDS, the most frequent ones."""
    counts = Counter(word for title in titles for word in words_of(title))
    return tuple(sorted(word for word, count in counts.most_common(WORDS) if count > 1))


def _read(
    name: str, column: pa.ChunkedArray, rows: Indices, kind: str, label: str, notes: list[str], *, is_text: bool
) -> _Values:
    """The values of the items, from a column of the catalogue. rows: see `read_attributes`."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    of_items = pa.array(rows, mask=rows < 0)
    is_time = pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)
    if is_time and not kind:
        times = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        seconds = np.asarray(times.take(of_items).cast(pa.float64(), safe=False).to_numpy()) / 1000
        return _ranges(Attribute(name, "time"), np.floor(seconds))
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        if kind == "number":
            raise DataError(f"{label}: expected numbers, found lists; name it without :number")
        return _categories(name, column.take(of_items), label)
    column = plain(column, label).take(of_items)
    if kind == "number" or (kind == "" and are_numbers(column, label, notes, is_text=is_text)):
        return _ranges(Attribute(name, "number"), read_numbers(column, label))
    if kind == "" and pa.types.is_string(column.type) and pc.any(pc.match_substring(column, SEPARATOR)).as_py():
        column = pc.split_pattern(column, SEPARATOR)
    return _categories(name, column, label)


def _ranges(attribute: Attribute, numbers: NDArray[np.float64]) -> _Values:
    """The range of each finite number. The ranges have about equally many items; equal numbers are in one range."""
    rows = np.flatnonzero(np.isfinite(numbers))
    known = numbers[rows]
    if not len(known):
        return _Values(attribute, rows, rows, numbers)
    inner = np.unique(np.quantile(known, np.linspace(0, 1, BUCKETS + 1)[1:-1], method="higher"))
    inner = inner[inner > known.min()]
    finite = np.where(np.isfinite(numbers), numbers, np.nan)
    ranges = np.searchsorted(inner, known, side="right")
    return _Values(replace(attribute, edges=tuple(inner.tolist())), rows, ranges, finite)


def _categories(name: str, column: pa.ChunkedArray, label: str) -> _Values:
    """The categories of each row. column: one category, or a list of categories."""
    rows = np.arange(len(column))
    kind: Kind = "categories" if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) else "category"
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        whole = column.combine_chunks()
        rows = pc.list_parent_indices(whole).to_numpy()
        column = plain(pa.chunked_array([pc.list_flatten(whole)]), label)
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    distinct = [_category(value) for value in encoded.dictionary.to_pylist()]
    names = sorted(set(distinct) - {""})
    if len(names) > MAX_CATEGORIES:
        raise DataError(f"{label}: {len(names)} different values; at most {MAX_CATEGORIES} are learned")
    place = {name: code for code, name in enumerate(names)}
    codes = np.array([place.get(text, -1) for text in distinct], np.int64)[encoded.indices.to_numpy()]
    rows, codes = rows[codes >= 0], codes[codes >= 0]
    # The most frequent values come first, so that they stay if a list is cut.
    order = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable")
    return _Values(Attribute(name, kind, tuple(names[code] for code in order)), rows, np.argsort(order)[codes])


def _category(value: Value) -> str:
    """The text of a category; "" if it is missing or infinite."""
    if value is None or is_absent(value) or (isinstance(value, float) and math.isinf(value)):
        return ""
    return as_text(value)


def _padded(read: _Values, items: int) -> tuple[Indices, int]:
    """The distinct codes of each item, (V, S), padded with -1; and how many items have more than MAX_VALUES."""
    pairs = np.unique(read.rows * read.attribute.size + read.codes)
    owners, codes = np.divmod(pairs, read.attribute.size)
    place = np.arange(len(owners)) - np.searchsorted(owners, owners)
    kept = place < MAX_VALUES
    padded = np.full((items, int(place[kept].max()) + 1), -1)
    padded[owners[kept], place[kept]] = codes[kept]
    return padded, len(np.unique(owners[~kept]))
