"""Read text files with columns: find the separator and the column names, and check that no quote merges rows."""

from __future__ import annotations

import collections
import contextlib
import csv
import io
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numba import njit
from numpy.typing import NDArray

from trainer.errors import DataError

SEPARATORS = (",", "\t", ";", "|", "::")
QUOTED = (",", ";")  # with these separators a wrong quote is an error; with others it makes quotes ordinary characters
BLOCK = 16 * 2**20  # bytes parsed at once, and the longest row
SAMPLE = 1000  # rows examined to identify the columns of a file without header

#: Column names of other publishers: GroupLens from 20M on, Amazon reviews of 2023.
ALIASES = {"userid": "user_id", "movieid": "item_id", "itemid": "item_id", "parent_asin": "item_id"}
NAMES = {"user_id", "item_id", "timestamp", "rating", "weight"}
BLANKS = " \t\u00a0\u200b\ufeff"  # stripped from names: visible and invisible blanks

_TYPED_NAME = re.compile(r"(?P<name>.+):(token|float)(_seq)?\Z")  # a name with its type in RecBole's .inter files
_EXCEL = re.compile(r"sep=(.)\r?\n")  # a first line that names the separator for Excel
_DATA = re.compile(r"-?[0-9][0-9.,:/ TZ+-]*([AaPp][Mm])?\Z")  # a number or date, so not a column name
#: A time: seconds since 1970, a date, or a date without separators (20240131). A rating has none of these forms.
_TIME = re.compile(
    r"[0-9]{9,19}(\.[0-9]+)?|(19|20)[0-9]{6}"
    r"|[0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}.*|[0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{4}.*"
)
# State of the scan for quotes: position, line, line of the opening quote, whether the value has line breaks, last byte.
_WHERE, _LINE, _OPENED, _BREAKS, _LAST = range(5)
_AT_START, _IN_VALUE, _IN_QUOTES, _BEHIND_QUOTE = range(4)


def names_of(header: list[str]) -> list[str]:
    """The names of a header in our spelling: USER_ID and userId become user_id. RecBole's types are removed."""
    names = [cell.strip(BLANKS) for cell in header]
    names = [match["name"] if (match := _TYPED_NAME.match(name)) else name for name in names]
    original, renamed = set(names), []
    for name in names:
        plain = re.sub("[ -]", "_", name).lower()
        known = ALIASES.get(plain, plain)
        renamed.append(known if known in NAMES and known not in original else name)
    return renamed


@dataclass(frozen=True)
class Text:
    """The wanted columns of a text file as strings, the names of all its columns, and a message for each guess."""

    columns: pa.Table
    names: list[str]
    has_header: bool
    notes: list[str]


def read_text(file: Path, head: str, wanted: set[str], whole: bytes | None) -> Text:
    """Read the wanted columns. head: the beginning of the file; whole: the file's content, if it is in memory already.

    Raises DataError.
    """
    separator, head, skipped = _separator(head)
    if len(separator) > 1:  # GroupLens' "::", which the CSV reader does not accept
        whole = (file.read_bytes() if whole is None else whole).replace(separator.encode(), b"\t")
        head, separator = head.replace(separator, "\t"), "\t"
    read_as = f"{file}: read as text with columns separated by {separator!r}"
    has_header = True
    notes: list[str] = []
    rows = csv.reader(io.StringIO(head, newline=""), delimiter=separator)
    try:
        first = next((row for row in rows if row), [])
        skipped += rows.line_num
        names = names_of(first)
        if not {"user_id", "item_id"} & set(names) and any(_DATA.match(cell.strip()) for cell in first):
            names = _columns_without_header(file, [first, *itertools.islice(filter(None, rows), SAMPLE)], wanted)
            has_header, skipped, notes = False, 0, [f"{file}: no header; columns read as {', '.join(names)}"]
    except csv.Error:
        raise DataError(
            f"{read_as}, but a value is longer than 128 KiB; is a quote left open, or is it not a table?"
        ) from None
    if not first:
        raise NoRows(f"{file}: no rows")
    with _opened(file, whole) as content:
        problem = _quotes_that_swallow_rows(content, separator)
    if problem and separator in QUOTED:
        raise DataError(f"{read_as}, but {problem}")
    if problem:
        notes.append(f"{file}: quotes are read as ordinary characters, because {problem}")
    table = _parse(file, whole, read_as, names, wanted, separator, skipped, quoted=not problem)
    return Text(table, names, has_header, notes)


class NoRows(DataError):
    """The file is empty and has no header. If the file is one of several parts of a table, it is skipped."""


def _opened(file: Path, whole: bytes | None) -> BinaryIO:
    return file.open("rb") if whole is None else io.BytesIO(whole)


