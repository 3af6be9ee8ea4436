"""Columns of ids and numbers: which type they have, over all files together, and the first value that does not fit."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.context import NUMBER
from retrieval.vocabulary import INTEGER, MAX_ID_LENGTH
from trainer.errors import DataError
from trainer.files import Table

#: int64 (V,), or object (V,) of str. Ascending.
Ids = NDArray[np.int64] | NDArray[np.object_]
Index = NDArray[np.int64]
IdType = Literal["auto", "integer", "string"]

UUID_BYTES = 16
_INTEGER = f"^{INTEGER}$"
SAFE = 2**53  # integers beyond it are rounded by whoever reads JSON's numbers as floats: JavaScript, jq


@dataclass(frozen=True)
class Encoded:
    """The ids of some columns together.

    rows: of each column, int64 indices into `ids`. said: what a user should know of how they were read.
    """

    rows: list[Index]
    ids: Ids
    said: list[str]


def required(table: Table, name: str) -> pa.ChunkedArray:
    """A column without missing values. Raises DataError naming the first row that has none."""
    column = table.column(name)
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{table.file}: column {name}, row {row + 1}: no value; drop or fill such rows")
    return column


def plain(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:  # noqa: PLR0911 -- a table of types
    """The column as int64, float64, bool or string, where its type has one such form; dates and times as ISO text.

    Raises DataError for other types: lists, structs, bytes that are no text, numbers beyond 64 bits.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_int64(kind) or pa.types.is_float64(kind):
        return column
    try:
        if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):
            return column.cast(pa.int64())
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return column.cast(pa.float64(), safe=False)
        if isinstance(kind, pa.UuidType) or (pa.types.is_fixed_size_binary(kind) and kind.byte_width == UUID_BYTES):
            return _uuids(column)
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
            return column.cast(pa.binary()).cast(pa.string())  # text without its mark, as Hive and Impala write it
        if pa.types.is_temporal(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return column.cast(pa.string())
    except pa.ArrowInvalid:
        reason = "bytes that are not UTF-8 text" if "binary" in str(kind) else "a number does not fit in 64 bits"
        raise DataError(f"{what}: {reason}; cast the column to text") from None
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    raise DataError(f"{what}: expected numbers or strings, found {kind}; cast the column to text")


def _uuids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """UUIDs as their text."""
    storage = column.cast(pa.binary(UUID_BYTES)).combine_chunks().dictionary_encode()
    texts = [None if value is None else str(uuid.UUID(bytes=value)) for value in storage.dictionary.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string()).take(storage.indices)])


def encode_ids(tables: Sequence[Table], name: str, wanted: IdType) -> Encoded:
    """The ids of column `name` of all `tables`, as integers or as strings, the same for all of them.

    auto: integers if every id of every table is one, as Parquet's type says, or in text as it is written (7, and 7.0
    where a whole column is written so, but not 007). Blanks around an id are no part of it. Raises DataError naming
    file, row and value.
    """
    said: list[str] = []
    columns = [_IdColumn.read(table, name, said) for table in tables]
    rows = [column.rows for column in columns]
    strings = [column for column in columns if not pa.types.is_integer(column.values.type)]
    if strings and wanted == "integer":
        raise DataError(f"{strings[0].first_string()}; expected integers (--set {name}=integer)")
    if strings and len(strings) < len(columns):
        said.append(f"{name}: taken as strings in all files: {strings[0].first_string()}")
    if strings or wanted == "string":
        texts = pa.concat_arrays([column.values.cast(pa.large_string()) for column in columns]).dictionary_encode()
        found = np.array(texts.dictionary.to_pylist(), dtype=object)
        order = np.argsort(found)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        starts = np.cumsum([len(column.values) for column in columns])[:-1]
        places = np.split(rank[texts.indices.to_numpy(zero_copy_only=False)], starts)
        return Encoded([place[row] for place, row in zip(places, rows, strict=True)], found[order], said)
    numbers = [column.values.to_numpy() for column in columns]
    ids = np.unique(np.concatenate(numbers))
    if max(-int(ids[0]), int(ids[-1])) > SAFE:
        said.append(f"{name}: integers beyond 2^53, which JavaScript rounds; --set {name}=string makes them strings")
    return Encoded([ids.searchsorted(values)[row] for values, row in zip(numbers, rows, strict=True)], ids, said)


