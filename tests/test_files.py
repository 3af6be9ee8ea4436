"""Files as people have them: the first bytes show the format, and errors name the file and the reason."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.config import TrainConfig
from trainer.data.dataset import load_dataset
from trainer.data.files import read_table
from trainer.data.text import BLOCK
from trainer.errors import DataError

WANTED = ("user_id", "item_id", "timestamp", "rating")
CLICKS = "user_id,item_id,timestamp\n1,a,5\n2,b,6\n"
COLUMNS = {"user_id": ["1", "2"], "item_id": ["a", "b"], "timestamp": ["5", "6"]}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    """Write a file with this content."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def columns_of(file: Path) -> dict[str, list[Any]]:
    """The columns that are read from a file."""
    columns: dict[str, list[Any]] = read_table(file, WANTED).columns.to_pydict()
    return columns


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.csv", CLICKS),
        ("no-ending", CLICKS),
        ("windows.csv", CLICKS.replace("\n", "\r\n")),
        ("old-mac.csv", CLICKS.replace("\n", "\r")),
        ("bom.csv", b"\xef\xbb\xbf" + CLICKS.encode()),
        ("utf-16.csv", CLICKS.encode("utf-16")),
        ("x.csv.gz", gzip.compress(CLICKS.encode(), mtime=0)),
        ("named-otherwise.csv", gzip.compress(CLICKS.encode(), mtime=0)),
        (
            "two-members.csv.gz",
            gzip.compress(CLICKS[:30].encode(), mtime=0) + gzip.compress(CLICKS[30:].encode(), mtime=0),
        ),
        ("x.csv.bz2", bz2.compress(CLICKS.encode())),
        ("x.csv.xz", lzma.compress(CLICKS.encode())),
        ("x.csv.zst", pa.compress(CLICKS.encode(), "zstd", asbytes=True)),
        ("x.tsv", CLICKS.replace(",", "\t")),
        ("tabs.csv", CLICKS.replace(",", "\t")),
        ("semicolons.csv", CLICKS.replace(",", ";")),
        ("bars.txt", CLICKS.replace(",", "|")),
        ("recbole.inter", "user_id:token\titem_id:token\ttimestamp:float\n1\ta\t5\n2\tb\t6\n"),
        ("blank-lines.csv", f"\n\n{CLICKS}\n\n"),
        ("index.csv", ",user_id,item_id,timestamp\n0,1,a,5\n1,2,b,6\n"),
        ("quoted.csv", '"user_id","item_id","timestamp"\n"1","a","5"\n"2","b","6"\n'),
        ("names-with-blanks.csv", "user_id, item_id ,timestamp\n1,a,5\n2,b,6\n"),
        ("others-too.csv", 'user_id,note,item_id,timestamp\n1,"x, y",a,5\n2,"one\ntwo ""three""",b,6\n'),
        ("latin-1-elsewhere.csv", b"user_id,item_id,timestamp,n\xe4me\n1,a,5,\xe4\n2,b,6,\xf6\n"),
        ("grouplens.csv", "userId,itemId,timestamp\n1,a,5\n2,b,6\n"),
        ("snowflake.csv", "USER_ID,ITEM_ID,TIMESTAMP\n1,a,5\n2,b,6\n"),
        ("words.csv", "User ID,Item-Id,timestamp\n1,a,5\n2,b,6\n"),
        ("not-to-be-seen.csv", "\ufeff\u200buser_id,item_id\u00a0,timestamp\n1,a,5\n2,b,6\n"),
        ("excel.csv", "sep=;\nuser_id;item_id;timestamp\n1;a;5\n2;b;6\n"),
        (
            "wide.csv",
            "user_id,item_id,timestamp,"
            + ",".join(f"feature-{i:05}" for i in range(12_000))
            + "\n"
            + "".join(f"{user},{item},{time}{',0' * 12_000}\n" for user, item, time in ((1, "a", 5), (2, "b", 6))),
        ),
        ("quoted-word.tsv", 'user_id\titem_id\ttimestamp\ttitle\n1\ta\t5\t"Weird Al" Yankovic\n2\tb\t6\t\n'),
        ("inches.tsv", 'user_id\titem_id\ttitle\ttimestamp\n1\ta\t"32 inch TV\t5\n2\tb\tnice" thing\t6\n'),
        ("quote-inside.csv", 'user_id,item_id,timestamp,note\n1,a,5,5" wide\n2,b,6,x\n'),
    ],
)
def test_text_is_read_however_it_is_written(tmp_path: Path, name: str, content: str | bytes) -> None:
    """Compression, separator, ending, encoding and line ends vary; the two clicks are always the same."""
    assert columns_of(write(tmp_path, name, content)) == COLUMNS


