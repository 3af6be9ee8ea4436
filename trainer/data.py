"""Interactions, items and users from Parquet or CSV: vocabularies, sequences, context features and splits.

Interactions have user_id, item_id, timestamp and perhaps rating; items have item_id; users have user_id. Ids are
integers or strings. Everything ends in a few flat arrays: 4 bytes an interaction, an id an item and a user.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from trainer.config import TrainConfig
from trainer.errors import DataError

#: int64 (V,), or object (V,) of str. Ascending.
Ids = NDArray[np.int64] | NDArray[np.object_]
Index = NDArray[np.int64]
MAX_ID_LENGTH = 256  # characters of a string id; the service refuses longer ones
MAX_CATEGORIES = 100_000  # different values of a categorical context feature


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
class Dataset:
    """The sequences of U users over V items.

    item_ids: (V,) and user_ids: (U,), ascending. items: int32 (N,), item indices, user by user, each in time
    order. offsets: int64 (U + 1,). categories: int64 (U, C) codes; numbers: float32 (U, M), standardised.
    """

    item_ids: Ids
    user_ids: Ids
    items: NDArray[np.int32]
    offsets: NDArray[np.int64]
    schema: ContextSchema
    categories: NDArray[np.int64]
    numbers: NDArray[np.float32]

    def sequence(self, user: int) -> NDArray[np.int32]:
        """All items of the user with index `user`, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


@dataclass(frozen=True)
class Split:
    """Who is trained on, how far into each sequence, and who is measured.

    train_users, test_users: int64, user indices. train_length: int64 (U,), the items of each sequence that
    training may see. history_length: int64 (U,), the items that are a test user's history; the rest is truth.
    """

    train_users: Index
    test_users: Index
    train_length: Index
    history_length: Index


def split_users(dataset: Dataset, config: TrainConfig) -> Split:
    """The split that `config` names, drawn from its seed alone.

    users: held-out users, first half history, second half truth (Sec. 4.1). last-out: everybody's last item.
    Raises DataError when too few users are left to train on.
    """
    lengths = np.diff(dataset.offsets)
    users = len(lengths)
    wanted = min(1000, users // 10) if config.test_users == "auto" else config.test_users
    shuffled = np.random.default_rng(config.seed).permutation(np.flatnonzero(lengths >= 2))
    test = np.sort(shuffled[:wanted])
    if config.split == "users":
        train = np.setdiff1d(np.arange(users), test)
        train_length, history_length = lengths, lengths // 2
    else:
        train = np.arange(users)
        train_length = history_length = np.maximum(lengths - 1, 1)
    if not len(train):
        raise DataError(f"test_users: all {users} users were held out; hold out fewer than test_users = {wanted}")
    return Split(train, test, train_length, history_length)


def load_dataset(
    interactions: Path, config: TrainConfig, items: Path | None = None, users: Path | None = None
) -> Dataset:
    """Read and filter the files. Raises DataError naming file, column and row."""
    table = _read(interactions)
    user_index, user_ids = _encode(table, "user_id", interactions)
    item_index, item_ids = _encode(table, "item_id", interactions)
    times = _timestamps(table, interactions)
    rows = np.arange(len(times))
    if config.min_rating is not None:
        rows = rows[_numbers(table, "rating", interactions) >= config.min_rating]
    rows = rows[np.bincount(user_index[rows], minlength=len(user_ids))[user_index[rows]] >= config.min_interactions]
    if not len(rows):
        raise DataError(
            f"{interactions}: no rows are left of {len(times)} after min_rating = {config.min_rating} "
            f"and min_interactions = {config.min_interactions}; lower them"
        )
    rows = rows[np.lexsort((times[rows], user_index[rows]))]
    kept_users, user_index = np.unique(user_index[rows], return_inverse=True)
    kept_items, item_index = np.unique(item_index[rows], return_inverse=True)
    user_ids, vocabulary = user_ids[kept_users], item_ids[kept_items]
    if items is not None:
        _, catalogue = _encode(_read(items), "item_id", items)
        if catalogue.dtype != vocabulary.dtype:
            raise DataError(f"{items}: column item_id: expected the type it has in {interactions}")
        merged = np.union1d(vocabulary, catalogue)
        item_index, vocabulary = np.searchsorted(merged, vocabulary)[item_index], merged
    offsets = np.searchsorted(user_index, np.arange(len(user_ids) + 1)).astype(np.int64)
    latest = table.take(pa.array(rows[offsets[1:] - 1])) if config.context else table
    return Dataset(
        vocabulary,
        user_ids,
        item_index.astype(np.int32),
        offsets,
        *_context(config.context, user_ids, latest, interactions, users),
    )


def _read(file: Path) -> pa.Table:
    try:
        if file.suffix.lower() in {".csv", ".tsv"}:
            delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
            return pyarrow.csv.read_csv(file, parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter))
        return pyarrow.parquet.read_table(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    except pa.ArrowException as error:
        kind = "CSV" if file.suffix.lower() in {".csv", ".tsv"} else "Parquet"
        raise DataError(f"{file}: not {kind}: {str(error).splitlines()[0]}") from None


def _column(table: pa.Table, name: str, file: Path) -> pa.Array:
    """The column, without nulls. Raises DataError when it is missing or has nulls."""
    if table.column_names.count(name) != 1:
        raise DataError(f"{file}: column {name} is missing; found {', '.join(table.column_names)}")
    if not table.num_rows:
        raise DataError(f"{file}: no rows")
    column = table[name].combine_chunks()
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{file}: column {name}, row {row + 1}: null; drop or fill such rows")
    if isinstance(column, pa.ChunkedArray):  # combine_chunks of a column without chunks
        column = pa.concat_arrays(column.chunks)
    return column


def _encode(table: pa.Table, name: str, file: Path) -> tuple[Index, Ids]:
    """Each row's index into the column's different ids, int64 (N,), and those ids, ascending."""
    column = _column(table, name, file)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type):
        try:
            numbers = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            raise DataError(f"{file}: column {name}: an id does not fit in int64; use strings") from None
        ids, index = np.unique(numbers, return_inverse=True)
        return index, ids
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        encoded = column.dictionary_encode()
        found = np.array(encoded.dictionary.to_pylist(), dtype=object)
        index = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        for row in np.flatnonzero([not 0 < len(i) <= MAX_ID_LENGTH for i in found])[:1]:
            where = int(np.argmax(index == row)) + 1
            raise DataError(f"{file}: column {name}, row {where}: expected 1 to {MAX_ID_LENGTH} characters")
        order = np.argsort(found)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return rank[index], found[order]
    raise DataError(f"{file}: column {name}: expected integers or strings, found {column.type}")


