"""Load interactions, items and users from their files: ids, sequences, context features and attributes.

Interactions have user_id, item_id, timestamp and optionally rating; items have item_id; users have user_id. Ids are
integers or strings. The result is a few flat arrays: 4 bytes per interaction, one id per item and per user.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.attributes import TITLE
from retrieval.context import ContextSchema
from trainer.config import TrainConfig
from trainer.data.attributes import ItemAttributes, read_attributes
from trainer.data.columns import Ids, Indices, encode_ids, numbers
from trainer.data.context import UserContext, UserRows, read_context
from trainer.data.files import Table, read_table
from trainer.data.plain import plain
from trainer.data.times import timestamps
from trainer.errors import DataError

CLICK, IMPRESSION = ("1", "1.0", "true"), ("0", "0.0", "false")  # values of the column `clicked`


@dataclass(frozen=True)
class Impressions:
    """Items that were shown to users and not clicked, user by user.

    offsets: int64 (U + 1,). items: int32 (M,), item indices. before: int64 (M,), how many clicks of the user are
    earlier.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    before: NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """The sequences of U users over V items.

    item_ids: (V,) and user_ids: (U,), ascending. items: int32 (N,), item indices, user by user, each in time
    order. offsets: int64 (U + 1,). context: the users' features. attributes: those of the items, if they have a file.
    strengths: float32 (N,), how much each click counts in the losses, with the mean 1, or None if all count the same.
    notes: messages to print about how files were read.
    """

    item_ids: Ids
    user_ids: Ids
    items: NDArray[np.int32]
    offsets: NDArray[np.int64]
    context: UserContext
    attributes: ItemAttributes | None = None
    strengths: NDArray[np.float32] | None = None
    impressions: Impressions | None = None
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """SHA-256 over all arrays; different data sets have different digests."""
        digest = hashlib.sha256()
        arrays: list[NDArray[Any]] = [self.items, self.offsets, self.context.categories, self.context.numbers]
        arrays += [] if self.strengths is None else [self.strengths]
        if self.impressions:
            arrays += [self.impressions.offsets, self.impressions.items, self.impressions.before]
        if self.attributes:
            table = self.attributes.table
            digest.update(json.dumps(table.schema.to_json(), sort_keys=True).encode())
            arrays += [table.codes, table.numbers, table.titles]
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        for ids in (self.item_ids, self.user_ids):
            digest.update(json.dumps(ids.tolist()).encode())
        return digest.hexdigest()

    def sequence(self, user: int) -> NDArray[np.int32]:
        """All items of the user with index `user`, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


def load_dataset(
    interactions: Path,
    config: TrainConfig,
    items: Path | None = None,
    users: Path | None = None,
    schema: ContextSchema | None = None,
) -> Dataset:
    """Read and filter the files. Raises DataError naming file, column and row.

    schema: the context schema of the version that is measured; None: fit a schema on these users.
    """
    context = {spec.partition(":")[0] for spec in config.context}
    described = {spec.partition(":")[0] for spec in config.attributes}
    if described and not items:
        raise DataError(f"attributes: expected an items file (--items) with {', '.join(sorted(described))}; found none")
    ratings = set() if config.min_rating is None else {"rating", "weight"}
    named = {name for name in (config.strength, config.clicked) if name}
    table = read_table(interactions, {"user_id", "item_id", "timestamp", *ratings, *named, *context})
    catalogue = read_table(items, {"item_id", TITLE, *described}) if items else None
    by_user = read_table(users, {"user_id", *context}) if users and config.context else None
    encoded_items = encode_ids([table, catalogue] if catalogue else [table], "item_id", config.item_id)
    encoded_users = encode_ids([table, by_user] if by_user else [table], "user_id", config.user_id)
    item_of, user_of = encoded_items.rows[0], encoded_users.rows[0]  # per row of the interactions
    times = timestamps(table)
    is_click = _is_click(table, config)
    rows, rare, dropped = _kept_rows(table, item_of, user_of, is_click, config)
    if not is_click.any():
        raise DataError(f"{interactions}: column {config.clicked}: no row is a click; expected 1 or true for clicks")
    if not len(rows):
        raise DataError(
            f"{interactions}: none of the {len(times)} rows is left after min_rating = {config.min_rating}, "
            f"min_item_interactions = {config.min_item_interactions} and min_interactions = {config.min_interactions}; "
            "lower them"
        )
    user_ids = encoded_users.ids
    rows = rows[np.lexsort((times[rows], user_of[rows]))]
    kept_users, owners = np.unique(user_of[rows], return_inverse=True)
    # The catalogue has every item of the items file and every item that was shown, even those that nobody clicked.
    kept_items = np.setdiff1d(np.concatenate([item_of[rows], item_of[~is_click], *encoded_items.rows[1:]]), rare)
    offsets = np.searchsorted(owners, np.arange(len(kept_users) + 1)).astype(np.int64)
    sources: list[UserRows] = []
    if by_user:
        user_rows = _rows_of(encoded_users.rows[1], kept_users, user_ids, by_user, "user")
        if (user_rows < 0).all():
            first_listed, first_active = user_ids[[encoded_users.rows[1][0], kept_users[0]]].tolist()
            raise DataError(
                f"{users}: has none of the {len(user_rows)} users of the interactions; are ids written the same way in "
                f"both files? The first id is {first_listed!r} there and {first_active!r} in the interactions"
            )
        sources.append(UserRows(by_user, user_rows))
    # Context columns of the interactions are read from the last row of the user's history, never from a held-out row.
    lengths = np.diff(offsets)
    seen = np.maximum(lengths // 2 if config.split == "users" else lengths - 1, 1)
    sources.append(UserRows(table, rows[offsets[:-1] + seen - 1]))
    context_of = read_context(config.context, sources, len(kept_users), schema)
    notes = [line for part in (table, catalogue, by_user) if part for line in part.notes]
    attributes = None
    if catalogue and (described or TITLE in catalogue.names):
        item_rows = _rows_of(encoded_items.rows[1], kept_items, encoded_items.ids, catalogue, "item")
        attributes = read_attributes(config.attributes, catalogue, item_rows)
    notes += [*encoded_items.notes, *encoded_users.notes, *context_of.notes, *(attributes.notes if attributes else ())]
    notes += dropped
    if catalogue and not np.isin(item_of[rows], encoded_items.rows[1]).any():
        notes.append(f"warning: no item of the interactions is in {items}; are ids written the same way in both files?")
    return Dataset(
        encoded_items.ids[kept_items],
        user_ids[kept_users],
        np.searchsorted(kept_items, item_of[rows]).astype(np.int32),
        offsets,
        context_of,
        attributes,
        _strengths(table, rows, config),
        _impressions(np.flatnonzero(~is_click), item_of, user_of, times, rows, kept_items, kept_users),
        tuple(notes),
    )


def _is_click(table: Table, config: TrainConfig) -> NDArray[np.bool_]:
    """Whether each row is a click, not an impression without one."""
    if config.clicked is None:
        return np.ones(table.columns.num_rows, bool)
    column = plain(table.column(config.clicked), f"{table.file}: column {config.clicked}")
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(column.cast(pa.string())))
    click, impression = (pc.fill_null(pc.is_in(texts, pa.array(values)), False) for values in (CLICK, IMPRESSION))
    for row in np.flatnonzero(~pc.or_(click, impression).to_numpy())[:1]:
        raise DataError(
            f"{table.file}: column {config.clicked}, {table.row(int(row))}: expected 0, 1, true or false, "
            f"found {str(column[int(row)].as_py())[:60]!r}"
        )
    return np.asarray(click.to_numpy())


def _strengths(table: Table, rows: Indices, config: TrainConfig) -> NDArray[np.float32] | None:
    """The strength of each of `rows`, divided by their mean; None if the config names no column."""
    if config.strength is None:
        return None
    strengths = numbers(table, config.strength, rows)
    if (strengths < 0).any() or not strengths.any():
        found = f"{strengths.min():g}" if strengths.any() else "only zeros"
        raise DataError(f"{table.file}: column {config.strength}: expected strengths of at least 0, found {found}")
    strengths = strengths / strengths.max()  # so that the sum is finite
    return np.asarray(strengths / strengths.mean(), np.float32)


def _impressions(
    shown: Indices,
    item_of: Indices,
    user_of: Indices,
    times: NDArray[Any],
    clicks: Indices,
    items: Indices,
    users: Indices,
) -> Impressions | None:
    """The impressions of the kept users, from the rows `shown`; None if there are none.

    An impression at the time of a click is earlier: it was on the same page. clicks: the rows of the clicks. item_of,
    user_of, times: of each row. items, users: those that are kept, ascending.
    """
    shown = shown[np.isin(user_of[shown], users) & np.isin(item_of[shown], items)]
    if not len(shown):
        return None
    rows = np.concatenate([shown, clicks])
    is_click = np.arange(len(rows)) >= len(shown)
    order = np.lexsort((is_click, times[rows], user_of[rows]))
    rows, is_click = rows[order], is_click[order]
    owner = np.searchsorted(users, user_of[rows])
    earlier = np.cumsum(is_click)  # clicks of all users so far
    first = np.concatenate([[0], np.cumsum(np.bincount(owner[is_click], minlength=len(users)))])
    impressions = ~is_click
    return Impressions(
        np.concatenate([[0], np.cumsum(np.bincount(owner[impressions], minlength=len(users)))]),
        np.searchsorted(items, item_of[rows[impressions]]).astype(np.int32),
        (earlier - first[owner])[impressions],
    )


def _kept_rows(
    table: Table, item_of: Indices, user_of: Indices, is_click: NDArray[np.bool_], config: TrainConfig
) -> tuple[Indices, Indices, list[str]]:
    """The rows of the clicks that the filters keep, the items that are dropped as rare, and messages about both.

    item_of, user_of: each row's item and user. The rating is filtered first, then the items, then the users.
    """
    rows = rated_rows(table, np.flatnonzero(is_click), config)
    notes = []
    clicks = np.bincount(item_of[rows])
    rare = np.flatnonzero((clicks > 0) & (clicks < config.min_item_interactions))
    if len(rare):
        dropped = f"{len(rare)} of {(clicks > 0).sum()} items have fewer than {config.min_item_interactions}"
        notes.append(f"{dropped} interactions and are left out (min_item_interactions)")
        rows = rows[~np.isin(item_of[rows], rare)]
    visits = np.bincount(user_of[rows])
    few = int(((visits > 0) & (visits < config.min_interactions)).sum())
    if few:
        dropped = f"{few} of {(visits > 0).sum()} users have fewer than {config.min_interactions} interactions"
        notes.append(f"{dropped} and are left out (min_interactions)")
    return rows[visits[user_of[rows]] >= config.min_interactions], rare, notes


def rated_rows(table: Table, rows: Indices, config: TrainConfig) -> Indices:
    """Those of the `rows` that are not below min_rating."""
    if config.min_rating is None:
        return rows
    column = "weight" if "rating" not in table.names and "weight" in table.names else "rating"
    return np.asarray(rows[numbers(table, column, rows) >= config.min_rating])


def _rows_of(index: Indices, wanted: Indices, ids: Ids, table: Table, kind: str) -> Indices:
    """The row of each of the `wanted` users or items in `table`, or -1. Row r of the table is that of index[r].

    kind: "user" or "item".
    """
    rows = np.full(max(index.max(), wanted.max()) + 1, -1)
    rows[index] = np.arange(len(index))
    if (repeated := np.flatnonzero(rows[index] != np.arange(len(index)))).size:
        (found,), row = ids[index[repeated[:1]]].tolist(), table.row(int(repeated[0]))
        raise DataError(f"{table.file}: column {kind}_id, {row}: {kind} {found!r} has more than one row; keep one")
    rows_of: Indices = rows[wanted]
    return rows_of
