"""Tables out of files as people have them: Parquet, or text with columns, compressed or not, in one file or many.

What a file is shows in its first bytes, not in its name. Of text only the columns that are asked for are read, each as
the text that is there: `007` is not 7, `NA` is a country, and only an empty cell is missing.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import glob
import gzip
import io
import itertools
import lzma
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from trainer.errors import DataError

#: Columns that publishers name otherwise: GroupLens from 20M on, Amazon reviews of 2023.
ALIASES = {"userId": "user_id", "movieId": "item_id", "itemId": "item_id", "parent_asin": "item_id"}
SEPARATORS = (",", "\t", ";", "|", "::")
ENDINGS = (".csv", ".tsv", ".txt", ".inter", ".dat", ".data")  # of text, where a folder has other files too
FORMS = f"Parquet, or UTF-8 text with columns parted by one of {' '.join(map(repr, SEPARATORS))}, perhaps compressed"
BLOCK = 16 * 2**20  # bytes of text parsed at once; a row must fit
HEAD = 2**20  # bytes in which the first row must end
LAST = "\u241c the end \u241c"  # cells of a row behind the last one

_UNPACK: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ": lzma.decompress,
    b"\x28\xb5\x2f\xfd": lambda packed: pa.CompressedInputStream(pa.BufferReader(packed), "zstd").read(),
    b"\x04\x22\x4d\x18": lambda packed: pa.CompressedInputStream(pa.BufferReader(packed), "lz4").read(),
}
#: What the first bytes say of files that are not read.
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive or a spreadsheet; unzip it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "a spreadsheet; save it as CSV",
    b"ARROW1": "an Arrow file; write it as Parquet",
    b"{": "JSON; write it as CSV or Parquet",
    b"[": "JSON; write it as CSV or Parquet",
    b"SQLite format": "a database; write the table as CSV or Parquet",
}
_TYPED_NAME = re.compile(r"(?P<name>.+):(token|float)(_seq)?\Z")  # of RecBole's .inter
_NUMBER_OR_DATE = re.compile(r"-?[0-9][0-9.,:/ TZ+-]*\Z")


@dataclass(frozen=True)
class Table:
    """Some columns of a file, and the names of all that it has.

    texts: the columns that come from text, so whose types are not known; the others have Parquet's types.
    guessed: one line on what was guessed of the file, empty if nothing was.
    """

    file: Path
    columns: pa.Table
    names: tuple[str, ...]
    texts: frozenset[str]
    guessed: str = ""

    def column(self, name: str) -> pa.ChunkedArray:
        """A column that was asked for. Raises DataError when the file has it not, or twice."""
        if self.names.count(name) > 1:
            raise DataError(f"{self.file}: column {name} is there {self.names.count(name)} times; keep one")
        if name not in self.columns.column_names:
            raise DataError(f"{self.file}: column {name} is missing; found {', '.join(self.names)}")
        if not self.columns.num_rows:
            raise DataError(f"{self.file}: no rows")
        return self.columns[name]


def read_table(file: Path, wanted: Iterable[str]) -> Table:
    """Those of the `wanted` columns that `file` has: a file, a folder of files that are parts of one table, or a glob.

    Raises DataError for what cannot be read, saying what it was taken for.
    """
    wanted = set(wanted)
    try:
        if file.is_dir() or (not file.exists() and glob.has_magic(str(file))):
            return _read_parts(file, wanted)
        return _read_file(file, wanted)
    except FileNotFoundError:
        raise DataError(f"{file}: cannot be read: no such file") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None


def _read_parts(place: Path, wanted: set[str]) -> Table:
    """All data files below a folder, or those that match a glob, end to end. Names `column=value/` are columns too."""
    if place.is_dir():
        found = sorted(path for path in place.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(place)))
        files = [path for path in found if _begins_with(path, b"PAR1")]
        files = files or [path for path in found if _looks_like_text(path)]
    else:
        names = glob.glob(str(place), recursive=True)  # noqa: PTH207 -- Path.glob refuses absolute patterns
        files = sorted(path for path in map(Path, names) if path.is_file())
    files = [path for path in files if path.stat().st_size]  # an empty part has no header either
    if not files:
        raise DataError(f"{place}: no data file is there; expected Parquet, or text that ends in {' '.join(ENDINGS)}")
    parts = [_read_file(path, wanted) for path in files]
    tables = []
    for part in parts:
        columns = part.columns
        for name, value in _partition(part.file, place):
            if name in wanted and name not in columns.column_names:
                columns = columns.append_column(name, pa.array([value] * columns.num_rows, pa.string()))
        tables.append(columns)
    first = tables[0].column_names
    for part, columns in zip(parts, tables, strict=True):
        if set(columns.column_names) != set(first):
            odd = ", ".join(sorted(set(columns.column_names) ^ set(first)))
            raise DataError(f"{part.file}: has other columns than {parts[0].file}: {odd}")
    try:
        whole = pa.concat_tables([columns.select(first) for columns in tables], promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{place}: its files have columns of different types: {_first_line(error)}") from None
    named = {name for part in parts for name, _ in _partition(part.file, place)}
    return Table(
        place,
        whole,
        tuple(dict.fromkeys([*parts[0].names, *sorted(named)])),
        frozenset().union(*(part.texts for part in parts)) | (named & wanted - set(parts[0].names)),
        parts[0].guessed,
    )


def _is_hidden(path: Path) -> bool:
    """Spark's _SUCCESS and .crc files, and the like."""
    return any(name.startswith((".", "_")) for name in path.parts)


