"""Read tables from Parquet files or text files with columns, compressed or not, in one file or several.

The first bytes of a file tell its format. From a text file, only the wanted columns are kept, and their values stay
text: `007` is not 7, `NA` is an ordinary value, and only an empty cell is null.
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

ENDINGS = (".csv", ".tsv", ".txt", ".inter", ".dat", ".data")  # of the text files that are read from a folder
PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
FORMS = (
    f"Parquet, or UTF-8 text with columns separated by one of {' '.join(map(repr, SEPARATORS))}, optionally compressed"
)
HEAD = 2**20  # the first row must end within this number of bytes
SHOWN = 20  # most names of columns or files that a message lists
MISSING_PARTITION = "__HIVE_DEFAULT_PARTITION__"

_UNPACK: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ": lzma.decompress,
    b"\x28\xb5\x2f\xfd": lambda packed: pa.CompressedInputStream(pa.BufferReader(packed), "zstd").read(),
    b"\x04\x22\x4d\x18": lambda packed: pa.CompressedInputStream(pa.BufferReader(packed), "lz4").read(),
}
#: Formats that are recognised by their first bytes but cannot be read.
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
    """The wanted columns of a file, or of several files that make up one table.

    names: the names of all columns in the file. texts: the wanted columns that were read from text, so their types are
    not known; the other wanted columns have Parquet types. parts: the files of the table, with their row counts.
    notes: one message for each guess about the files.
    """

    file: Path
    columns: pa.Table
    names: tuple[str, ...]
    texts: frozenset[str]
    notes: tuple[str, ...] = ()
    parts: tuple[tuple[Path, int], ...] = field(default=(), repr=False)
    has_header: bool = True

    def column(self, name: str) -> pa.ChunkedArray:
        """A wanted column. Raises DataError if the table does not have it exactly once."""
        if self.names.count(name) > 1:
            raise DataError(f"{self.file}: there are {self.names.count(name)} columns {name}; keep one")
        if name not in self.columns.column_names:
            hint = "" if {"user_id", "item_id"} & set(self.names) else "; is the first line a header?"
            raise DataError(f"{self.file}: column {name} is missing; found {_listed(self.names)}{hint}")
        if not self.columns.num_rows:
            raise DataError(f"{self.file}: no rows")
        return self.columns[name]

    def row(self, number: int) -> str:
        """Names row `number` (from 0) in messages: counted from 1, and within its file if there are several files."""
        for file, rows in self.parts:
            if number < rows:
                return f"row {number + 1} of {file}"
            number -= rows
        return f"row {number + 1}"


def read_table(file: Path, wanted: Iterable[str]) -> Table:
    """Read the `wanted` columns of a file, or of all files in a folder or matching a glob, as one table.

    Missing columns are left out; `Table.column` reports them. Raises DataError if a file cannot be read.
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
    """Concatenate all data files in a folder, or matching a glob. Folder names `column=value` are columns too."""
    files, ignored = _data_files(place) if place.is_dir() else (_matching(place), [])
    parts: list[Table] = []
    for path in files:
        try:
            part = _read_file(path, wanted)
        except NoRows:
            continue  # an empty file has no header that could be compared
        columns = part.columns
        named = {name: value for name, value in _partition(path, place).items() if name not in part.names}
        for name in wanted & set(named):
            columns = columns.append_column(name, pa.array([named[name]] * len(columns), pa.string()))
        texts = part.texts | (wanted & set(named))
        names = (*part.names, *named)
        parts.append(Table(path, columns, names, texts, part.notes, has_header=part.has_header))
    if not parts:
        raise DataError(f"{place}: has no data file; expected Parquet, or text whose name ends in {' '.join(ENDINGS)}")
    first = parts[0]
    for part in parts:
        if set(part.columns.column_names) != set(first.columns.column_names):
            differing = ", ".join(sorted(set(part.columns.column_names) ^ set(first.columns.column_names)))
            raise DataError(f"{part.file}: its columns differ from those of {first.file}: {differing}")
        if _header(part) != _header(first):
            raise DataError(
                f"{part.file}: {_header(part)}, but {first.file} {_header(first)}; give all of them the same header"
            )
    tables, texts = _same_types(parts)
    notes = [f"{place}: ignored: {_listed(ignored)}"] if ignored else []
    guesses = [part.notes for part in parts if part.notes]
    if guesses:
        notes += [*guesses[0], *([f"{place}: the same in {len(guesses) - 1} other files"] if guesses[1:] else [])]
    counts = tuple((part.file.relative_to(place) if place.is_dir() else part.file, len(part.columns)) for part in parts)
    whole = pa.concat_tables(tables, promote_options="permissive")
    return Table(place, whole, first.names, texts, tuple(notes), counts)


