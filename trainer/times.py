"""Times as people write them: epochs, dates, dates with times and zones. The first that is none is named."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainer.columns import numbers, plain, required
from trainer.errors import DataError
from trainer.files import Table

FORM = "2024-01-31 10:00:00, or seconds since 1970"
_TIME = (
    r"(?:(?:[T ] *)(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2}(?:[.,]\d+)?))?"
    r"(?: *(?P<half>[AaPp])\.?[Mm]\.?)?)?"
    r" *(?:[Zz]|UTC|GMT)? *(?:(?P<sign>[+-])(?P<zone_hour>\d{2}):?(?P<zone_minute>\d{2})?)?"
)
_YEAR_FIRST = r"^(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})" + _TIME + "$"
_YEAR_LAST = r"^(?P<first>\d{1,2})[-/.](?P<second_part>\d{1,2})[-/.](?P<year>\d{4})" + _TIME + "$"
_NUMERIC = r"^-?\d+(\.\d*)?([eE][+-]?\d+)?$"

Parts = dict[str, NDArray[np.float64]]


def timestamps(table: Table) -> NDArray[Any]:
    """Something that sorts as the column `timestamp` does; only their order within a user is used.

    Integers, numbers, dates and times of Parquet, or text that says one of them. Raises DataError naming the first row
    that is none of what the others are.
    """
    column = required(table, "timestamp")
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date64(kind):
        return np.asarray(column.cast(pa.int64()).to_numpy())
    if pa.types.is_date32(kind):
        return np.asarray(column.cast(pa.int32()).to_numpy())
    if pa.types.is_time(kind) or pa.types.is_duration(kind):
        raise DataError(f"{table.file}: column timestamp: expected integers or date and time, found {kind}")
    column = plain(column, f"{table.file}: column timestamp")
    if pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy())
    if pa.types.is_string(column.type):
        return _from_texts(pc.utf8_trim_whitespace(column), table)
    return numbers(table, "timestamp")


def _from_texts(texts: pa.ChunkedArray, table: Table) -> NDArray[Any]:
    """Numbers as they are, dates and times as microseconds since 1970. Each must have the form of the first."""
    with contextlib.suppress(pa.ArrowInvalid):  # the usual case, and the fastest
        return np.asarray(texts.cast(pa.int64()).to_numpy())
    for pattern in (_NUMERIC, _YEAR_FIRST, _YEAR_LAST):
        fits = pc.match_substring_regex(texts, pattern)
        if not fits[0].as_py():
            continue
        if not pc.all(fits).as_py():
            raise _refused(table, texts, pc.index(fits, False).as_py())
        if pattern == _NUMERIC:
            return np.asarray(texts.cast(pa.float64()).to_numpy())
        found = pc.extract_regex(texts.combine_chunks(), pattern)
        return _microseconds(found, table, texts, day_and_month_unknown=pattern == _YEAR_LAST)
    raise _refused(table, texts, 0)


def _microseconds(
    found: pa.StructArray, table: Table, texts: pa.ChunkedArray, *, day_and_month_unknown: bool
) -> NDArray[np.int64]:
    def number(name: str) -> NDArray[np.float64]:
        """A part of each, 0 where it is left out."""
        written = pc.replace_substring(found.field(name), ",", ".")
        return np.asarray(pc.if_else(pc.equal(written, ""), "0", written).cast(pa.float64()).to_numpy(False))

    if day_and_month_unknown:
        day, month = _day_and_month(number("first"), number("second_part"), table, texts)
    else:
        day, month = number("day"), number("month")
    half = np.asarray(pc.utf8_lower(found.field("half")).to_numpy(False))
    hour = number("hour")
    hour = np.where(half == "", hour, hour % 12 + 12 * (half == "p"))
    month_start = ((number("year") - 1970) * 12 + month - 1).astype(np.int64).astype("datetime64[M]")
    date = month_start.astype("datetime64[D]") + (day - 1).astype(np.int64)
    bad = (month < 1) | (month > 12) | (day < 1) | (date.astype("datetime64[M]") != month_start)
    bad |= (hour > 23) | (number("minute") > 59) | (number("second") >= 61)
    if bad.any():
        raise _refused(table, texts, int(np.argmax(bad)), "there is no such day or hour; ")
    minutes = hour * 60 + number("minute")
    sign = np.where(np.asarray(found.field("sign").to_numpy(False)) == "-", -1, 1)
    minutes = minutes - sign * (number("zone_hour") * 60 + number("zone_minute"))
    day_us = date.astype(np.int64) * 86_400_000_000
    return day_us + (minutes.astype(np.int64) * 60_000_000) + np.rint(number("second") * 1e6).astype(np.int64)


def _day_and_month(
    first: NDArray[np.float64], second: NDArray[np.float64], table: Table, texts: pa.ChunkedArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of 31/01/2024 and 01/31/2024 which is which, if some row tells."""
    day_first, month_first = first > 12, second > 12
    if day_first.any() and month_first.any():
        minority = day_first if day_first.sum() < month_first.sum() else month_first
        raise _refused(table, texts, int(np.argmax(minority)), "other rows have day and month the other way round; ")
    if not month_first.any() and pc.all(pc.match_substring_regex(texts, r"^\d+\.\d+\.")).as_py():
        return first, second  # 31.01.2024: who writes points writes the day first
    if not (day_first.any() or month_first.any()):
        raise _refused(table, texts, 0, "no row tells which is the day and which the month; ")
    return (first, second) if day_first.any() else (second, first)


def _refused(table: Table, texts: pa.ChunkedArray, row: int, why: str = "") -> DataError:
    shown = texts[row].as_py()[:40]
    return DataError(
        f"{table.file}: column timestamp, row {row + 1}: {shown!r} is no time; {why}expected one form in all rows, "
        f"like {FORM}"
    )
