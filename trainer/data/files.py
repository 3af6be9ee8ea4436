"""Tables out of files as people have them: Parquet, or text with columns, compressed or not, in one file or many.

What a file is shows in its first bytes. Of text only the columns that are asked for are kept, each as the text that is
there: `007` is not 7, `NA` is a country, and only an empty cell is missing.
"""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet

from trainer.data.plain import plain
from trainer.data.text import SEPARATORS, NoRows, names_of, read_text
from trainer.errors import DataError

ENDINGS = (".csv", ".tsv", ".txt", ".inter", ".dat", ".data")  # of text, where a folder has other files too
PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
FORMS = f"Parquet, or UTF-8 text with columns parted by one of {' '.join(map(repr, SEPARATORS))}, perhaps compressed"
HEAD = 2**20  # bytes in which the first row must end
SHOWN = 20  # names of columns or files in a message
MISSING_PARTITION = "__HIVE_DEFAULT_PARTITION__"

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


@dataclass(frozen=True)
class Table:
    """Some columns of a file or of several that are one table.

    names: of all columns that it has. texts: the columns that come from text, so whose types are not known; the others
    have Parquet's. parts: the files it was put together from, and the rows of each. guessed: a line for each guess.
    """

    file: Path
    columns: pa.Table
    names: tuple[str, ...]
    texts: frozenset[str]
    guessed: tuple[str, ...] = ()
    parts: tuple[tuple[Path, int], ...] = field(default=(), repr=False)
    has_header: bool = True

    def column(self, name: str) -> pa.ChunkedArray:
        """A column that was asked for. Raises DataError when the table has it not, or twice."""
        if self.names.count(name) > 1:
            raise DataError(f"{self.file}: column {name} is there {self.names.count(name)} times; keep one")
        if name not in self.columns.column_names:
            hint = "" if {"user_id", "item_id"} & set(self.names) else "; is the first line not a header?"
            raise DataError(f"{self.file}: column {name} is missing; found {_listed(self.names)}{hint}")
        if not self.columns.num_rows:
            raise DataError(f"{self.file}: no rows")
        return self.columns[name]

    def row(self, number: int) -> str:
        """What a person calls the row with that number from 0: the file's, where there are several."""
        for file, rows in self.parts:
            if number < rows:
                return f"row {number + 1} of {file}"
            number -= rows
        return f"row {number + 1}"


def read_table(file: Path, wanted: Iterable[str]) -> Table:
    """Read the `wanted` columns of a file, a folder of files that are parts of one table, or a glob.

    Columns that are not there are left out; `Table.column` complains. Raises DataError for what cannot be read.
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
    files, passed_over = _data_files(place) if place.is_dir() else (_matching(place), [])
    parts: list[Table] = []
    for path in files:
        try:
            part = _read_file(path, wanted)
        except NoRows:
            continue  # an empty part has no header either
        columns = part.columns
        named = {name: value for name, value in _partition(path, place).items() if name not in part.names}
        for name in wanted & set(named):
            columns = columns.append_column(name, pa.array([named[name]] * len(columns), pa.string()))
        texts = part.texts | (wanted & set(named))
        names = (*part.names, *named)
        parts.append(Table(path, columns, names, texts, part.guessed, has_header=part.has_header))
    if not parts:
        raise DataError(f"{place}: no data file is there; expected Parquet, or text that ends in {' '.join(ENDINGS)}")
    first = parts[0]
    for part in parts:
        if set(part.columns.column_names) != set(first.columns.column_names):
            odd = ", ".join(sorted(set(part.columns.column_names) ^ set(first.columns.column_names)))
            raise DataError(f"{part.file}: has other columns than {first.file}: {odd}")
        if _header(part) != _header(first):
            raise DataError(
                f"{part.file}: {_header(part)}, but {first.file} {_header(first)}; give all of them the same header"
            )
    tables, texts = _same_types(parts)
    guessed = [f"{place}: passed over: {_listed(passed_over)}"] if passed_over else []
    told = [part.guessed for part in parts if part.guessed]
    if told:
        guessed += [*told[0], *([f"{place}: likewise in {len(told) - 1} other files"] if told[1:] else [])]
    counts = tuple((part.file.relative_to(place) if place.is_dir() else part.file, len(part.columns)) for part in parts)
    whole = pa.concat_tables(tables, promote_options="permissive")
    return Table(place, whole, first.names, texts, tuple(guessed), counts)


def _header(part: Table) -> str:
    return "has a header" if part.has_header else f"has no header, and columns taken as {', '.join(part.names)}"


def _same_types(parts: list[Table]) -> tuple[list[pa.Table], frozenset[str]]:
    """The parts' columns in one order and with types that go together; and which of them are texts."""
    names = parts[0].columns.column_names
    tables = [part.columns.select(names) for part in parts]
    texts = set(parts[0].texts)
    for place, name in enumerate(names):
        kinds = {table[name].type for table in tables}
        numbers = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds)
        if len(kinds) == 1 or (numbers and not texts & {name}):
            continue
        written = [plain(part.columns[name], f"{part.file}: column {name}") for part in parts]
        if len({column.type for column in written}) > 1:
            # Integers here and strings there: all are what they are written as, and understood together.
            texts.add(name)
            written = [column.cast(pa.string()) for column in written]
        tables = [table.set_column(place, name, column) for table, column in zip(tables, written, strict=True)]
    return tables, frozenset(texts)


