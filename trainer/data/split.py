"""Who is trained on and who is measured, and what training may see of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from trainer.config import TrainConfig
from trainer.data.columns import Indices
from trainer.data.dataset import Dataset
from trainer.errors import DataError

TUNING_USERS = 1000  # at most, and at most a tenth, of whom training sees a history alone, as of the held-out


MIN_TUNED = 4  # items of such a user


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
