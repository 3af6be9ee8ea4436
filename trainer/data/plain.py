"""Convert a column to one of int64, float64, bool or string."""

from __future__ import annotations

import uuid

import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import DataError


def plain(column: pa.ChunkedArray, label: str) -> pa.ChunkedArray:  # noqa: PLR0911 -- a table of types
    """The column as int64, float64, bool or string. UUIDs, dates and times become their text.

    Raises DataError for lists, structs, bytes that are not text, and numbers beyond 64 bits. label: the beginning of
    the error message.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_int64(kind) or pa.types.is_float64(kind):
        return column
    try:
        if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):
            return column.cast(pa.int64())
        if pa.types.is_floating(kind):
            return column.cast(pa.string()).cast(pa.float64())  # through text, so that a float32 of 0.1 becomes 0.1
        if pa.types.is_decimal(kind):
            return column.cast(pa.float64(), safe=False)
        if isinstance(kind, pa.UuidType):
            return _uuids(column)
        if pa.types.is_timestamp(kind):
            return _times(column)
        if pa.types.is_temporal(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return column.cast(pa.string())
        if "binary" in str(kind):
            return column.cast(pa.binary()).cast(pa.string())  # Hive and Impala write text as binary columns
    except pa.ArrowInvalid:
        reason = "bytes that are not UTF-8 text" if "binary" in str(kind) else "a number does not fit in int64"
        raise DataError(f"{label}: {reason}; cast the column to text") from None
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    raise DataError(f"{label}: expected numbers or strings, found {kind}; cast the column to text")


def _uuids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    storage = column.cast(pa.binary(16)).combine_chunks().dictionary_encode()
    texts = [None if value is None else str(uuid.UUID(bytes=value)) for value in storage.dictionary.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string()).take(storage.indices)])


def _times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times as text. The time of day, or the fraction of a second, is left out if it is zero in all rows."""
    for unit, shorter in (("day", pa.date32()), ("second", pa.timestamp("s", column.type.tz))):
        if pc.all(pc.equal(pc.floor_temporal(column, unit=unit), column)).as_py() is not False:
            return column.cast(shorter).cast(pa.string())
    return column.cast(pa.string())
