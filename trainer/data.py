"""Interactions, items and users from their files: vocabularies, sequences, context features and splits.

Interactions have user_id, item_id, timestamp and perhaps rating; items have item_id; users have user_id. Ids are
integers or strings. Everything ends in a few flat arrays: 4 bytes an interaction, an id an item and a user.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from retrieval.context import ContextSchema
from trainer.columns import Ids, Indices, encode_ids, numbers
from trainer.config import TrainConfig
from trainer.context import UserContext, UserRows, read_context
from trainer.errors import DataError
from trainer.files import Table, read_table
from trainer.times import timestamps

TUNING_USERS = 1000  # at most, and at most a tenth, of whom training sees a history alone, as of the held-out
MIN_TUNED = 4  # items of such a user


@dataclass(frozen=True)
class Dataset:
    """The sequences of U users over V items.

    item_ids: (V,) and user_ids: (U,), ascending. items: int32 (N,), item indices, user by user, each in time
    order. offsets: int64 (U + 1,). context: of each user. said: what a user should know of how the files were read.
    """

    item_ids: Ids
    user_ids: Ids
    items: NDArray[np.int32]
    offsets: NDArray[np.int64]
    context: UserContext
    said: tuple[str, ...] = ()

    def digest(self) -> str:
        """SHA-256 of all of it: what tells one data set from another."""
        digest = hashlib.sha256()
        for array in (self.items, self.offsets, self.context.categories, self.context.numbers):
            digest.update(np.ascontiguousarray(array).data)
        for ids in (self.item_ids, self.user_ids):
            digest.update(json.dumps(ids.tolist()).encode())
        return digest.hexdigest()

    def sequence(self, user: int) -> NDArray[np.int32]:
        """All items of the user with index `user`, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


@dataclass(frozen=True)
class Split:
    """Who is trained on, how far into each sequence, and who is measured.

    train_users, test_users: int64, user indices. train_length: int64 (U,), the items of each sequence that
    training may see. history_length: int64 (U,), the items that are a test user's history; the rest is truth.
    tuning_users: those training users of whom it sees only as much, though visible_length (U,) could be seen: from
    the rest the reranker learns.
    """

    train_users: Indices
    test_users: Indices
    train_length: Indices
    history_length: Indices
    tuning_users: Indices
    visible_length: Indices