def _timestamps(table: pa.Table, file: Path) -> NDArray[Any]:
    """Something that sorts as the timestamps do. Only their order within a user is used."""
    column = _column(table, "timestamp", file)
    if pa.types.is_temporal(column.type) and not pa.types.is_duration(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False)).astype("datetime64[ns]").astype(np.int64)
    if pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if pa.types.is_floating(column.type):
        return _numbers(table, "timestamp", file)
    raise DataError(f"{file}: column timestamp: expected integers or date and time, found {column.type}")


def _numbers(table: pa.Table, name: str, file: Path) -> NDArray[np.float64]:
    """A column of finite numbers."""
    column = _column(table, name, file)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{file}: column {name}: expected numbers, found {column.type}")
    numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(~np.isfinite(numbers))[:1]:
        raise DataError(f"{file}: column {name}, row {row + 1}: expected a finite number, found {numbers[row]}")
    return np.asarray(numbers)


def _context(
    names: tuple[str, ...], user_ids: Ids, latest: pa.Table, interactions: Path, users: Path | None
) -> tuple[ContextSchema, Index, NDArray[np.float32]]:
    """The schema and the users' codes (U, C) and numbers (U, M).

    A feature is a column of the users file or, failing that, of the interactions: then a user's latest value
    counts (`latest` has a row a user). Integers and floats are numeric unless the name ends in ":categorical".
    """
    schema = ContextSchema({}, {})
    codes: list[Index] = []
    numbers: list[NDArray[np.float64]] = []
    by_user: pa.Table | None = None
    if names and users is not None:
        table = _read(users)
        row_of, known = _encode(table, "user_id", users)
        if len(known) != table.num_rows:
            raise DataError(f"{users}: column user_id: a user has more than one row")
        if known.dtype != user_ids.dtype:
            raise DataError(f"{users}: column user_id: expected the type it has in {interactions}")
        place = np.minimum(np.searchsorted(known, user_ids), len(known) - 1)
        found = known[place] == user_ids
        by_user = table.take(pa.array(np.argsort(row_of)[place], mask=~found))
    for spec in names:
        name, _, kind = spec.partition(":")
        if by_user is not None and name in by_user.column_names:
            column, file = by_user[name], users
        elif name in latest.column_names:
            column, file = latest[name], interactions
        else:
            raise DataError(f"context: column {name} is neither in {users or 'a users file'} nor in {interactions}")
        column = column.combine_chunks()
        is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        if is_number and kind != "categorical":
            values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            values = np.where(np.isfinite(values), values, np.nan)
            known_values = values[~np.isnan(values)]
            if not len(known_values):
                raise DataError(f"{file}: column {name}: no user has a value")
            mean, std = float(known_values.mean()), float(known_values.std()) or 1.0
            schema.numeric[name] = (mean, std)
            numbers.append(np.nan_to_num((values - mean) / std))
        else:
            texts = column.cast(pa.string())
            kinds = sorted(value for value in pc.unique(texts).to_pylist() if value is not None)
            if len(kinds) > MAX_CATEGORIES:
                raise DataError(f"{file}: column {name}: {len(kinds)} values; at most {MAX_CATEGORIES} are learned")
            schema.categorical[name] = kinds
            place = pc.index_in(texts, pa.array(kinds, pa.string()))
            codes.append(pc.fill_null(place, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1)
    users_in_all = len(user_ids)
    return (
        schema,
        np.stack(codes, 1) if codes else np.zeros((users_in_all, 0), np.int64),
        np.stack(numbers, 1).astype(np.float32) if numbers else np.zeros((users_in_all, 0), np.float32),
    )