@dataclass(frozen=True)
class _IdColumn:
    """A column's different ids, int64 or large_string, and the place of each row's among them."""

    table: Table
    name: str
    values: pa.Array
    rows: Index

    @classmethod
    def read(cls, table: Table, name: str, said: list[str]) -> _IdColumn:
        what = f"{table.file}: column {name}"
        column = plain(required(table, name), what)
        if pa.types.is_string(column.type):
            column = column.cast(pa.large_string())  # all of them at once may be longer than 2 GiB
        encoded = column.combine_chunks().dictionary_encode()
        raw = cls(table, name, encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64))
        return dataclasses.replace(raw, values=raw._checked(what, said))

    def _checked(self, what: str, said: list[str]) -> pa.Array:
        values = self.values
        if pa.types.is_boolean(values.type):
            raise DataError(f"{what}: expected integers or strings, found bool")
        if pa.types.is_integer(values.type):
            return values
        if pa.types.is_floating(values.type):
            whole = pc.and_(pc.equal(pc.floor(values), values), pc.less_equal(pc.abs(values), float(SAFE)))
            if bad := self._first(pc.invert(whole)):
                raise DataError(f"{what}, {bad}: expected integers or strings; cast the column to BIGINT or VARCHAR")
            said.append(f"{what}: numbers with a decimal point, read as integers")
            return values.cast(pa.int64())
        bare = pc.utf8_trim_whitespace(values)
        if padded := pc.sum(pc.not_equal(bare, values)).as_py():
            said.append(f"{what}: {padded} ids with blanks around them, which are taken off")
        lengths = pc.utf8_length(bare)
        if bad := self._first(pc.or_(pc.less(lengths, 1), pc.greater(lengths, MAX_ID_LENGTH))):
            raise DataError(f"{what}, {bad}: expected 1 to {MAX_ID_LENGTH} characters")
        if self.name not in self.table.texts or not pc.all(pc.match_substring_regex(bare, _INTEGER)).as_py():
            return bare
        without = pc.replace_substring_regex(bare, r"\.0+$", "")
        if pc.any(pc.not_equal(without, bare)).as_py():
            said.append(f"{what}: numbers with a decimal point, read as integers")
        try:
            return without.cast(pa.int64())
        except pa.ArrowInvalid:
            said.append(f"{what}: numbers that do not fit in 64 bits, read as strings")
            return without

    def _first(self, chosen: pa.BooleanArray) -> str:
        """The first row whose id is among the chosen, and the id; empty if none is."""
        mask = chosen.to_numpy(zero_copy_only=False)
        if not mask.any():
            return ""
        row = int(np.argmax(mask[self.rows]))
        return f"row {row + 1}: {str(self.values[self.rows[row]].as_py())[:60]!r}"

    def first_string(self) -> str:
        """Where the first id is that is no integer."""
        what = f"{self.table.file}: column {self.name}"
        other = self._first(pc.invert(pc.match_substring_regex(self.values, _INTEGER)))
        return f"{what}, {other} is no integer" if other else f"{what} has strings"


def numbers(table: Table, name: str) -> NDArray[np.float64]:
    """A column of finite numbers. Raises DataError naming the first row that is none."""
    column = plain(required(table, name), f"{table.file}: column {name}")
    if pa.types.is_string(column.type):
        encoded = column.combine_chunks().dictionary_encode()
        texts = pc.utf8_trim_whitespace(encoded.dictionary)
        bad = pc.invert(pc.match_substring_regex(texts, f"^{NUMBER}$")).to_numpy(zero_copy_only=False)
        rows = encoded.indices.to_numpy(zero_copy_only=False)
        if bad.any():
            row = int(np.argmax(bad[rows]))
            shown = str(encoded.dictionary[rows[row]])[:60]
            raise DataError(f"{table.file}: column {name}, row {row + 1}: expected a number like 3.5, found {shown!r}")
        return np.asarray(texts.cast(pa.float64()).to_numpy()[rows])
    values = column.cast(pa.float64(), safe=False).to_numpy()
    for row in np.flatnonzero(~np.isfinite(values))[:1]:
        raise DataError(f"{table.file}: column {name}, row {row + 1}: expected a finite number, found {values[row]}")
    return np.asarray(values)