def split_users(dataset: Dataset, config: TrainConfig) -> Split:
    """The split that `config` names, drawn from its seed alone.

    users: held-out users, first half history, second half truth (Sec. 4.1). last-out: everybody's last item.
    Raises DataError when too few users are left to train on.
    """
    lengths = np.diff(dataset.offsets)
    users = len(lengths)
    wanted = min(1000, max(1, users // 10)) if config.test_users == "auto" else config.test_users
    shuffled = np.random.default_rng(config.seed).permutation(np.flatnonzero(lengths >= 2))
    test = np.sort(shuffled[:wanted])
    if config.split == "users":
        train = np.setdiff1d(np.arange(users), test)
        train_length, history_length = lengths, lengths // 2
    else:
        train = np.arange(users)
        train_length = history_length = np.maximum(lengths - 1, 1)
    if not (train_length[train] >= 2).any():
        raise DataError(
            f"no user with two interactions or more is left to train on, of {users} and test_users = {wanted} held out"
        )
    # What the network has learned by heart it is too sure of; how far to trust it shows on what it has not seen.
    shuffled = np.random.default_rng([config.seed, 5]).permutation(train[train_length[train] >= MIN_TUNED])
    tuning = np.sort(shuffled[: min(TUNING_USERS, len(train) // 10)])
    visible_length, train_length = train_length, train_length.copy()
    train_length[tuning] = history_length[tuning] if config.split == "users" else train_length[tuning] - 1
    return Split(train, test, train_length, history_length, tuning, visible_length)


def load_dataset(
    interactions: Path,
    config: TrainConfig,
    items: Path | None = None,
    users: Path | None = None,
    schema: ContextSchema | None = None,
) -> Dataset:
    """Read and filter the files. Raises DataError naming file, column and row.

    schema: the context schema of a version that is measured; None: one is fitted on these users.
    """
    context = {spec.partition(":")[0] for spec in config.context}
    ratings = set() if config.min_rating is None else {"rating", "weight"}
    table = read_table(interactions, {"user_id", "item_id", "timestamp", *ratings, *context})
    catalogue = read_table(items, {"item_id"}) if items else None
    by_user = read_table(users, {"user_id", *context}) if users and config.context else None
    encoded_items = encode_ids([table, catalogue] if catalogue else [table], "item_id", config.item_id)
    encoded_users = encode_ids([table, by_user] if by_user else [table], "user_id", config.user_id)
    item_of, user_of = encoded_items.rows[0], encoded_users.rows[0]  # a row of the interactions
    times = timestamps(table)
    rows = np.arange(len(times))
    if config.min_rating is not None:
        column = "weight" if "rating" not in table.names and "weight" in table.names else "rating"
        rows = rows[numbers(table, column) >= config.min_rating]
    user_ids = encoded_users.ids
    before = len(np.unique(user_of[rows]))
    rows = rows[np.bincount(user_of[rows], minlength=len(user_ids))[user_of[rows]] >= config.min_interactions]
    if not len(rows):
        raise DataError(
            f"{interactions}: no rows are left of {len(times)} after min_rating = {config.min_rating} "
            f"and min_interactions = {config.min_interactions}; lower them"
        )
    rows = rows[np.lexsort((times[rows], user_of[rows]))]
    kept_users, user_of = np.unique(user_of[rows], return_inverse=True)
    # The catalogue has every item of the items file, clicked or not.
    kept_items = np.unique(np.concatenate([item_of[rows], *encoded_items.rows[1:]]))
    offsets = np.searchsorted(user_of, np.arange(len(kept_users) + 1)).astype(np.int64)
    sources: list[UserRows] = []
    if by_user:
        found = _rows_of(encoded_users.rows[1], kept_users, user_ids, by_user)
        if (found < 0).all():
            there, here = user_ids[[encoded_users.rows[1][0], kept_users[0]]].tolist()
            raise DataError(
                f"{users}: tells of none of the {len(found)} users of the interactions; are their ids written alike? "
                f"The first is {there!r} there and {here!r} in the interactions"
            )
        sources.append(UserRows(by_user, found))
    # What the interactions say of a user is read at the end of the history, never in the truth.
    lengths = np.diff(offsets)
    seen = np.maximum(lengths // 2 if config.split == "users" else lengths - 1, 1)
    sources.append(UserRows(table, rows[offsets[:-1] + seen - 1]))
    context_of = read_context(config.context, sources, len(kept_users), schema)
    said = [line for part in (table, catalogue, by_user) if part for line in part.guessed]
    said += [*encoded_items.said, *encoded_users.said, *context_of.said]
    if len(kept_users) < before:
        fewer = f"{before - len(kept_users)} of {before} users have fewer than {config.min_interactions} interactions"
        said.append(f"{fewer} and are left out (min_interactions)")
    if catalogue and not np.isin(item_of[rows], encoded_items.rows[1]).any():
        said.append(f"warning: no item of the interactions is in {items}; are their ids written alike?")
    return Dataset(
        encoded_items.ids[kept_items],
        user_ids[kept_users],
        np.searchsorted(kept_items, item_of[rows]).astype(np.int32),
        offsets,
        context_of,
        tuple(said),
    )


def click_counts(dataset: Dataset, split: Split) -> Indices:
    """How often each item occurs in what training may see, (V,)."""
    _, items = _first_items(dataset, split.train_users, split.train_length)
    return np.bincount(items, minlength=len(dataset.item_ids))


def clicked_items(dataset: Dataset, users: Indices, lengths: Indices) -> scipy.sparse.csr_array:
    """1 where one of `users` has an item, however often, within the first lengths[user] of the sequence.

    (len(users), V), float32. users: ascending indices; lengths: (U,), of all users.
    """
    of, items = _first_items(dataset, users, lengths)
    ones, rows = np.ones(len(of), np.float32), np.searchsorted(users, of)
    clicked = scipy.sparse.csr_array((ones, (rows, items)), shape=(len(users), len(dataset.item_ids)))
    clicked.sum_duplicates()
    clicked.data[:] = 1
    return clicked


def _first_items(dataset: Dataset, users: Indices, lengths: Indices) -> tuple[Indices, NDArray[np.int32]]:
    """The first lengths[user] items of each of `users`: whose they are, and which, one after another."""
    all_lengths = np.diff(dataset.offsets)
    seen = np.zeros(len(all_lengths), np.int64)
    seen[users] = lengths[users]
    place = np.arange(len(dataset.items)) - np.repeat(dataset.offsets[:-1], all_lengths)
    kept = place < np.repeat(seen, all_lengths)
    return np.repeat(np.arange(len(all_lengths)), all_lengths)[kept], dataset.items[kept]


def _rows_of(index: Indices, users: Indices, ids: Ids, table: Table) -> Indices:
    """The row of each of `users` in a table whose row r is of user index[r]; -1 where there is none."""
    rows = np.full(max(index.max(), users.max()) + 1, -1)
    rows[index] = np.arange(len(index))
    if (again := np.flatnonzero(rows[index] != np.arange(len(index)))).size:
        (user,), row = ids[index[again[:1]]].tolist(), table.row(int(again[0]))
        raise DataError(f"{table.file}: column user_id, {row}: user {user!r} has more than one row; keep one")
    found: Indices = rows[users]
    return found