@pytest.mark.parametrize("packed", [False, True])
def test_parquet_is_read_by_its_content(tmp_path: Path, packed: bool) -> None:
    """Parquet is recognised under any name, and inside gzip."""
    pq.write_table(pa.table(COLUMNS | {"other": [[1], [2]]}), tmp_path / "x.csv")
    file = write(tmp_path, "y", gzip.compress((tmp_path / "x.csv").read_bytes())) if packed else tmp_path / "x.csv"

    assert columns_of(file) == COLUMNS


def test_a_pipe_is_read(tmp_path: Path) -> None:
    """A pipe as in `dr-trainer fit <(zcat clicks.gz)`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(CLICKS), daemon=True)
    writer.start()

    assert columns_of(pipe) == COLUMNS
    writer.join()


def test_values_with_line_breaks_beyond_one_block(tmp_path: Path) -> None:
    """Descriptions have several lines with as many commas as a row: no item is lost and none is made up."""
    text = "second line, with a comma " + "and so on " * 40
    items = "".join(f'p{i},"Article {i}\n{text}"\n' for i in range(45_000))
    file = write(tmp_path, "items.csv", f"item_id,description\n{items}")
    assert file.stat().st_size > BLOCK

    ids = read_table(file, {"item_id"}).columns["item_id"].to_pylist()

    assert ids == [f"p{i}" for i in range(45_000)]


def test_parquet_and_compressed_text_beyond_one_block(tmp_path: Path) -> None:
    """The readers of Parquet and of compressed text read all blocks too."""
    rows = 700_000
    ids = [f"item-{i % 1000:020}" for i in range(rows)]
    pq.write_table(pa.table({"item_id": ids}), tmp_path / "x.parquet", row_group_size=100_000)
    text = "item_id\n" + "\n".join(ids)
    assert len(text) > BLOCK
    packed = write(tmp_path, "x.csv.gz", gzip.compress(text.encode(), compresslevel=1))

    for file in (tmp_path / "x.parquet", packed):
        assert read_table(file, {"item_id"}).columns["item_id"].to_pylist() == ids


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("1,a,1700000000,4\n2,b,1700000001,5\n", "user_id, item_id, timestamp, rating"),
        ("1,a,4,1700000000\n2,b,5,1700000001\n", "user_id, item_id, rating, timestamp"),
        ("1\ta\t1700000000\n2\tb\t1700000001\n", "user_id, item_id, timestamp"),
        ("1;a;2024-01-31 10:00:00;3.5\n2;b;2024-02-01 10:00:00;1\n", "user_id, item_id, timestamp, rating"),
        ("1::31::5::978300760\n2::32::4::978302109\n", "user_id, item_id, rating, timestamp"),
    ],
)
def test_columns_without_a_header_are_recognised(tmp_path: Path, content: str, columns: str) -> None:
    """The time is recognised by its values; a message says which column was taken for which."""
    file = write(tmp_path, "clicks.csv", content)

    table = read_table(file, WANTED)

    assert ", ".join(table.names) == columns
    assert table.notes == (f"{file}: no header; columns read as {columns}",)
    assert load_dataset(file, TrainConfig(min_interactions=1)).notes[:1] == table.notes


@pytest.mark.parametrize("content", ["1,a,4,5\n2,b,5,4\n", "1,a,4\n", "1,1700000000\n", "1,a,1700000000,1700000001\n"])
def test_columns_that_cannot_be_recognised_are_refused(tmp_path: Path, content: str) -> None:
    """Without a header, values do not always show which column is which: a time of 1 to 5 may be a rating."""
    file = write(tmp_path, "clicks.csv", content)

    with pytest.raises(DataError, match=r"clicks.csv: no header, and the columns cannot be identified: .*sed -i"):
        read_table(file, WANTED)


def test_a_catalogue_without_a_header_is_refused(tmp_path: Path) -> None:
    """Nothing shows which of its columns is which."""
    with pytest.raises(DataError, match=r"items.csv: no header; add a first line"):
        read_table(write(tmp_path, "items.csv", "10000,foo\n10001,bar\n"), {"item_id"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", CLICKS + "3,c\n", "read as text with columns separated by ',', but row 3 has 2 cells and"),
        ("x.csv", CLICKS + "3,c,7,8\n", "but row 3 has 4 cells and the first row 3: '3,c,7,8'"),
        ("x.csv", CLICKS + '3,"c,7\n4,d,8\n', "but the quote in line 4 is left open"),
        ("x.csv", CLICKS + '3,c,"7\n', "but the quote in line 4 is left open"),
        ("x.csv", CLICKS.encode() + b"3,\xe4,7\n", "column item_id is not UTF-8; save the file as UTF-8"),
        ("x.csv", "visitor,product,time\nx,y,z\n", "column item_id is missing; found visitor, product, time; is"),
        ("x.csv", "user_id,item_id,item_id,timestamp\n1,2,3,4\n", "there are 2 columns item_id; keep one"),
        ("x.csv", "", "no rows"),
        ("x.csv", "user_id,item_id,timestamp\n", "no rows"),
        ("x.csv", '{"user_id": 1}\n', "JSON; write it as CSV or Parquet. Supported are Parquet, or UTF-8 text"),
        ("x.csv", 'user_id,item_id,title,timestamp\n1,a,"Foo,5\n2,b,x,6\n3,c,"Bar",7\n',
         "but the quote in line 2 is closed in the middle of a value in line 4"),
        ("x.csv", '"user_id,item_id,timestamp\n' + "1,a,5\n" * 30_000, "a value is longer than 128 KiB"),
        ("x.csv", CLICKS + "user_id,item_id,timestamp\n1,c,7\n", "row 3: 'item_id': the header is repeated"),
        ("x.xlsx", b"PK\x03\x04 and so on", "a ZIP archive or a spreadsheet; unzip it, or save it as CSV"),
        ("x.parquet", CLICKS, "does not begin like Parquet; it has another format or is damaged"),
        ("x.parquet", b"PAR1 and so on", "begins like Parquet, but cannot be read"),
        ("x.csv.gz", gzip.compress(CLICKS.encode(), mtime=0)[:-9], "the compressed file is damaged or cut off"),
        ("x.csv.zst", pa.compress(CLICKS.encode(), "zstd", asbytes=True)[:-9], "file is damaged or cut off"),
        ("x.bin", b"\x00\x01\x02", "neither Parquet nor text: it has zero bytes. Supported are Parquet"),
    ],
)  # fmt: skip
def test_an_unreadable_file_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    """The error has the file's name, and what the file was taken for."""
    file = write(tmp_path, name, content)

    with pytest.raises(DataError) as refused:
        load_dataset(file, TrainConfig())

    assert str(refused.value).startswith(f"{file}: ")
    assert message in str(refused.value)


