"""Read the items' attributes. Each item gets the codes of its values, from which the encoder learns item vectors.

An attribute is a number, a time, a category, or a list of categories. Numbers and times are cut into BUCKETS ranges
with about equally many items, so each value of an attribute is one of a few texts, such as "genre=Comedy".
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.context import MAX_CATEGORIES, as_text
from trainer.data.columns import Indices
from trainer.data.context import are_numbers, read_numbers
from trainer.data.files import Table
from trainer.data.plain import plain
from trainer.errors import DataError

BUCKETS = 16  # ranges of a number or a time
MAX_VALUES = 32  # values of an item that are used
SEPARATOR = "|"  # between the categories of a list that is written as text, as in MovieLens' genres


@dataclass(frozen=True)
class ItemAttributes:
    """The values of V items' attributes.

    codes: int32 (V, S), indices into `values`, ascending, then -1. values: such as "genre=Comedy" and "price=1 to 2.5".
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
    owners, codes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    values: list[str] = []
    for spec in specs:
        name, _, kind = spec.partition(":")
        label = f"{catalogue.file}: column {name}"
        column = catalogue.column(name).take(pa.array(rows, mask=rows < 0))
        read = _read(column, kind, label, notes, is_text=name in catalogue.texts)
        if not len(read.rows):
            raise DataError(f"{label}: no item of the catalogue has a value")
        owners.append(read.rows)
        codes.append(read.codes + len(values))
        values += [f"{name}={value}" for value in read.names]
    padded, cut = _padded(np.concatenate(owners), np.concatenate(codes), len(rows))
    if cut:
        notes.append(f"{cut} items have more than {MAX_VALUES} values of attributes; {MAX_VALUES} of each are used")
    return ItemAttributes(padded, tuple(values), tuple(notes))


def _read(column: pa.ChunkedArray, kind: str, label: str, notes: list[str], *, is_text: bool) -> _Values:
    if pa.types.is_temporal(column.type) and not kind:
        return _ranges(column.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.float64(), safe=False), as_times=True)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return _categories(column, label)
    column = plain(column, label)
    if kind == "number" or (kind == "" and are_numbers(column, label, notes, is_text=is_text)):
        return _ranges(read_numbers(column, label))
    if pa.types.is_string(column.type) and pc.any(pc.match_substring(column, SEPARATOR)).as_py():
        column = pc.split_pattern(column, SEPARATOR)
    return _categories(column, label)


def _ranges(column: pa.ChunkedArray | NDArray[np.float64], *, as_times: bool = False) -> _Values:
    """The range of each finite number. The ranges have about equally many items; equal numbers are in one range."""
    numbers = np.asarray(column if isinstance(column, np.ndarray) else column.to_numpy())
    rows = np.flatnonzero(np.isfinite(numbers))
    known = numbers[rows]
    if not len(known):
        return _Values(rows, rows, [])
    inner = np.unique(np.quantile(known, np.linspace(0, 1, BUCKETS + 1)[1:-1], method="higher"))
    inner = inner[inner > known.min()]
    edges = [known.min(), *inner, known.max()]
    texts = (
        [str(np.datetime64(int(edge) // 10**6, "s")) for edge in edges] if as_times else [f"{edge:g}" for edge in edges]
    )
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
    distinct = ["" if value is None else as_text(value) for value in encoded.dictionary.to_pylist()]
    names = sorted(set(distinct) - {"", "nan"})
    if len(names) > MAX_CATEGORIES:
        raise DataError(f"{label}: {len(names)} different values; at most {MAX_CATEGORIES} are learned")
    place = {name: code for code, name in enumerate(names)}
    codes = np.array([place.get(text, -1) for text in distinct], np.int64)[encoded.indices.to_numpy()]
    return _Values(rows[codes >= 0], codes[codes >= 0], names)


def _padded(owners: Indices, codes: Indices, items: int) -> tuple[NDArray[np.int32], int]:
    """The distinct codes of each item, int32 (V, S), padded with -1; and how many items have more than MAX_VALUES."""
    pairs = np.unique(np.stack([owners, codes]), axis=1)
    owners, codes = pairs
    place = np.arange(len(owners)) - np.searchsorted(owners, owners)
    kept = place < MAX_VALUES
    padded = np.full((items, int(place[kept].max(initial=-1)) + 1), -1, np.int32)
    padded[owners[kept], place[kept]] = codes[kept]
    return padded, len(np.unique(owners[~kept]))
