"""Columns out of Parquet and CSV files. What cannot be used is named with file, column and row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from trainer.errors import DataError

#: int64 (V,), or object (V,) of str. Ascending.
Ids = NDArray[np.int64] | NDArray[np.object_]
Index = NDArray[np.int64]
MAX_ID_LENGTH = 256  # characters of a string id; the service refuses longer ones


#: Columns that publishers name otherwise: GroupLens from 20M on, Amazon reviews of 2023.
ALIASES = {"userId": "user_id", "movieId": "item_id", "parent_asin": "item_id"}
RATINGS = ["user_id", "item_id", "rating", "timestamp"]  # of files that do not name their columns


def read_table(file: Path) -> pa.Table:
    """The file's columns. A name that ends in .csv or .tsv is read as that, .data and .dat as GroupLens writes them.

    Any other is read as Parquet. GroupLens' u.data and ratings.dat, and Amazon's ratings of 2014, have no header; their
    columns are user, item, rating and time.
    """
    try:
        if _is_csv(file):
            # Ids stay as they are written: 007 is not 7.
            ids = {name: pa.string() for name in ("user_id", "item_id", *ALIASES)}
            nameless = file.suffix.lower() in {".data", ".dat"} or _begins_with_ratings(file)
            table = pyarrow.csv.read_csv(
                _tab_separated(file) if file.suffix.lower() == ".dat" else file,
                read_options=pyarrow.csv.ReadOptions(column_names=RATINGS if nameless else None),
                parse_options=pyarrow.csv.ParseOptions(delimiter="," if file.suffix.lower() == ".csv" else "\t"),
                convert_options=pyarrow.csv.ConvertOptions(column_types=ids, strings_can_be_null=True),
            )
        else:
            table = pyarrow.parquet.read_table(file)
        known = set(table.column_names)
        return table.rename_columns([n if ALIASES.get(n, n) in known else ALIASES[n] for n in table.column_names])
    except FileNotFoundError:
        raise DataError(f"{file}: cannot be read: no such file") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    except pa.ArrowException as error:
        kind = "CSV" if _is_csv(file) else "Parquet"
        raise DataError(f"{file}: not {kind} that can be read: {str(error).splitlines()[0]}") from None


def _is_csv(file: Path) -> bool:
    return file.suffix.lower() in {".csv", ".tsv", ".data", ".dat"}


def _begins_with_ratings(file: Path) -> bool:
    """Whether the first line is data already: four columns of which the last two are numbers."""
    with file.open("rb") as lines:
        cells = lines.readline(1000).decode("utf-8", "replace").strip().split(",")
    try:
        return len(cells) == len(RATINGS) and len([float(cell) for cell in cells[2:]]) > 0
    except ValueError:
        return False


def _tab_separated(file: Path) -> pa.BufferReader:
    """A file of GroupLens whose columns are parted by two colons."""
    return pa.BufferReader(file.read_bytes().replace(b"::", b"\t"))


def _column(table: pa.Table, name: str, file: Path) -> pa.ChunkedArray:
    """The column, without nulls. Raises DataError when it is missing or has nulls."""
    if table.column_names.count(name) != 1:
        raise DataError(f"{file}: column {name} is missing; found {', '.join(table.column_names)}")
    if not table.num_rows:
        raise DataError(f"{file}: no rows")
    column = table[name]
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{file}: column {name}, row {row + 1}: null; drop or fill such rows")
    return column


def id_column(table: pa.Table, name: str, file: Path) -> pa.ChunkedArray:
    """A column of ids: int64, or strings of 1 to 256 characters. In CSV, ids are integers if all are written so."""
    column = _column(table, name, file)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            raise DataError(f"{file}: column {name}: an id does not fit in int64; use strings") from None
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(f"{file}: column {name}: expected integers or strings, found {kind}")
    column = column.cast(pa.large_string())
    lengths = pc.utf8_length(column)
    bad = pc.or_(pc.less(lengths, 1), pc.greater(lengths, MAX_ID_LENGTH))
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py() + 1
        raise DataError(f"{file}: column {name}, row {row}: expected 1 to {MAX_ID_LENGTH} characters")
    if _is_csv(file) and pc.all(pc.match_substring_regex(column, r"^(0|-?[1-9][0-9]{0,17})$")).as_py():
        return column.cast(pa.int64())
    return column


def encode_ids(columns: list[pa.ChunkedArray], what: str) -> tuple[list[Index], Ids]:
    """Each column's rows as indices into the different ids of all of them, and those ids, ascending."""
    if len({column.type for column in columns}) > 1:
        raise DataError(f"{what}: integers in one and strings in the other; make both the same")
    if pa.types.is_integer(columns[0].type):
        numbers = [column.to_numpy() for column in columns]
        ids, index = np.unique(np.concatenate(numbers), return_inverse=True)
    else:
        encoded = pa.chunked_array([chunk for column in columns for chunk in column.chunks]).combine_chunks()
        encoded = encoded.dictionary_encode()
        found = np.array(encoded.dictionary.to_pylist(), dtype=object)
        order = np.argsort(found)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        ids, index = found[order], rank[encoded.indices.to_numpy(zero_copy_only=False)]
    return np.split(index, np.cumsum([len(column) for column in columns])[:-1]), ids


def timestamps(table: pa.Table, file: Path) -> NDArray[Any]:
    """Something that sorts as the timestamps do. Only their order within a user is used."""
    column = _column(table, "timestamp", file)
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date64(kind):
        return np.asarray(column.cast(pa.int64()).to_numpy())
    if pa.types.is_date32(kind):
        return np.asarray(column.cast(pa.int32()).to_numpy())
    if pa.types.is_integer(kind):
        return np.asarray(column.to_numpy())
    if pa.types.is_floating(kind):
        return numbers(table, "timestamp", file)
    raise DataError(f"{file}: column timestamp: expected integers or date and time, found {kind}")


def numbers(table: pa.Table, name: str, file: Path) -> NDArray[np.float64]:
    """A column of finite numbers."""
    column = _column(table, name, file)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{file}: column {name}: expected numbers, found {column.type}")
    values = column.cast(pa.float64(), safe=False).to_numpy()
    for row in np.flatnonzero(~np.isfinite(values))[:1]:
        raise DataError(f"{file}: column {name}, row {row + 1}: expected a finite number, found {values[row]}")
    return np.asarray(values)