def test_a_folder_of_parts_is_one_table(tmp_path: Path) -> None:
    """Spark's x.csv/ with marker files, an empty part and columns in another order; Parquet beside a README."""
    write(tmp_path, "x.csv/part-00000.csv", CLICKS)
    write(tmp_path, "x.csv/part-00001.csv", "timestamp,item_id,user_id\n7,c,3\n")
    write(tmp_path, "x.csv/part-00002.csv", "")
    write(tmp_path, "x.csv/_SUCCESS", "")
    write(tmp_path, "x.csv/.part-00000.csv.crc", b"crc\x00")
    expected = {"user_id": ["1", "2", "3"], "item_id": ["a", "b", "c"], "timestamp": ["5", "6", "7"]}

    assert columns_of(tmp_path / "x.csv") == expected
    assert columns_of(tmp_path / "x.csv" / "part-*.csv") == expected

    (tmp_path / "parquet").mkdir()
    write(tmp_path, "parquet/README.md", "# What this is")
    for number, types in enumerate((pa.int32(), pa.int64())):
        rows = {"user_id": pa.array([number], types), "item_id": pa.array([2**31 * number], types)}
        pq.write_table(pa.table(rows), tmp_path / "parquet" / f"{number}.parquet")
    assert columns_of(tmp_path / "parquet") == {"user_id": [0, 1], "item_id": [0, 2**31]}