def _matching(place: Path) -> list[Path]:
    names = glob.glob(str(place), recursive=True)  # noqa: PTH207 -- Path.glob refuses absolute patterns
    return sorted(path for path in map(Path, names) if path.is_file())


def _data_files(place: Path) -> tuple[list[Path], list[str]]:
    """The data files below a folder, and the names of the others, but for marks like Spark's _SUCCESS."""
    if (place / "_delta_log").is_dir():
        raise DataError(f"{place}: a Delta table, which has files of deleted rows too; write its rows as plain Parquet")
    found = [Path(folder, name) for folder, _, names in os.walk(place, followlinks=True) for name in names]
    found = sorted(path for path in found if not _is_hidden(path.relative_to(place)) and path.is_file())
    parquet = [path for path in found if _begins_with(path, b"PAR1")]
    text = [path for path in found if _is_text(path) and path not in parquet]
    if parquet and text:
        raise DataError(f"{place}: has Parquet and text ({text[0].name}); name one kind, as in '{place}/*.parquet'")
    unpacked = {str(path).removesuffix(path.suffix) if path.suffix in PACKED else str(path) for path in text}
    if len(unpacked) < len(text):
        raise DataError(f"{place}: has a file both compressed and not; keep one of them")
    files = parquet or text
    return files, [str(path.relative_to(place)) for path in found if path not in files]


def _is_hidden(path: Path) -> bool:
    return any(name.startswith((".", "_")) for name in path.parts)


def _is_text(path: Path) -> bool:
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return name.endswith(ENDINGS) or name.startswith("part-")


def _partition(file: Path, place: Path) -> dict[str, str | None]:
    """What a path like country=FR/part-0.parquet says of all rows in it."""
    folders = file.relative_to(place).parts[:-1] if place.is_dir() else file.parts[:-1]
    pairs = (folder.partition("=") for folder in folders)
    return {name: None if value == MISSING_PARTITION else unquote(value) for name, sign, value in pairs if sign}


def _begins_with(file: Path, magic: bytes) -> bool:
    with file.open("rb") as content:
        return content.read(len(magic)) == magic


def _read_file(file: Path, wanted: set[str]) -> Table:
    with file.open("rb") as start:
        head = start.read(HEAD)
        whole = None if file.is_file() else head + start.read()  # a pipe cannot be read twice
    for magic, unpack in _UNPACK.items():
        if head.startswith(magic):
            try:
                whole = unpack(file.read_bytes() if whole is None else whole)
            except (OSError, EOFError, lzma.LZMAError, zlib.error, pa.ArrowException) as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise DataError(f"{file}: compressed, and damaged or cut off: {reason}") from None
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
        raise DataError(f"{file}: neither Parquet nor text: it has bytes of 0. What is read is {FORMS}")
    text = read_text(file, head.decode("utf-8-sig", "replace"), wanted, whole)
    texts = frozenset(text.columns.column_names)
    return Table(file, text.columns, tuple(text.names), texts, tuple(text.guessed), has_header=text.has_header)


def _read_parquet(file: Path, wanted: set[str], whole: bytes | None) -> Table:
    try:
        source = pa.parquet.ParquetFile(file if whole is None else pa.BufferReader(whole))
        names = source.schema_arrow.names
        ours = names_of(names)
        chosen = [name for name, our in zip(names, ours, strict=True) if our in wanted and ours.count(our) == 1]
        table = source.read(columns=chosen)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{file}: begins as Parquet and cannot be read: {reason}") from None
    called = dict(zip(names, ours, strict=True))
    return Table(file, table.rename_columns([called[name] for name in table.column_names]), tuple(ours), frozenset())


def _listed(names: Iterable[str]) -> str:
    """Some names, for a message; with marks where they have characters that do not show."""
    names = list(names)
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
