"""Split users into training and held-out users, and decide which of their items training may see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from trainer.config import TrainConfig
from trainer.data.columns import Indices
from trainer.data.dataset import Dataset
from trainer.errors import DataError

#: Most users of each kind if the config says "auto". With split = users they are also at most a tenth of the users.
AUTO_USERS = {"users": 1000, "last-out": 50_000}
#: Least number of items of a tuning user that are not held out for the test.
MIN_TUNED = {"users": 4, "last-out": 2}


@dataclass(frozen=True)
class Split:
    """The users to train on and to measure, and the number of items of each sequence that training sees.

    train_users, test_users: int64, user indices. train_length: int64 (U,); the network is trained on the first
    train_length items of a user. history_length: int64 (U,); the first history_length items of a test user are the
    history, the rest is truth. tuning_users: training users; their items from train_length to visible_length (U,) are
    withheld from the network, to fit the reranker.
    """

    train_users: Indices
    test_users: Indices
    train_length: Indices
    history_length: Indices
    tuning_users: Indices
    visible_length: Indices


def split_users(dataset: Dataset, config: TrainConfig) -> Split:
    """The split that `config` names. Its random choices depend only on the seed.

    split = users: test users are held out; the first half of their items is history, the second half truth (Sec. 4.1).
    split = last-out: all users are trained on. The last item of each user is the truth, and the items before it are the
    history; the last of these is withheld from the network if the user is a tuning user. Users with fewer than three
    items are not measured. Raises DataError if no user with two interactions is left to train on.
    """
    lengths = np.diff(dataset.offsets)
    users = len(lengths)
    fewest = 2 if config.split == "users" else 3
    shuffled = np.random.default_rng(config.seed).permutation(np.flatnonzero(lengths >= fewest))
    wanted = _number(config.test_users, config, users)
    test = np.sort(shuffled[:wanted])
    if config.split == "users":
        train = np.setdiff1d(np.arange(users), test)
        train_length, history_length = lengths, lengths // 2
    else:
        train = np.arange(users)
        train_length = history_length = np.maximum(lengths - 1, 1)
    if not (train_length[train] >= 2).any():
        raise DataError(
            f"test_users = {wanted} of {users} users are held out; none of the others has two interactions to train on"
            if config.split == "users"
            else "no user has two interactions left to train on after the last one is held out (split = last-out)"
        )
    # The network is overconfident on items it was trained on, so the reranker is fitted on items withheld from it.
    tuned = train[train_length[train] >= MIN_TUNED[config.split]]
    shuffled = np.random.default_rng([config.seed, 5]).permutation(tuned)
    tuning = np.sort(shuffled[: _number(config.tuning_users, config, len(train), least=0)])
    visible_length, train_length = train_length, train_length.copy()
    train_length[tuning] = history_length[tuning] if config.split == "users" else train_length[tuning] - 1
    return Split(train, test, train_length, history_length, tuning, visible_length)


def _number(setting: int | str, config: TrainConfig, users: int, least: int = 1) -> int:
    """The number of users that `setting` asks for: itself, or for "auto" a share of `users` that the split decides."""
    if isinstance(setting, int):
        return setting
    return min(AUTO_USERS[config.split], max(least, users // 10) if config.split == "users" else users)


def click_counts(dataset: Dataset, split: Split) -> Indices:
    """The number of times that each item occurs in the items that training sees, (V,)."""
    _, items = _first_items(dataset, split.train_users, split.train_length)
    return np.bincount(items, minlength=len(dataset.item_ids))


def clicked_items(dataset: Dataset, users: Indices, lengths: Indices) -> scipy.sparse.csr_array:
    """A sparse float32 matrix (len(users), V): 1 if the item is among the first lengths[user] items of the user.

    users: ascending indices; lengths: (U,), for all users.
    """
    owners, items = _first_items(dataset, users, lengths)
    ones, rows = np.ones(len(owners), np.float32), np.searchsorted(users, owners)
    clicked = scipy.sparse.csr_array((ones, (rows, items)), shape=(len(users), len(dataset.item_ids)))
    clicked.sum_duplicates()
    clicked.data[:] = 1
    return clicked


def trained_items(dataset: Dataset, split: Split) -> tuple[Indices, NDArray[np.int32]]:
    """The items that training sees, user by user in time order: (user indices, item indices)."""
    return _first_items(dataset, split.train_users, split.train_length)


def _first_items(dataset: Dataset, users: Indices, lengths: Indices) -> tuple[Indices, NDArray[np.int32]]:
    """The first lengths[user] items of each of `users`, concatenated: (user indices, item indices)."""
    all_lengths = np.diff(dataset.offsets)
    seen = np.zeros(len(all_lengths), np.int64)
    seen[users] = lengths[users]
    position = np.arange(len(dataset.items)) - np.repeat(dataset.offsets[:-1], all_lengths)
    kept = position < np.repeat(seen, all_lengths)
    return np.repeat(np.arange(len(all_lengths)), all_lengths)[kept], dataset.items[kept]