def test_names_of_partition_folders_are_columns(tmp_path: Path) -> None:
    """Hive writes partitions as user_id=7/."""
    for user in (7, 12):
        (tmp_path / f"user_id={user}").mkdir()
        pq.write_table(pa.table({"item_id": [1, 2, 3], "timestamp": [1, 2, 3]}), tmp_path / f"user_id={user}/0.parquet")

    dataset = load_dataset(tmp_path, TrainConfig())

    assert dataset.user_ids.tolist() == [7, 12]
    assert dataset.items.tolist() == [0, 1, 2] * 2


def test_folder_names_are_decoded(tmp_path: Path) -> None:
    """DuckDB, pandas and Hive percent-encode them; Hive's default partition is a missing value."""
    for folder in ("country=New%20York%3A1", "country=C%C3%B4te", "country=__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table({"item_id": [1]}), tmp_path / folder / "0.parquet")

    countries = read_table(tmp_path, {"country"}).columns["country"].to_pylist()

    assert sorted(map(str, countries)) == ["Côte", "New York:1", "None"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.csv", "cannot be read: no such file"),
        ("nothing-*.csv", "has no data file"),
        ("empty", "no data file"),
    ],
)
def test_missing_data_files_are_reported(tmp_path: Path, name: str, message: str) -> None:
    """A file that does not exist, a glob without matches, and a folder with only a README."""
    write(tmp_path, "empty/README.md", "# nothing")

    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name, WANTED)


def test_parts_without_the_header_of_the_first_are_refused(tmp_path: Path) -> None:
    """`split` leaves the header only in the first part; the columns of the other parts would be guessed, and differ."""
    write(tmp_path, "x/xaa.csv", "item_id,user_id,timestamp\n10,1,1700000000\n11,1,1700000001\n")
    write(tmp_path, "x/xab.csv", "12,1,1700000002\n13,1,1700000003\n")

    with pytest.raises(DataError, match=r"xab.csv: has no header, and its .* but .*xaa.csv has a header; give all"):
        read_table(tmp_path / "x", WANTED)


def test_guessed_columns_of_parts_are_reported(tmp_path: Path) -> None:
    """The message names the first part and counts the rest; a part with another order of columns is refused."""
    for part in range(3):
        write(tmp_path, f"x/{part}.csv", f"1,a,170000000{part},4\n")

    notes = read_table(tmp_path / "x", WANTED).notes

    assert notes[0].endswith("0.csv: no header; columns read as user_id, item_id, timestamp, rating")
    assert notes[1:] == (f"{tmp_path / 'x'}: the same in 2 other files",)
    write(tmp_path, "x/3.csv", "1,a,4,1700000000\n")
    with pytest.raises(DataError, match=r"3.csv: has no header"):
        read_table(tmp_path / "x", WANTED)


