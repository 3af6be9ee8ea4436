"""Read the users' context features from columns of the files, and encode them with a fitted or a given schema."""

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
    """A table with facts about users. rows: (U,), the table's row for each user, or -1 if the user has no row."""

    table: Table
    rows: Indices

    def column(self, name: str) -> pa.ChunkedArray:
        """The column's value for each user as int64, float64, bool or string; null if the user has no value.

        NaN and infinity become null: JSON cannot express them, so no request can have them.
        """
        column = plain(self.table.column(name), f"{self.table.file}: column {name}")
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_finite(column), column, None)
        return column.take(pa.array(self.rows, mask=self.rows < 0))


@dataclass(frozen=True)
class UserContext:
    """The context of U users: encoded, and as raw values, as in a request.

    categories: int64 (U, C) codes; numbers: float32 (U, M), standardised; columns: the raw values (U,) per feature.
    """

    schema: ContextSchema
    categories: Indices
    numbers: NDArray[np.float32]
    columns: Sequence[pa.ChunkedArray] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()  # messages to print about how the columns were read

    @classmethod
    def none(cls, users: int) -> UserContext:
        """A context without features."""
        return cls(ContextSchema(), np.zeros((users, 0), np.int64), np.zeros((users, 0), np.float32))

    def raw(self, user: int) -> dict[str, Value]:
        """The context of the user with index `user` as in a request: values by feature name, None if missing."""
        names = [feature.name for feature in self.schema.features]
        return {name: column[user].as_py() for name, column in zip(names, self.columns, strict=True)}


def read_context(
    specs: Sequence[str], sources: Sequence[UserRows], users: int, schema: ContextSchema | None = None
) -> UserContext:
    """Read the columns that `specs` names, each from the first source that has it.

    schema: the schema of the version that is measured; None: fit a schema. Columns of integers or floats are numeric.
    A column of a text file is numeric if all its values are written as numbers; 00123 is not. All other columns are
    categories. A spec that ends in ":number" or ":category" sets the kind.
    """
    columns: list[pa.ChunkedArray] = []
    features: list[Category | Number] = []
    notes: list[str] = []
    for index, spec in enumerate(specs):
        name, _, kind = spec.partition(":")
        source = next((source for source in sources if name in source.table.names), None)
        if source is None:
            files = ", ".join(str(source.table.file) for source in sources)
            raise DataError(f"context: column {name} is in none of {files}")
        column = source.column(name)
        label = f"{source.table.file}: column {name}"
        try:
            if schema:
                features.append(schema.features[index])
            elif kind == "number" or (
                kind == "" and are_numbers(column, label, notes, is_text=name in source.table.texts)
            ):
                features.append(Number.fit(name, read_numbers(column, label)))
            else:
                features.append(Category.fit(name, pc.unique(column).to_pylist()))
        except ValueError as error:
            raise DataError(f"{label}: {error}") from None
        columns.append(column)
    codes = [_codes(f, column) for f, column in zip(features, columns, strict=True) if isinstance(f, Category)]
    numbers = [
        feature.encode_all(read_numbers(column, f"column {feature.name}", refuse=False))
        for feature, column in zip(features, columns, strict=True)
        if isinstance(feature, Number)
    ]
    return UserContext(
        ContextSchema(tuple(features)),
        np.stack(codes, 1) if codes else np.zeros((users, 0), np.int64),
        np.stack(numbers, 1) if numbers else np.zeros((users, 0), np.float32),
        columns,
        tuple(notes),
    )


def are_numbers(column: pa.ChunkedArray, label: str, notes: list[str], *, is_text: bool) -> bool:
    """Whether `column` has numbers and is not a category. Adds a message to `notes` if a text column has both.

    is_text: the column was read from a text file, so its type is not known.
    """
    if is_text:
        texts = pc.unique(pc.drop_null(pc.utf8_trim_whitespace(column)))
        texts = texts.filter(pc.not_equal(texts, ""))
        is_number = pc.match_substring_regex(texts, f"^{NUMBER}$")
        if pc.any(is_number).as_py() and not pc.all(is_number).as_py():
            first = texts[pc.index(is_number, False).as_py()].as_py()
            notes.append(f"{label}: a category, not a number, because of {first[:60]!r}")
        return bool(pc.all(is_number).as_py() and len(texts))
    return bool(pa.types.is_integer(column.type) or pa.types.is_floating(column.type))


def _codes(category: Category, column: pa.ChunkedArray) -> Indices:
    """The code of each user's value. Each distinct value is encoded once."""
    values = column.combine_chunks().dictionary_encode(null_encoding="encode")
    codes = np.array([category.encode(value) for value in values.dictionary.to_pylist()], np.int64)
    return np.asarray(codes[values.indices.to_numpy(zero_copy_only=False)])


def read_numbers(column: pa.ChunkedArray, label: str, *, refuse: bool = True) -> NDArray[np.float64]:
    """Each row's number, NaN if missing. refuse: raise DataError for the first text that is not a number."""
    if not pa.types.is_string(column.type) and not pa.types.is_boolean(column.type):
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy())
    values = column.combine_chunks().dictionary_encode(null_encoding="encode")
    texts = values.dictionary.to_pylist()
    parsed = [as_number(value) for value in texts]
    for text, number in zip(texts, parsed, strict=True):
        if refuse and number is None and text is not None and not (isinstance(text, str) and not text.strip()):
            raise DataError(f"{label}: expected numbers, found {text!r}; name it {label.rsplit(' ', 1)[-1]}:category")
    numbers = np.array([np.nan if number is None else number for number in parsed])
    return np.asarray(numbers[values.indices.to_numpy(zero_copy_only=False)])
