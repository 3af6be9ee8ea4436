"""Read columns of ids and numbers. Ids get one type for all files; errors name the first value that is not allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.context import as_number
from retrieval.query import Limits
from retrieval.vocabulary import INTEGER
from trainer.data.files import Table
from trainer.data.plain import plain
from trainer.errors import DataError

#: int64 (V,), or object (V,) of str. Ascending.
Ids = NDArray[np.int64] | NDArray[np.object_]
Indices = NDArray[np.int64]
IdType = Literal["auto", "integer", "string"]

_INTEGER = f"^{INTEGER}$"
WITH_POINT = "integers written with a decimal point are read as integers"
MAX_EXACT_INTEGER = 2**53  # programs that read JSON numbers as floats, such as JavaScript and jq, round larger ones


@dataclass(frozen=True)
class EncodedIds:
    """The ids of several columns, encoded together.

    rows: int64 indices into `ids`, one array per column. notes: messages to print about how the ids were read.
    """

    rows: list[Indices]
    ids: Ids
    notes: list[str]


def required(table: Table, name: str) -> pa.ChunkedArray:
    """A column without missing values. Raises DataError naming the first row without a value."""
    column = table.column(name)
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{table.file}: column {name}, {table.row(row)}: no value; drop or fill such rows")
    return column


def encode_ids(tables: Sequence[Table], name: str, wanted: IdType) -> EncodedIds:
    """The ids of column `name` of all `tables`, all as integers or all as strings.

    auto: integers if every id of every table is an integer, either by Parquet's type or because it is written as one (7
    or 7.0, but not 007). Blanks around an id are removed. Raises DataError naming file, row and value.
    """
    notes: list[str] = []
    columns = [_IdColumn.read(table, name, notes) for table in tables]
    strings = [column for column in columns if not column.may_be_integers(wanted)]
    if strings and wanted == "integer":
        raise DataError(f"{strings[0].first_string()}; expected integers (--set {name}=integer)")
    if wanted == "auto" and any(column.has_integers for column in columns):
        notes += [f"{name}: read as strings: {column.first_string()}" for column in strings[:1]]
    # If some table has only integers, 7.0 means 7, because pandas writes 7.0 if a column has missing values. If every
    # table has ids that are not integers, 7.0 may be a name and is not changed.
    plain_integers = len(strings) < len(columns)
    values = [column.without_fraction(notes) if plain_integers else column.values for column in columns]
    if not strings and wanted != "string":
        try:
            return _encode_integers(columns, [ids.cast(pa.int64()) for ids in values], name, notes)
        except pa.ArrowInvalid:
            notes.append(f"{name}: read as strings: an id does not fit in 64 bits")
    return _encode_strings(columns, [ids.cast(pa.large_string()) for ids in values], notes)


def _encode_integers(columns: list[_IdColumn], values: list[pa.Array], name: str, notes: list[str]) -> EncodedIds:
    numbers = [ids.to_numpy() for ids in values]
    ids = np.unique(np.concatenate(numbers))
    if max(-int(ids[0]), int(ids[-1])) > MAX_EXACT_INTEGER:
        notes.append(f"{name}: JavaScript rounds integers beyond 2^53; --set {name}=string makes them strings")
    return EncodedIds([ids.searchsorted(n)[c.rows] for n, c in zip(numbers, columns, strict=True)], ids, notes)


def _encode_strings(columns: list[_IdColumn], values: list[pa.Array], notes: list[str]) -> EncodedIds:
    encoded = pa.concat_arrays(values).dictionary_encode()
    distinct = np.array(encoded.dictionary.to_pylist(), dtype=object)
    order = np.argsort(distinct)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    starts = np.cumsum([len(ids) for ids in values])[:-1]
    ranks = np.split(rank[encoded.indices.to_numpy(zero_copy_only=False)], starts)
    return EncodedIds([r[c.rows] for r, c in zip(ranks, columns, strict=True)], distinct[order], notes)


@dataclass(frozen=True)
class _IdColumn:
    """The distinct ids of a column, int64 or large_string, and for each row the index of its id."""

    table: Table
    name: str
    values: pa.Array
    rows: Indices

    @classmethod
    def read(cls, table: Table, name: str, notes: list[str]) -> _IdColumn:
        column = plain(required(table, name), f"{table.file}: column {name}")
        if pa.types.is_string(column.type):
            column = column.cast(pa.large_string())  # all texts together may exceed 2 GiB
        encoded = column.combine_chunks().dictionary_encode()
        raw = cls(table, name, encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64))
        return dataclasses.replace(raw, values=raw._checked(notes))

    @property
    def _label(self) -> str:
        return f"{self.table.file}: column {self.name}"

    def _checked(self, notes: list[str]) -> pa.Array:
        """The values without surrounding blanks, and with floats converted to integers."""
        values = self.values
        if pa.types.is_boolean(values.type):
            raise DataError(f"{self._label}: expected integers or strings, found bool")
        if pa.types.is_integer(values.type):
            return values
        if pa.types.is_floating(values.type):
            whole = pc.and_(pc.equal(pc.floor(values), values), pc.less_equal(pc.abs(values), float(MAX_EXACT_INTEGER)))
            if bad := self._first(pc.invert(whole)):
                raise DataError(
                    f"{self._label}, {bad}: expected integers or strings; cast the column to BIGINT or VARCHAR"
                )
            notes.append(f"{self._label}: {WITH_POINT}")
            return values.cast(pa.int64())
        bare = pc.utf8_trim_whitespace(values)
        if padded := pc.sum(pc.not_equal(bare, values)).as_py():
            notes.append(f"{self._label}: removed the blanks around {padded} ids")
        lengths = pc.utf8_length(bare)
        if bad := self._first(pc.or_(pc.less(lengths, 1), pc.greater(lengths, Limits.ITEM_ID))):
            raise DataError(f"{self._label}, {bad}: expected 1 to {Limits.ITEM_ID} characters")
        if self.name in self.table.texts and (bad := self._first(pc.equal(bare, self.name))):
            raise DataError(f"{self._label}, {bad}: the header is repeated; remove the row")
        return bare

    def may_be_integers(self, wanted: IdType) -> bool:
        """Whether all ids can be read as integers. Strings of a Parquet file are integers only if `wanted` is."""
        if pa.types.is_integer(self.values.type):
            return True
        if self.name not in self.table.texts and wanted != "integer":
            return False
        return bool(pc.all(pc.match_substring_regex(self.values, _INTEGER)).as_py())

    @property
    def has_integers(self) -> bool:
        """Whether some id is an integer, by type or by its text in a text file."""
        if pa.types.is_integer(self.values.type):
            return True
        is_text = self.name in self.table.texts
        return is_text and bool(pc.any(pc.match_substring_regex(self.values, _INTEGER)).as_py())

    def without_fraction(self, notes: list[str]) -> pa.Array:
        """The ids, with 7.0 in a text file changed to 7."""
        if pa.types.is_integer(self.values.type) or self.name not in self.table.texts:
            return self.values
        whole = pc.replace_substring_regex(self.values, r"^(0|-?[1-9][0-9]{0,18})\.0+$", r"\1")
        if pc.any(pc.not_equal(whole, self.values)).as_py():
            notes.append(f"{self._label}: {WITH_POINT}")
        return whole

    def _first(self, selected: pa.BooleanArray) -> str:
        """Names the first row whose id is selected, and the id; "" if none is. selected: a flag per distinct id."""
        mask = selected.to_numpy(zero_copy_only=False)
        if not mask.any():
            return ""
        row = int(np.argmax(mask[self.rows]))
        return f"{self.table.row(row)}: {str(self.values[self.rows[row]].as_py())[:60]!r}"

    def first_string(self) -> str:
        """A message that names the first id that is not an integer."""
        row = self._first(pc.invert(pc.match_substring_regex(self.values, _INTEGER)))
        return f"{self._label}, {row} is not an integer" if row else f"{self._label} has strings"


def numbers(table: Table, name: str, rows: Indices | None = None) -> NDArray[np.float64]:
    """The finite numbers of a column, in `rows` or in all.

    Raises DataError naming the first row without such a number.
    """
    label = f"{table.file}: column {name}"
    column = plain(table.column(name), label)
    if rows is None:
        rows = np.arange(len(column))
    else:
        column = column.take(pa.array(rows))
    if column.null_count:
        row = int(rows[pc.index(pc.is_null(column), True).as_py()])
        raise DataError(f"{label}, {table.row(row)}: no value; drop or fill such rows")
    if pa.types.is_string(column.type):
        encoded = column.cast(pa.large_string()).combine_chunks().dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        values = np.array([np.nan if (number := as_number(text)) is None else number for text in texts])
        values = values[encoded.indices.to_numpy(zero_copy_only=False)]
    else:
        values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy())
    for row in np.flatnonzero(~np.isfinite(values))[:1]:
        text = str(column[int(row)].as_py())[:60]
        raise DataError(
            f"{label}, {table.row(int(rows[row]))}: expected a number like 3.5, found {text!r}; drop or fill such rows"
        )
    return values