def test_no_file_of_a_folder_is_ignored_silently(tmp_path: Path) -> None:
    """Links and endings in capitals are read, other files are reported, and mixed kinds or duplicates are refused."""
    write(tmp_path, "x/jan.csv", CLICKS)
    write(tmp_path, "elsewhere/FEB.CSV.GZ", gzip.compress(CLICKS.replace("2,b", "2,c").encode()))
    (tmp_path / "x" / "linked").symlink_to(tmp_path / "elsewhere")
    write(tmp_path, "x/mar.csv.bak", CLICKS)
    write(tmp_path, "x/apr", CLICKS)

    table = read_table(tmp_path / "x", WANTED)

    assert table.columns["item_id"].to_pylist() == ["a", "b", "a", "c"]
    assert table.notes == (f"{tmp_path / 'x'}: ignored: apr, mar.csv.bak",)
    pq.write_table(pa.table(COLUMNS), tmp_path / "x" / "may.parquet")
    with pytest.raises(DataError, match=r"has Parquet and text \(jan.csv\); name one kind"):
        read_table(tmp_path / "x", WANTED)
    (tmp_path / "x" / "may.parquet").unlink()
    write(tmp_path, "x/jan.csv.gz", gzip.compress(CLICKS.encode()))
    with pytest.raises(DataError, match="has a file both compressed and uncompressed"):
        read_table(tmp_path / "x", WANTED)
    (tmp_path / "x" / "_delta_log").mkdir()
    with pytest.raises(DataError, match="a Delta table"):
        read_table(tmp_path / "x", WANTED)


def test_types_are_decided_over_all_parts_together(tmp_path: Path) -> None:
    """Integers in one part and strings in another are strings; a row is counted within its own part."""
    (tmp_path / "x").mkdir()
    pq.write_table(pa.table({"user_id": [1], "item_id": [7], "timestamp": [1]}), tmp_path / "x/0.parquet")
    pq.write_table(pa.table({"user_id": [1], "item_id": ["A7"], "timestamp": [2]}), tmp_path / "x/1.parquet")

    dataset = load_dataset(tmp_path / "x", TrainConfig(min_interactions=1))

    assert dataset.item_ids.tolist() == ["7", "A7"]
    assert dataset.notes == (
        f"item_id: read as strings: {tmp_path / 'x'}: column item_id, row 1 of 1.parquet: 'A7' is not an integer",
    )


def test_strings_in_two_forms_stay_strings(tmp_path: Path) -> None:
    """One part has plain strings and one a dictionary; digits stay strings because Parquet says that they are."""
    for part, ids in enumerate((pa.array(["7"]), pa.array(["8"]).dictionary_encode())):
        rows = {"user_id": [1], "item_id": ids, "timestamp": [part]}
        pq.write_table(pa.table(rows), tmp_path / f"{part}.parquet")

    assert load_dataset(tmp_path, TrainConfig(min_interactions=1)).item_ids.tolist() == ["7", "8"]


def test_packed_parts_may_be_empty(tmp_path: Path) -> None:
    """Spark writes empty parts, compressed or with a blank line."""
    write(tmp_path, "x/0.csv", CLICKS)
    write(tmp_path, "x/1.csv.gz", gzip.compress(b""))
    write(tmp_path, "x/2.csv", "\n")

    assert columns_of(tmp_path / "x") == COLUMNS


def test_parts_must_have_the_same_columns(tmp_path: Path) -> None:
    """The error names the part and the columns that differ."""
    write(tmp_path, "x/0.csv", CLICKS)
    write(tmp_path, "x/1.csv", "user_id,item_id\n1,a\n")

    with pytest.raises(DataError, match=r"1.csv: its columns differ from those of .*0.csv: timestamp"):
        read_table(tmp_path / "x", WANTED)