def _parse(
    file: Path, whole: bytes | None, read_as: str, names: list[str], wanted: set[str], separator: str, skipped: int,
    *, quoted: bool,
) -> pa.Table:  # fmt: skip
    count = collections.Counter(names)
    chosen = [name for name in dict.fromkeys(names) if name in wanted and count[name] == 1]
    # Repeated names get a number, because pyarrow needs distinct names.
    numbered = [name if count[name] == 1 else f"{name} {index}" for index, name in enumerate(names)]
    bad_rows: list[pyarrow.csv.InvalidRow] = []

    def refuse(row: pyarrow.csv.InvalidRow) -> str:
        bad_rows.append(row)
        return "error"

    def parse(*, use_threads: bool) -> pa.Table:
        with _opened(file, whole) as content:
            return pyarrow.csv.read_csv(
                pa.PythonFile(content, mode="r"),
                read_options=pyarrow.csv.ReadOptions(
                    column_names=numbered, skip_rows=skipped, block_size=BLOCK, use_threads=use_threads
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=separator,
                    quote_char='"' if quoted else False,
                    newlines_in_values=quoted,
                    invalid_row_handler=refuse,
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(numbered, pa.string()),
                    include_columns=chosen or numbered[:1],
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )

    try:
        return parse(use_threads=True).select(chosen)
    except pa.ArrowException as error:
        if bad_rows:
            with contextlib.suppress(pa.ArrowException):
                parse(use_threads=False)  # a single thread counts the rows
            row = bad_rows[-1]
            raise DataError(
                f"{read_as}, but row {row.number - skipped} has {row.actual_columns} cells and the first row "
                f"{row.expected_columns}: {row.text[:60]!r}"
            ) from None
        reason = str(error).splitlines()[0]
        if "UTF8" in reason:
            index = re.search(r"column #([0-9]+)", reason)
            column = f"column {numbered[int(index[1])]} is" if index and int(index[1]) < len(numbered) else "it is"
            raise DataError(f"{file}: {column} not UTF-8; save the file as UTF-8") from None
        if "straddling" in reason:
            raise DataError(f"{read_as}, but a row is longer than {BLOCK} bytes") from None
        if "skip" in reason or "Empty CSV" in reason:
            return pa.table({name: pa.array([], pa.string()) for name in chosen})
        raise DataError(f"{read_as}, but cannot be read: {reason}") from None


def _separator(head: str) -> tuple[str, str, int]:
    """The separator, the text after an Excel line, and the number of Excel lines: 0 or 1.

    An Excel line is a first line such as `sep=;` that names the separator. Without such a line, choose the separator
    that gives the most known names in the first row; among equals, the one that gives the most cells.
    """
    if excel := _EXCEL.match(head):
        return excel[1], head[excel.end() :], 1

    def names(separator: str) -> list[str]:
        delimiter = "\t" if len(separator) > 1 else separator
        rows = csv.reader(io.StringIO(head.replace(separator, delimiter), newline=""), delimiter=delimiter)
        with contextlib.suppress(csv.Error):  # raised for a cell of more than 128 KiB: the separator is wrong
            return names_of(next((row for row in rows if row), []))
        return []

    headers = {separator: names(separator) for separator in SEPARATORS}
    best = max(SEPARATORS, key=lambda s: (len({"user_id", "item_id"} & set(headers[s])), len(headers[s])))
    return best, head, 0


def _columns_without_header(file: Path, rows: list[list[str]], wanted: set[str]) -> list[str]:
    """The column names of a file without header: user, item, and then the only column that holds times."""
    if "timestamp" not in wanted:
        raise DataError(f"{file}: no header; add a first line with the column names")
    width = len(rows[0])
    complete = [row for row in rows if len(row) == width]
    times = [column for column in range(2, width) if all(_TIME.fullmatch(row[column].strip()) for row in complete)]
    if width in {3, 4} and len(times) == 1:
        others = ["user_id", "item_id", "rating"][: width - 1]
        return [*others[: times[0]], "timestamp", *others[times[0] :]]
    raise DataError(
        f"{file}: no header, and the columns cannot be identified: expected user, item, then a time and optionally a "
        f"rating, found {width} columns, {len(times)} of them with times; add a line with the names, for example with "
        "`sed -i '1i user_id,item_id,timestamp' FILE`"
    )


def _quotes_that_swallow_rows(content: BinaryIO, separator: str) -> str:
    """Describe a wrong quote that would merge several rows into one value; empty if there is none.

    A value that begins with a quote ends at the next quote that is not doubled. If this second quote is not at the end
    of a cell, and the value has a line break, then the two quotes do not belong together, and the rows between them
    would be lost.
    """
    state = np.array([_AT_START, 1, 0, 0, 0])
    content.seek(len("\ufeff".encode()) if content.read(3) == "\ufeff".encode() else 0)
    while block := content.read(BLOCK):
        if _scan_quotes(np.frombuffer(block, np.uint8), ord(separator), state):
            return f"the quote in line {state[_OPENED]} is closed in the middle of a value in line {state[_LINE]}"
    return f"the quote in line {state[_OPENED]} is left open" if state[_WHERE] == _IN_QUOTES else ""


@njit(cache=True)
def _scan_quotes(block: NDArray[np.uint8], separator: int, state: NDArray[np.int64]) -> bool:
    """Continue the scan with `block`. Returns whether a quote is closed in the middle of a value."""
    for byte in block:
        line_break = byte in (10, 13)
        if line_break and not (byte == 10 and state[_LAST] == 13):
            state[_LINE] += 1
        state[_LAST] = byte
        if state[_WHERE] == _IN_QUOTES:
            if byte == 34:
                state[_WHERE] = _BEHIND_QUOTE
            elif line_break:
                state[_BREAKS] = 1
            continue
        if state[_WHERE] == _BEHIND_QUOTE:
            if byte == 34:  # a doubled quote stands for one quote
                state[_WHERE] = _IN_QUOTES
                continue
            if byte != separator and not line_break and state[_BREAKS]:
                return True
        if byte == separator or line_break:
            state[_WHERE] = _AT_START
        elif byte == 34 and state[_WHERE] == _AT_START:
            state[_WHERE], state[_OPENED], state[_BREAKS] = _IN_QUOTES, state[_LINE], 0
        else:
            state[_WHERE] = _IN_VALUE
    return False
