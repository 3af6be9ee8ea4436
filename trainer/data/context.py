"""The users' context features out of the files' columns: fitted, or encoded as a version's schema has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.context import NUMBER, Category, ContextSchema, Number, as_number
from retrieval.query import Value
from trainer.data.columns import Indices
from trainer.data.files import Table
from trainer.data.plain import plain
from trainer.errors import DataError


@dataclass(frozen=True)
class UserRows:
    """A table that tells of users. rows: (U,), the row that tells of each user; -1: none does."""

    table: Table
    rows: Indices

    def column(self, name: str) -> pa.ChunkedArray:
        """The column's value for each user as int64, float64, bool or string; null where there is none.

        NaN and infinity are none: JSON has no such number, so no request could say it.
        """
        column = plain(self.table.column(name), f"{self.table.file}: column {name}")
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_finite(column), column, None)
        return column.take(pa.array(self.rows, mask=self.rows < 0))


@dataclass(frozen=True)
class UserContext:
    """The context of U users: encoded, and as a request would give it.

    categories: int64 (U, C) codes; numbers: float32 (U, M), standardised; columns: a feature each, (U,).
    """

    schema: ContextSchema
    categories: Indices
    numbers: NDArray[np.float32]
    columns: Sequence[pa.ChunkedArray] = field(default=(), repr=False)
    said: tuple[str, ...] = ()  # what a user should know of how they were read

    @classmethod
    def none(cls, users: int) -> UserContext:
        """Without any feature."""
        return cls(ContextSchema(), np.zeros((users, 0), np.int64), np.zeros((users, 0), np.float32))

    def raw(self, user: int) -> dict[str, Value]:
        """What a request says of the user with that index: values by feature name, None where there is none."""
        names = [feature.name for feature in self.schema.features]
        return {name: column[user].as_py() for name, column in zip(names, self.columns, strict=True)}


def read_context(
    specs: Sequence[str], sources: Sequence[UserRows], users: int, schema: ContextSchema | None = None
) -> UserContext:
    """The context of the columns that `specs` names. The first of the sources that has a column gives it.

    schema: that of the version that the users are measured with; None: one is fitted. Integers and floats are numbers,
    unless the spec ends in ":category"; of text a column is one if all its values are written so, which 00123 is not.
    Everything else is a category.
    """
    columns: list[pa.ChunkedArray] = []
    features: list[Category | Number] = []
    said: list[str] = []
    for place, spec in enumerate(specs):
        name, _, kind = spec.partition(":")
        source = next((source for source in sources if name in source.table.names), None)
        if source is None:
            files = ", ".join(str(source.table.file) for source in sources)
            raise DataError(f"context: column {name} is in none of {files}")
        column = source.column(name)
        what = f"{source.table.file}: column {name}"
        try:
            if schema:
                features.append(schema.features[place])
            elif kind == "number" or (kind == "" and _holds_numbers(column, what, name in source.table.texts, said)):
                features.append(Number.fit(name, _numbers(column, what)))
            else:
                features.append(Category.fit(name, pc.unique(column).to_pylist()))
        except ValueError as error:
            raise DataError(f"{what}: {error}") from None
        columns.append(column)
    codes = [_codes(f, column) for f, column in zip(features, columns, strict=True) if isinstance(f, Category)]
    numbers = [
        feature.encode_all(_numbers(column, f"column {feature.name}", refuse=False))
        for feature, column in zip(features, columns, strict=True)
        if isinstance(feature, Number)
    ]
    return UserContext(
        ContextSchema(tuple(features)),
        np.stack(codes, 1) if codes else np.zeros((users, 0), np.int64),
        np.stack(numbers, 1) if numbers else np.zeros((users, 0), np.float32),
        columns,
        tuple(said),
    )


def _holds_numbers(column: pa.ChunkedArray, what: str, is_text: bool, said: list[str]) -> bool:
    if is_text:
        written = pc.unique(pc.drop_null(pc.utf8_trim_whitespace(column)))
        written = written.filter(pc.not_equal(written, ""))
        number = pc.match_substring_regex(written, f"^{NUMBER}$")
        if pc.any(number).as_py() and not pc.all(number).as_py():
            other = written[pc.index(number, False).as_py()].as_py()
            said.append(f"{what}: a category, not a number, because of {other[:60]!r}")
        return bool(pc.all(number).as_py() and len(written))
    return bool(pa.types.is_integer(column.type) or pa.types.is_floating(column.type))


def _codes(category: Category, column: pa.ChunkedArray) -> Indices:
    """Each user's code, by the codes of the different values."""
    values = column.combine_chunks().dictionary_encode(null_encoding="encode")
    codes = np.array([category.encode(value) for value in values.dictionary.to_pylist()], np.int64)
    return np.asarray(codes[values.indices.to_numpy(zero_copy_only=False)])


def _numbers(column: pa.ChunkedArray, what: str, *, refuse: bool = True) -> NDArray[np.float64]:
    """Each user's number, NaN where there is none. refuse: raise DataError for the first text that is no number."""
    if not pa.types.is_string(column.type) and not pa.types.is_boolean(column.type):
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy())
    values = column.combine_chunks().dictionary_encode(null_encoding="encode")
    texts = values.dictionary.to_pylist()
    found = [as_number(value) for value in texts]
    for text, number in zip(texts, found, strict=True):
        if refuse and number is None and text is not None and not (isinstance(text, str) and not text.strip()):
            raise DataError(f"{what}: expected numbers, found {text!r}; name it {what.rsplit(' ', 1)[-1]}:category")
    known = np.array([np.nan if number is None else number for number in found])
    return np.asarray(known[values.indices.to_numpy(zero_copy_only=False)])
