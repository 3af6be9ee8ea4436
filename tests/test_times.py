"""Times as people write them, in text and in Parquet; an error names the first that is invalid, and what to write."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.files import read_table
from trainer.data.times import timestamps
from trainer.errors import DataError


def times_of(folder: Path, *cells: str, form: str = "csv") -> list[int | float]:
    """The times read from a CSV or Parquet file whose column `timestamp` has these cells."""
    file = folder / f"x.{form}"
    if form == "csv":
        file.write_text("item_id,timestamp\n" + "".join(f'a,"{cell}"\n' for cell in cells))
    else:
        pq.write_table(pa.table({"timestamp": list(cells)}), file)
    times: list[int | float] = timestamps(read_table(file, {"timestamp"})).tolist()
    return times


def microseconds(moment: datetime) -> int:
    """The microseconds since 1970."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


MOMENT = datetime(2024, 1, 31, 10, 0, 5, tzinfo=UTC)


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("cell", "moment"),
    [
        ("2024-01-31 10:00:05", MOMENT),
        ("2024-01-31T10:00:05", MOMENT),
        ("2024-01-31T10:00:05Z", MOMENT),
        ("2024-01-31 10:00:05 UTC", MOMENT),
        ("2024-01-31 10:00:05.25 UTC", MOMENT + timedelta(milliseconds=250)),
        ("2024-01-31 10:00:05.123456", MOMENT + timedelta(microseconds=123_456)),
        ("2024-01-31 10:00:05,5", MOMENT + timedelta(milliseconds=500)),
        ("2024-01-31T11:30:05+01:30", MOMENT),
        ("2024-01-31T05:00:05-0500", MOMENT),
        ("2024-01-31 12:00:05+02", MOMENT),
        ("2024-01-31 12:00:05 +0200 UTC", MOMENT),
        ("2024-01-31 10:00", MOMENT.replace(second=0)),
        ("2024-1-31 9:00", MOMENT.replace(hour=9, second=0)),
        ("2024/01/31", MOMENT.replace(hour=0, second=0)),
        ("2024-01-31", MOMENT.replace(hour=0, second=0)),
        ("01/31/2024 10:00", MOMENT.replace(second=0)),
        ("1/31/2024 10:00:05 PM", MOMENT.replace(hour=22)),
        ("1/31/2024 12:00 am", MOMENT.replace(hour=0, second=0)),
        ("31/01/2024 10:00:05", MOMENT),
        ("31.01.2024 10:00:05", MOMENT),
        ("1969-12-31 23:59:59", datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("2024-02-29", datetime(2024, 2, 29, tzinfo=UTC)),
    ],
)
def test_dates_and_times(tmp_path: Path, form: str, cell: str, moment: datetime) -> None:
    """Each form is read as microseconds since 1970."""
    assert times_of(tmp_path, cell, form=form) == [microseconds(moment)]


def test_zones_and_fractions_may_differ_from_row_to_row(tmp_path: Path) -> None:
    """Each cell is read with its own zone and fraction."""
    cells = ["2024-01-31 10:00:05.5", "2024-01-31T12:00:05+02:00", "2024-01-31 10:00"]
    zone = timezone(timedelta(hours=2))

    assert times_of(tmp_path, *cells) == [
        microseconds(moment)
        for moment in (
            MOMENT + timedelta(milliseconds=500),
            datetime(2024, 1, 31, 12, 0, 5, tzinfo=zone),
            MOMENT.replace(second=0),
        )
    ]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_numbers(tmp_path: Path, form: str) -> None:
    """Integers are kept exactly, other numbers as floats."""
    assert times_of(tmp_path, "1700000000", "-3", form=form) == [1700000000, -3]
    assert times_of(tmp_path, "1700000000123456789", "1700000000123456788", form=form) == [
        1700000000123456789,
        1700000000123456788,
    ]
    assert times_of(tmp_path, "1700000000.5", "1.7e9", "7", form=form) == [1700000000.5, 1.7e9, 7.0]


def test_nanoseconds_keep_their_order(tmp_path: Path) -> None:
    """Text with nine digits after the second is read as nanoseconds since 1970."""
    second, first = times_of(tmp_path, "2024-01-31 10:00:05.123456789", "2024-01-31 10:00:05.123456788")

    assert second - first == 1
    assert first == microseconds(MOMENT) * 1000 + 123_456_788


def test_dates_with_points_are_day_first(tmp_path: Path) -> None:
    """Also when no row shows which number is the day."""
    first, second = times_of(tmp_path, "02.01.2024", "01.02.2024")

    assert first < second


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["2024-01-31", "2024-02-30"], "row 2: '2024-02-30' is not a time. There is no such date or time. All"),
        (["2024-01-31", "2024-13-01"], "row 2: '2024-13-01' is not a time"),
        (["2024-01-31 10:00", "2024-01-31 24:01"], "row 2: '2024-01-31 24:01' is not a time"),
        (["2024-01-31", "yesterday"], "row 2: 'yesterday' is not a time. All rows must have the same form, like"),
        (["2024-01-31", "1700000000"], "row 2: '1700000000' is not a time"),
        (["1700000000", "2024-01-31"], "row 2: '2024-01-31' is not a time"),
        (["Jan 31, 2024"], "row 1: 'Jan 31, 2024' is not a time"),
        (["31/01/24"], "row 1: '31/01/24' is not a time"),
        (["01/02/2024", "03/04/2024"], "row 1: '01/02/2024' is not a time. No row shows which number is the day"),
        (["01/31/2024", "01/30/2024", "31/01/2024"], "row 3: '31/01/2024' is not a time. Other rows have day and"),
        (["2024-01-31", ""], "row 2: no value"),
        (["2024-01-31", " "], "row 2: '' is not a time"),
        (["nan"], "row 1: 'nan' is not a time"),
        (["5", "0x10"], "row 2: '0x10' is not a time"),
        (["5", "1e999"], "row 2: '1e999' is not a time"),
        (["1/31/2024 13:00 PM"], "row 1: '1/31/2024 13:00 PM' is not a time"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_an_invalid_time_is_named(tmp_path: Path, form: str, cells: list[str], message: str) -> None:
    """The error has the file, the column, the row, the value, and the form that was expected."""
    if form == "parquet":
        message = message.replace("no value", "'' is not a time")

    with pytest.raises(DataError) as refused:
        times_of(tmp_path, *cells, form=form)

    assert f"x.{form}: column timestamp, {message}" in str(refused.value)