def _header(part: Table) -> str:
    return "has a header" if part.has_header else f"has no header, and its columns are read as {', '.join(part.names)}"


def _same_types(parts: list[Table]) -> tuple[list[pa.Table], frozenset[str]]:
    """The parts with their columns in one order and with compatible types, and the names of the text columns."""
    names = parts[0].columns.column_names
    tables = [part.columns.select(names) for part in parts]
    texts = set(parts[0].texts)
    for position, name in enumerate(names):
        kinds = {table[name].type for table in tables}
        numbers = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds)
        if len(kinds) == 1 or (numbers and not texts & {name}):
            continue
        columns = [plain(part.columns[name], f"{part.file}: column {name}") for part in parts]
        if len({column.type for column in columns}) > 1:
            # Integers in some files and strings in others: convert all to text; the type of the ids is decided later.
            texts.add(name)
            columns = [column.cast(pa.string()) for column in columns]
        tables = [table.set_column(position, name, column) for table, column in zip(tables, columns, strict=True)]
    return tables, frozenset(texts)


def _matching(place: Path) -> list[Path]:
    names = glob.glob(str(place), recursive=True)  # noqa: PTH207 -- Path.glob refuses absolute patterns
    return sorted(path for path in map(Path, names) if path.is_file())


def _data_files(place: Path) -> tuple[list[Path], list[str]]:
    """The data files in a folder, and the names of its other files. Hidden files and Spark's _SUCCESS are left out."""
    if (place / "_delta_log").is_dir():
        raise DataError(f"{place}: a Delta table, whose files include deleted rows; write its rows as plain Parquet")
    paths = [Path(folder, name) for folder, _, names in os.walk(place, followlinks=True) for name in names]
    paths = sorted(path for path in paths if not _is_hidden(path.relative_to(place)) and path.is_file())
    parquet = [path for path in paths if _begins_with(path, b"PAR1")]
    text = [path for path in paths if _is_text(path) and path not in parquet]
    if parquet and text:
        raise DataError(f"{place}: has Parquet and text ({text[0].name}); name one kind, as in '{place}/*.parquet'")
    unpacked = {str(path).removesuffix(path.suffix) if path.suffix in PACKED else str(path) for path in text}
    if len(unpacked) < len(text):
        raise DataError(f"{place}: has a file both compressed and uncompressed; keep one of them")
    files = parquet or text
    return files, [str(path.relative_to(place)) for path in paths if path not in files]


def _is_hidden(path: Path) -> bool:
    return any(name.startswith((".", "_")) for name in path.parts)


def _is_text(path: Path) -> bool:
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return name.endswith(ENDINGS) or name.startswith("part-")


def _partition(file: Path, place: Path) -> dict[str, str | None]:
    """Columns given by the path: country=FR/part-0.parquet sets country to FR in all rows of the file."""
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
                raise DataError(f"{file}: the compressed file is damaged or cut off: {reason}") from None
            head = whole[:HEAD]
            break
    if head.startswith(b"PAR1"):
        return _read_parquet(file, wanted, whole)
    for magic, kind in _OTHERS.items():
        if head.lstrip().startswith(magic):
            raise DataError(f"{file}: {kind}. Supported are {FORMS}")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            whole = (file.read_bytes() if whole is None else whole).decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: begins as UTF-16, but is not valid UTF-16: {error.reason}") from None
        head = whole[:HEAD]
    if ".parquet" in file.suffixes:
        raise DataError(f"{file}: does not begin like Parquet; it has another format or is damaged")
    if b"\0" in head:
        raise DataError(f"{file}: neither Parquet nor text: it has zero bytes. Supported are {FORMS}")
    text = read_text(file, head.decode("utf-8-sig", "replace"), wanted, whole)
    texts = frozenset(text.columns.column_names)
    return Table(file, text.columns, tuple(text.names), texts, tuple(text.notes), has_header=text.has_header)


def _read_parquet(file: Path, wanted: set[str], whole: bytes | None) -> Table:
    try:
        source = pa.parquet.ParquetFile(file if whole is None else pa.BufferReader(whole))
        names = source.schema_arrow.names
        renamed = names_of(names)
        chosen = [
            name for name, ours in zip(names, renamed, strict=True) if ours in wanted and renamed.count(ours) == 1
        ]
        table = source.read(columns=chosen)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{file}: begins like Parquet, but cannot be read: {reason}") from None
    new_names = dict(zip(names, renamed, strict=True))
    columns = table.rename_columns([new_names[name] for name in table.column_names])
    return Table(file, columns, tuple(renamed), frozenset())


def _listed(names: Iterable[str]) -> str:
    """The first names, for a message; names with invisible characters are quoted and escaped."""
    names = list(names)
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
