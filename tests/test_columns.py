"""Ids and numbers: ids have one type in all files, set or detected; errors name the first value that does not fit."""

from __future__ import annotations

import decimal
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.vocabulary import Vocabulary
from trainer.data.columns import IdType, encode_ids, numbers
from trainer.data.files import Table, read_table
from trainer.errors import DataError

SNOWFLAKES = [999_999_999_999_999_999, 1_000_000_000_000_000_000]  # of 18 and of 19 digits


def text(folder: Path, name: str, *cells: str) -> Table:
    """A CSV file with a column `id`."""
    file = folder / name
    file.write_text("item_id,id\n" + "".join(f"x,{cell}\n" for cell in cells))
    return read_table(file, {"id"})


def parquet(folder: Path, name: str, values: Any) -> Table:
    """A Parquet file with a column `id`."""
    file = folder / name
    pq.write_table(pa.table({"id": values}), file)
    return read_table(file, {"id"})


def ids_of(*tables: Table, wanted: IdType = "auto") -> list[list[Any]]:
    """The ids of each table, in the type that they are read as."""
    encoded = encode_ids(tables, "id", wanted)
    assert encoded.ids.tolist() == sorted(encoded.ids.tolist())
    return [encoded.ids[rows].tolist() for rows in encoded.rows]


def test_ids_are_integers_if_all_files_have_only_integers(tmp_path: Path) -> None:
    """All clicks are digits, but the catalogue has 10030A: all ids are strings, and a message says why."""
    clicks, items = text(tmp_path, "clicks.csv", "7", "10"), text(tmp_path, "items.csv", "10", "10030A", "9")

    assert ids_of(clicks) == [[7, 10]]
    assert ids_of(clicks, items) == [["7", "10"], ["10", "10030A", "9"]]
    assert encode_ids([clicks, items], "id", "auto").notes == [
        f"id: read as strings: {items.file}: column id, row 2: '10030A' is not an integer"
    ]


def test_the_type_of_ids_can_be_set(tmp_path: Path) -> None:
    """Ids are read as strings, or as integers with an error that names the first id that is none."""
    clicks, items = text(tmp_path, "clicks.csv", "7"), text(tmp_path, "items.csv", "9", "A1")

    assert ids_of(clicks, wanted="string") == [["7"]]
    assert ids_of(parquet(tmp_path, "x", [7]), wanted="string") == [["7"]]
    with pytest.raises(DataError, match=r"items.csv: column id, row 2: 'A1' is not an integer; expected integers"):
        ids_of(clicks, items, wanted="integer")
    assert ids_of(parquet(tmp_path, "strings.parquet", ["7", "10"]), wanted="integer") == [[7, 10]]
    with pytest.raises(
        DataError, match=r"strings.parquet: column id, row 1: '007' is not an integer; expected integers"
    ):
        ids_of(parquet(tmp_path, "strings.parquet", ["007"]), wanted="integer")


def test_snowflakes_are_integers_in_text_and_parquet(tmp_path: Path) -> None:
    """The type stays when the first id has 19 digits; a message warns that JavaScript rounds such numbers."""
    cells = list(map(str, SNOWFLAKES))
    for table in (text(tmp_path, "x.csv", *cells), parquet(tmp_path, "x.parquet", SNOWFLAKES)):
        encoded = encode_ids([table], "id", "auto")
        assert encoded.ids.tolist() == SNOWFLAKES
        assert encoded.notes == ["id: JavaScript rounds integers beyond 2^53; --set id=string makes them strings"]
    assert ids_of(text(tmp_path, "x.csv", str(2**63 - 1), str(-(2**63)))) == [[2**63 - 1, -(2**63)]]


def test_more_than_64_bits_are_strings(tmp_path: Path) -> None:
    """A message says why."""
    encoded = encode_ids([text(tmp_path, "x.csv", "1", str(2**63))], "id", "auto")

    assert encoded.ids.tolist() == ["1", str(2**63)]
    assert encoded.notes == ["id: read as strings: an id does not fit in 64 bits"]


@pytest.mark.parametrize("cell", ["007", "+7", "7e3", "7.5", "0x7", "-0", "1_000"])
def test_an_id_not_written_as_an_integer_is_a_string(tmp_path: Path, cell: str) -> None:
    """An id with leading zeros keeps them."""
    assert ids_of(text(tmp_path, "x.csv", cell, "7")) == [[cell, "7"]]


def test_integers_that_pandas_made_floats(tmp_path: Path) -> None:
    """1.0 is the id 1 in text and Parquet, also if another file has 1; a message reports it."""
    other = text(tmp_path, "other.csv", "1")
    for table in (text(tmp_path, "x.csv", "0.0", "1.0"), parquet(tmp_path, "x.parquet", [0.0, 1.0])):
        assert ids_of(table, other) == [[0, 1], [1]]
        assert encode_ids([table], "id", "auto").notes == [
            f"{table.file}: column id: integers written with a decimal point are read as integers"
        ]
    assert ids_of(text(tmp_path, "x.csv", "1.0", "A")) == [["1.0", "A"]]  # 1.0 may be a name here
    assert ids_of(text(tmp_path, "x.csv", "1.0"), text(tmp_path, "y.csv", "1.0", "2.0", "A")) == [
        ["1"],
        ["1", "2", "A"],
    ]
    assert ids_of(other, text(tmp_path, "y.csv", "1.0", "A")) == [["1"], ["1", "A"]]
    assert ids_of(text(tmp_path, "x.csv", "101.0"), wanted="string") == [["101"]]
    assert Vocabulary(["101"]).indices(["101.0", "101", " 101", "101.5"]).tolist() == [0, 0, 0]