def _looks_like_text(path: Path) -> bool:
    return any(ending in ENDINGS for ending in path.suffixes) or path.name.startswith("part-")


def _partition(file: Path, place: Path) -> list[tuple[str, str]]:
    """What a path like country=FR/part-0.parquet says of all rows in it."""
    folders = file.relative_to(place).parts[:-1] if place.is_dir() else file.parts[:-1]
    pairs = (folder.partition("=") for folder in folders)
    return [(name, value) for name, separator, value in pairs if separator]


def _begins_with(file: Path, magic: bytes) -> bool:
    with file.open("rb") as content:
        return content.read(len(magic)) == magic


def _read_file(file: Path, wanted: set[str]) -> Table:
    with file.open("rb") as start:
        head = start.read(HEAD)
        whole = None if file.is_file() else head + start.read()  # a pipe cannot be read twice
    if head.startswith(b"PAR1"):
        return _read_parquet(file, wanted, whole)
    for magic, unpack in _UNPACK.items():
        if head.startswith(magic):
            try:
                whole = unpack(file.read_bytes() if whole is None else whole)
            except (OSError, EOFError, lzma.LZMAError, zlib.error, pa.ArrowException) as error:
                raise DataError(f"{file}: compressed, and damaged or cut off: {_first_line(error)}") from None
            head = whole[:HEAD]
            break
    if head.startswith(b"PAR1"):
        return _read_parquet(file, wanted, whole)
    for magic, kind in _OTHERS.items():
        if head.lstrip().startswith(magic):
            raise DataError(f"{file}: {kind}. What is read is {FORMS}")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            whole = (file.read_bytes() if whole is None else whole).decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: begins as UTF-16 and does not go on so: {error.reason}") from None
        head = whole[:HEAD]
    if ".parquet" in file.suffixes:
        raise DataError(f"{file}: does not begin as Parquet does: another format, or damaged")
    if b"\0" in head:
        raise DataError(f"{file}: neither Parquet nor text. What is read is {FORMS}")
    return _read_text(file, head.decode("utf-8-sig", "replace"), wanted, whole)


def _read_parquet(file: Path, wanted: set[str], whole: bytes | None) -> Table:
    try:
        source = pa.parquet.ParquetFile(file if whole is None else pa.BufferReader(whole))
        names = source.schema_arrow.names
        known = set(names)
        named = [n if ALIASES.get(n, n) in known else ALIASES[n] for n in names]
        chosen = [name for name, ours in zip(names, named, strict=True) if ours in wanted and named.count(ours) == 1]
        table = source.read(columns=chosen)
    except pa.ArrowException as error:
        raise DataError(f"{file}: begins as Parquet and cannot be read: {_first_line(error)}") from None
    ours = dict(zip(names, named, strict=True))
    # Asked for by name, a column of structs may bring its parts.
    table = table.rename_columns([ours.get(name, name) for name in table.column_names])
    return Table(file, table, tuple(named), frozenset())


