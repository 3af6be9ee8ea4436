"""The user's context features: which columns, how they are encoded, and the codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainer.errors import DataError
from trainer.files import Index

MAX_CATEGORIES = 100_000  # different values of a categorical feature


@dataclass(frozen=True)
class ContextSchema:
    """How the user's context features are encoded; goes into the version as context.json.

    categorical: name -> its values; a value's code is its place plus 1, and 0 is unknown or absent.
    numeric: name -> (mean, standard deviation) over the users; absent counts as the mean.
    """

    categorical: dict[str, list[str]]
    numeric: dict[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        numeric = {name: {"mean": mean, "std": std} for name, (mean, std) in self.numeric.items()}
        return {"categorical": self.categorical, "numeric": numeric}


@dataclass(frozen=True)
class UserColumns:
    """A file that tells of users. rows: (U,), the row of `table` that tells of each user; -1: none does."""

    file: Path
    table: pa.Table
    rows: Index

    def column(self, name: str) -> pa.ChunkedArray:
        """The column's value for each user, null where there is none."""
        return self.table[name].take(pa.array(self.rows, mask=self.rows < 0))


def encode_context(
    specs: tuple[str, ...], sources: list[UserColumns], users: int
) -> tuple[ContextSchema, Index, NDArray[np.float32]]:
    """The schema and the users' codes (U, C) and standardised numbers (U, M), of the columns `specs` names.

    The first source that has a column gives it. Integers and floats are numeric, unless the spec ends in
    ":categorical"; everything else is categorical.
    """
    schema = ContextSchema({}, {})
    codes: list[Index] = []
    numbers: list[NDArray[np.float64]] = []
    for spec in specs:
        name, _, kind = spec.partition(":")
        source = next((source for source in sources if name in source.table.column_names), None)
        if source is None:
            raise DataError(f"context: column {name} is in none of {', '.join(str(s.file) for s in sources)}")
        column = source.column(name)
        if kind != "categorical" and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            standardised, mean, std = _standardised(column, f"{source.file}: column {name}")
            schema.numeric[name] = (mean, std)
            numbers.append(standardised)
        else:
            found, values = _coded(column, f"{source.file}: column {name}")
            schema.categorical[name] = values
            codes.append(found)
    return (
        schema,
        np.stack(codes, 1) if codes else np.zeros((users, 0), np.int64),
        np.stack(numbers, 1).astype(np.float32) if numbers else np.zeros((users, 0), np.float32),
    )


def _standardised(column: pa.ChunkedArray, what: str) -> tuple[NDArray[np.float64], float, float]:
    values = column.cast(pa.float64(), safe=False).to_numpy()
    known = values[np.isfinite(values)]
    if not len(known):
        raise DataError(f"{what}: no user has a finite value")
    with np.errstate(over="ignore"):
        mean, std = float(known.mean()), float(known.std()) or 1.0
    if not (np.isfinite(mean) and np.isfinite(std)):
        raise DataError(f"{what}: its values are too large to standardise")
    return np.where(np.isfinite(values), (values - mean) / std, 0.0), mean, std


def _coded(column: pa.ChunkedArray, what: str) -> tuple[Index, list[str]]:
    try:
        texts = column.cast(pa.string())
    except pa.ArrowException:
        raise DataError(f"{what}: expected numbers or strings, found {column.type}") from None
    values = sorted(value for value in pc.unique(texts).to_pylist() if value is not None)
    if len(values) > MAX_CATEGORIES:
        raise DataError(f"{what}: {len(values)} values; at most {MAX_CATEGORIES} are learned")
    place = pc.fill_null(pc.index_in(texts, pa.array(values, pa.string())), -1)
    return place.to_numpy().astype(np.int64) + 1, values