def test_floats_that_are_no_integers_are_refused(tmp_path: Path) -> None:
    """The error names the row and the cast to make."""
    for value in (0.5, 1e17, float("nan"), float("inf")):
        with pytest.raises(DataError, match=r"column id, row 2: .* expected integers or strings; cast the column to"):
            ids_of(parquet(tmp_path, "x.parquet", pa.array([1.0, value], from_pandas=False)))


def test_blanks_around_ids_are_removed(tmp_path: Path) -> None:
    """`A1` and `A1 ` are one item, and 7 with a blank is an integer; a message has the number of changed ids."""
    table = text(tmp_path, "x.csv", "A1", "A1 ", " B2", "A1 ")

    assert ids_of(table) == [["A1", "A1", "B2", "A1"]]
    assert encode_ids([table], "id", "auto").notes == [f"{table.file}: column id: removed the blanks around 2 ids"]
    assert ids_of(text(tmp_path, "x.csv", " 7", "8")) == [[7, 8]]


def test_na_is_an_id(tmp_path: Path) -> None:
    """NA, null and None are ids; an empty cell is missing, and the error names its row."""
    assert ids_of(text(tmp_path, "x.csv", "NA", "null", "None", "nan")) == [["NA", "null", "None", "nan"]]
    for empty in ("", '""'):
        with pytest.raises(DataError, match="column id, row 2: no value; drop or fill such rows"):
            ids_of(text(tmp_path, "x.csv", "a", empty))
    with pytest.raises(DataError, match="column id, row 2: '  ': expected 1 to 256 characters"):
        ids_of(text(tmp_path, "x.csv", "a", '"  "'))


UUIDS = [uuid.UUID(int=3), uuid.UUID(int=2**127)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([u.bytes for u in UUIDS], pa.uuid()), list(map(str, UUIDS))),
        (pa.array([b"ABCDEFGHIJKLMNOP"], pa.binary(16)), ["ABCDEFGHIJKLMNOP"]),
        (pa.array([b"a1", b"\xc3\xa4"]), ["a1", "ä"]),
        (pa.array([decimal.Decimal(7), decimal.Decimal(10)], pa.decimal128(38, 0)), [7, 10]),
        (pa.array(["b", "a"]).dictionary_encode(), ["b", "a"]),
        (pa.array([3, 1], pa.int8()).dictionary_encode(), [3, 1]),
        (pa.array(["b", "a"], pa.large_string()), ["b", "a"]),
        (pa.array(["b", "a"], pa.string_view()), ["b", "a"]),
        (pa.array([3, 1], pa.uint64()), [3, 1]),
        (pa.array(["2024-01-31"], pa.string()).cast(pa.date32()), ["2024-01-31"]),
    ],
)
def test_types_with_an_obvious_plain_form_are_read(tmp_path: Path, values: pa.Array, expected: list[Any]) -> None:
    """UUIDs, bytes that are text, whole decimals, dates and dictionaries are read as strings or integers."""
    assert ids_of(parquet(tmp_path, "x.parquet", values)) == [expected]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([b"\xff"]), "bytes that are not UTF-8 text; cast the column to text"),
        (pa.array([[1]]), "expected numbers or strings, found list"),
        (pa.array([True]), "expected integers or strings, found bool"),
        (pa.array([2**63], pa.uint64()), "a number does not fit in int64; cast the column to text"),
        (pa.array([decimal.Decimal(10**30)], pa.decimal128(38, 0)), "a number does not fit in int64"),
    ],
)
def test_other_types_say_which_cast_to_make(tmp_path: Path, values: pa.Array, message: str) -> None:
    """The error is one line with file and column."""
    with pytest.raises(DataError, match=rf"x.parquet: column id: {message}"):
        ids_of(parquet(tmp_path, "x.parquet", values))


def test_numbers_in_text_and_parquet(tmp_path: Path) -> None:
    """Columns such as ratings are read; an error names the first cell that is not a number."""
    assert numbers(text(tmp_path, "x.csv", "3", "-2.5", " 1e3 "), "id").tolist() == [3.0, -2.5, 1000.0]
    assert numbers(parquet(tmp_path, "x.parquet", [1, 2]), "id").tolist() == [1.0, 2.0]
    for cell in ("good", "1,5", "NaN", "0x1", "1e999"):
        with pytest.raises(DataError, match=r"column id, row 2: expected a number like 3\.5, found"):
            numbers(text(tmp_path, "x.csv", "3", f'"{cell}"'), "id")
