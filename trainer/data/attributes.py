"""Read the items' attributes. Each item gets the codes of its values, which say where an item without clicks belongs.

An attribute is a number, a time, a category, or a list of categories. Numbers and times are cut into BUCKETS ranges
with about equally many items, so each value of an attribute is one of a few texts, such as "genre=Comedy".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.context import MAX_CATEGORIES, as_text, is_absent
from retrieval.query import Value
from trainer.data.columns import Indices
from trainer.data.context import are_numbers, read_numbers
from trainer.data.files import Table
from trainer.data.plain import plain
from trainer.errors import DataError
from trainer.progress import counted

BUCKETS = 16  # ranges of a number or a time
MAX_VALUES = 32  # values of a list that are used
SEPARATOR = "|"  # between the categories of a list that is written as text, as in MovieLens' genres


@dataclass(frozen=True)
class ItemAttributes:
    """The values of V items' attributes.

    codes: int32 (V, S), indices into `values`, or -1. values: such as "genre=Comedy" and "price=1 to 2.5".
    """

    codes: NDArray[np.int32]
    values: tuple[str, ...]
    notes: tuple[str, ...] = ()  # messages to print about how the columns were read


@dataclass(frozen=True)
class _Values:
    """The values of one attribute: the row of each value, int64 (N,), its index into `names`, and the names."""

    rows: Indices
    codes: Indices
    names: list[str]


def read_attributes(specs: Sequence[str], catalogue: Table, rows: Indices) -> ItemAttributes:
    """Read the columns that `specs` names. rows: (V,), the catalogue's row of each item, or -1.

    The kind follows from the column's type; a text with SEPARATOR is a list. A spec that ends in ":category" or
    ":number" sets the kind. Raises DataError for a missing column, or one with too many values.
    """
    notes: list[str] = []
    blocks: list[Indices] = []
    values: list[str] = []
    for spec in specs:
        name, _, kind = spec.partition(":")
        label = f"{catalogue.file}: column {name}"
        read = _read(catalogue.column(name), rows, kind, label, notes, is_text=name in catalogue.texts)
        if not len(read.rows):
            raise DataError(f"{label}: no item of the catalogue has a value")
        block, cut = _padded(read, len(rows))
        if cut:
            notes.append(
                f"{label}: {counted(cut, 'item')} with more than {MAX_VALUES} values; the most frequent are used"
            )
        blocks.append(np.where(block < 0, -1, block + len(values)))
        values += [f"{name}={value}" for value in read.names]
    return ItemAttributes(np.concatenate(blocks, axis=1).astype(np.int32), tuple(values), tuple(notes))


def _read(column: pa.ChunkedArray, rows: Indices, kind: str, label: str, notes: list[str], *, is_text: bool) -> _Values:
    """The values of the items, from a column of the catalogue. rows: see `read_attributes`."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    of_items = pa.array(rows, mask=rows < 0)
    is_time = pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)
    if is_time and not kind:
        times = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return _ranges(np.asarray(times.take(of_items).cast(pa.float64(), safe=False).to_numpy()), as_times=True)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        if kind == "number":
            raise DataError(f"{label}: expected numbers, found lists; name it without :number")
        return _categories(column.take(of_items), label)
    column = plain(column, label).take(of_items)
    if kind == "number" or (kind == "" and are_numbers(column, label, notes, is_text=is_text)):
        return _ranges(read_numbers(column, label))
    if kind == "" and pa.types.is_string(column.type) and pc.any(pc.match_substring(column, SEPARATOR)).as_py():
        column = pc.split_pattern(column, SEPARATOR)
    return _categories(column, label)


def _ranges(numbers: NDArray[np.float64], *, as_times: bool = False) -> _Values:
    """The range of each finite number. The ranges have about equally many items; equal numbers are in one range."""
    rows = np.flatnonzero(np.isfinite(numbers))
    known = numbers[rows]
    if not len(known):
        return _Values(rows, rows, [])
    inner = np.unique(np.quantile(known, np.linspace(0, 1, BUCKETS + 1)[1:-1], method="higher"))
    inner = inner[inner > known.min()]
    edges = [known.min(), *inner, known.max()]
    texts = [str(np.datetime64(int(edge) // 10**6, "s")) if as_times else f"{edge:g}" for edge in edges]
    names = [f"{first} to {last}" for first, last in itertools.pairwise(texts)]
    return _Values(rows, np.searchsorted(inner, known, side="right"), names)


def _categories(column: pa.ChunkedArray, label: str) -> _Values:
    """The categories of each row. column: one category, or a list of categories."""
    rows = np.arange(len(column))
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
    return _Values(rows, np.argsort(order)[codes], [names[code] for code in order])


def _category(value: Value) -> str:
    """The text of a category; "" if it is missing or infinite."""
    if value is None or is_absent(value) or (isinstance(value, float) and math.isinf(value)):
        return ""
    return as_text(value)


def _padded(read: _Values, items: int) -> tuple[Indices, int]:
    """The distinct codes of each item, (V, S), padded with -1; and how many items have more than MAX_VALUES."""
    pairs = np.unique(read.rows * len(read.names) + read.codes)
    owners, codes = np.divmod(pairs, len(read.names))
    place = np.arange(len(owners)) - np.searchsorted(owners, owners)
    kept = place < MAX_VALUES
    padded = np.full((items, int(place[kept].max()) + 1), -1)
    padded[owners[kept], place[kept]] = codes[kept]
    return padded, len(np.unique(owners[~kept]))