def _read_text(file: Path, head: str, wanted: set[str], whole: bytes | None) -> Table:
    """head: the beginning. whole: all of it, where that is in memory already."""
    separator = _separator(head)
    if len(separator) > 1:  # GroupLens' two colons
        whole = (file.read_bytes() if whole is None else whole).replace(separator.encode(), b"\t")
        head, separator = head.replace(separator, "\t"), "\t"
    rows = csv.reader(io.StringIO(head, newline=""), delimiter=separator)
    first = next((row for row in rows if row), [])
    if not first:
        raise DataError(f"{file}: no rows")
    skipped = rows.line_num
    names, guessed = _names(first), ""
    if not {"user_id", "item_id"} & set(names) and any(_NUMBER_OR_DATE.match(cell.strip()) for cell in first):
        names = _columns_without_header(file, [first, *itertools.islice(filter(None, rows), 1000)], wanted)
        skipped, guessed = 0, f"{file}: no header; columns taken as {', '.join(names)}"
    chosen = [name for name in dict.fromkeys(names) if name in wanted and names.count(name) == 1]
    # Names that are there twice get a number: all must be told apart.
    numbered = [name if names.count(name) == 1 else f"{name} {place}" for place, name in enumerate(names)]
    taken = f"{file}: taken for text with columns parted by {separator!r}"
    bad_rows: list[pyarrow.csv.InvalidRow] = []

    def refuse(row: pyarrow.csv.InvalidRow) -> str:
        bad_rows.append(row)
        return "error"

    def parse(*, use_threads: bool) -> pa.Table:
        with file.open("rb") if whole is None else io.BytesIO(whole) as content:
            return pyarrow.csv.read_csv(
                pa.PythonFile(_WithLastRow(content, separator.join([LAST] * len(names))), mode="r"),
                read_options=pyarrow.csv.ReadOptions(
                    column_names=numbered, skip_rows=skipped, block_size=BLOCK, use_threads=use_threads
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=separator, newlines_in_values=True, invalid_row_handler=refuse
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(numbered, pa.string()),
                    include_columns=chosen or numbered[:1],
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )

    open_quote = f"{taken}, but a quote is left open, and the rest of the file is in it"
    try:
        columns = parse(use_threads=True)
    except pa.ArrowException as error:
        if bad_rows:
            with contextlib.suppress(pa.ArrowException):
                parse(use_threads=False)  # counts the rows
            row = bad_rows[-1]
            if LAST in row.text:
                raise DataError(open_quote) from None
            raise DataError(
                f"{taken}, but row {row.number - skipped} has {row.actual_columns} cells where the first has "
                f"{row.expected_columns}: {row.text[:60]}"
            ) from None
        if "UTF8" in str(error):
            raise DataError(f"{file}: not UTF-8; save it as UTF-8 ({_first_line(error)})") from None
        if "straddling" in str(error):
            raise DataError(f"{taken}, but a row is longer than {BLOCK} bytes: is a quote left open?") from None
        raise DataError(f"{taken}, but cannot be read: {_first_line(error)}") from None
    if columns[0][-1].as_py() != LAST:
        raise DataError(open_quote)
    return Table(file, columns.slice(0, len(columns) - 1).select(chosen), tuple(names), frozenset(chosen), guessed)


class _WithLastRow(io.RawIOBase):
    """A file with one row more. Where that is not the last row read, it is inside of a quote that was never closed."""

    def __init__(self, content: BinaryIO, row: str) -> None:
        super().__init__()
        self._content, self._rest = content, b"\n" + row.encode() + b"\n"

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, nothing at the end."""
        found = self._content.read(size)
        if not found:
            found, self._rest = self._rest[:size], self._rest[size:]
        return found


def _separator(head: str) -> str:
    """What parts the columns: what makes a known name of the header, or else the most cells of the first row."""

    def cells(separator: str) -> list[str]:
        one = "\t" if len(separator) > 1 else separator
        rows = csv.reader(io.StringIO(head.replace(separator, one), newline=""), delimiter=one)
        return _names(next((row for row in rows if row), []))

    found = {separator: cells(separator) for separator in SEPARATORS}
    return max(SEPARATORS, key=lambda one: (len({"user_id", "item_id"} & set(found[one])), len(found[one])))


def _names(cells: list[str]) -> list[str]:
    """A header's names, without blanks, a type behind them as RecBole has it, and as we call them."""
    names = [cell.strip() for cell in cells]
    names = [match["name"] if (match := _TYPED_NAME.match(name)) else name for name in names]
    return [name if ALIASES.get(name, name) in names else ALIASES[name] for name in names]


def _columns_without_header(file: Path, rows: list[list[str]], wanted: set[str]) -> list[str]:
    """Which column is which, in a file that does not say: user, item, and then the one that holds times."""
    width = len(rows[0])
    if "timestamp" not in wanted:
        raise DataError(f"{file}: no header; put a first line with the columns' names in front")

    def holds_times(place: int) -> bool:
        """Seconds since 1970 of this century or the last, or dates; never a rating."""
        cells = [row[place].strip() for row in rows if len(row) == width]
        return all(
            _NUMBER_OR_DATE.match(cell) and (len(cell) >= 8 and not re.match(r"[0-9]\.", cell)) for cell in cells
        )

    times = [place for place in range(2, width) if holds_times(place)]
    if width in {3, 4} and len(times) == 1:
        others = ["user_id", "item_id", "rating"][: width - 1]
        return [*others[: times[0]], "timestamp", *others[times[0] :]]
    raise DataError(
        f"{file}: no header, and which column is which does not show; expected user, item, then a time and perhaps a "
        f"rating, found {width} columns of which {len(times)} have times; put the names in front, as in "
        "`sed -i '1i user_id,item_id,timestamp' FILE`"
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
