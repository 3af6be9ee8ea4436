"""Parse timestamps: numbers, dates, and dates with times and zones. Errors name the first row that is not a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainer.data.columns import numbers, required
from trainer.data.files import Table
from trainer.data.plain import plain
from trainer.errors import DataError

FORM = "2024-01-31 10:00:00, or seconds since 1970"
_TIME = (
    r"(?:(?:[T ] *)(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9})\d*)?)?"
    r"(?: *(?P<half>[AaPp])\.?[Mm]\.?)?)?"
    r" *(?:[Zz]|UTC|GMT)? *(?:(?P<sign>[+-])(?P<zone_hour>\d{2}):?(?P<zone_minute>\d{2})?)? *(?:UTC|GMT)?"
)
_YEAR_FIRST = r"^(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})" + _TIME + "$"
_MONTH_FIRST = r"^(?P<month>\d{1,2})[-/.](?P<day>\d{1,2})[-/.](?P<year>\d{4})" + _TIME + "$"
_DAY_FIRST = r"^(?P<day>\d{1,2})[-/.](?P<month>\d{1,2})[-/.](?P<year>\d{4})" + _TIME + "$"
_NUMERIC = r"^-?\d+(\.\d*)?([eE][+-]?\d+)?$"
_ABOVE_12 = r"(1[3-9]|[2-9]\d)[-/.]"
_NANOSECONDS_FROM, _NANOSECONDS_TO = 1678, 2262  # years whose nanoseconds since 1970 fit in 64 bits


def timestamps(table: Table) -> NDArray[Any]:
    """Numbers that sort like the column `timestamp`; only their order within a user is used.

    The column has Parquet's integers, floats, dates or times, or text in which all rows have the same form. Raises
    DataError naming the first row of a different form.
    """
    column = required(table, "timestamp")
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date64(kind):
        return np.asarray(column.cast(pa.int64()).to_numpy())
    if pa.types.is_date32(kind):
        return np.asarray(column.cast(pa.int32()).to_numpy())
    if pa.types.is_integer(kind):
        return np.asarray(column.to_numpy())
    if pa.types.is_time(kind) or pa.types.is_duration(kind) or pa.types.is_boolean(kind):
        raise DataError(f"{table.file}: column timestamp: expected integers or date and time, found {kind}")
    column = plain(column, f"{table.file}: column timestamp")
    if pa.types.is_string(column.type):
        return _from_texts(pc.utf8_trim_whitespace(column), table)
    return numbers(table, "timestamp")


def _from_texts(texts: pa.ChunkedArray, table: Table) -> NDArray[Any]:
    """Times as numbers: numeric texts unchanged, dates as time since 1970. All rows must have the first row's form."""
    for pattern in (_NUMERIC, _YEAR_FIRST, _MONTH_FIRST):
        fits = pc.match_substring_regex(texts, pattern)
        if not fits[0].as_py():
            continue
        if not pc.all(fits).as_py():
            raise _refused(table, texts, pc.index(fits, False).as_py())
        if pattern == _NUMERIC:
            return _from_numbers(texts, table)
        if pattern == _MONTH_FIRST and _is_day_first(texts, table):
            pattern = _DAY_FIRST  # noqa: PLW2901
        years = pc.extract_regex(texts, r"(?P<year>\d{4})")
        # Use nanoseconds only if the texts have them, because nanoseconds of distant years do not fit in 64 bits.
        fine = pc.any(pc.match_substring_regex(texts, r"\d:\d{2}[.,]\d{7}")).as_py() and all(
            _NANOSECONDS_FROM <= int(pc.min_max(chunk.field("year"))[bound].as_py()) < _NANOSECONDS_TO
            for chunk in years.chunks
            if len(chunk)
            for bound in ("min", "max")
        )
        parts, done = [], 0
        for chunk in texts.chunks:
            parts.append(_since_1970(pc.extract_regex(chunk, pattern), table, texts, done, fine=fine))
            done += len(chunk)
        return np.concatenate(parts)
    raise _refused(table, texts, 0)


def _from_numbers(texts: pa.ChunkedArray, table: Table) -> NDArray[Any]:
    try:
        return np.asarray(texts.cast(pa.int64()).to_numpy())
    except pa.ArrowInvalid:  # a number has a decimal point, or exceeds 64 bits
        values = np.asarray(texts.cast(pa.float64()).to_numpy())
    if not np.isfinite(values).all():
        raise _refused(table, texts, int(np.argmin(np.isfinite(values))))
    return values


def _is_day_first(texts: pa.ChunkedArray, table: Table) -> bool:
    """Whether dates have the form 31/01/2024, not 01/31/2024. Raises DataError if no row shows which."""
    day_first = pc.match_substring_regex(texts, f"^{_ABOVE_12}")
    month_first = pc.match_substring_regex(texts, rf"^\d{{1,2}}[-/.]{_ABOVE_12}")
    days, months = pc.sum(day_first).as_py(), pc.sum(month_first).as_py()
    if days and months:
        minority = day_first if days < months else month_first
        raise _refused(
            table, texts, pc.index(minority, True).as_py(), "Other rows have day and month in the other order. "
        )
    if not months and pc.all(pc.match_substring_regex(texts, r"^\d+\.\d+\.")).as_py():
        return True  # dates with points, such as 31.01.2024, have the day first
    if not (days or months):
        raise _refused(table, texts, 0, "No row shows which number is the day and which the month. ")
    return bool(days)


def _since_1970(
    fields: pa.StructArray, table: Table, texts: pa.ChunkedArray, start: int, *, fine: bool
) -> NDArray[np.int64]:
    """Microseconds since 1970, or nanoseconds if `fine`. fields: the parsed times, from row `start` of `texts` on."""

    def number(name: str) -> NDArray[np.int64]:
        """The numbers in one field, 0 if the field is empty."""
        text = fields.field(name)
        return np.asarray(pc.if_else(pc.equal(text, ""), "0", text).cast(pa.int64()).to_numpy(False))

    half = np.asarray(pc.utf8_lower(fields.field("half")).to_numpy(False))
    hour, minute, second, month = number("hour"), number("minute"), number("second"), number("month")
    bad = (half != "") & ((hour < 1) | (hour > 12))
    hour = np.where(half == "", hour, hour % 12 + 12 * (half == "p"))
    month_start = ((number("year") - 1970) * 12 + month - 1).astype("datetime64[M]")
    date = month_start.astype("datetime64[D]") + (number("day") - 1)
    bad |= (month < 1) | (month > 12) | (date.astype("datetime64[M]") != month_start)
    bad |= (hour > 23) | (minute > 59) | (second > 60)
    if bad.any():
        raise _refused(table, texts, start + int(np.argmax(bad)), "There is no such date or time. ")
    sign = np.where(np.asarray(fields.field("sign").to_numpy(False)) == "-", -1, 1)
    minutes = hour * 60 + minute - sign * (number("zone_hour") * 60 + number("zone_minute"))
    seconds = date.astype(np.int64) * 86_400 + minutes * 60 + second
    fraction = np.asarray(pc.utf8_rpad(fields.field("fraction"), 9, "0").cast(pa.int64()).to_numpy(False))
    return np.asarray(seconds * 10**9 + fraction if fine else seconds * 10**6 + fraction // 1000)


def _refused(table: Table, texts: pa.ChunkedArray, row: int, why: str = "") -> DataError:
    shown = texts[row].as_py()[:40]
    return DataError(
        f"{table.file}: column timestamp, {table.row(row)}: {shown!r} is not a time. {why}All rows must have the "
        f"same form, like {FORM}"
    )
