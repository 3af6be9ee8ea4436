"""Requests made from sequences: what a user had done, and what they did next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.retrieval import Beams, pad_histories, search
from trainer.data import Dataset, Split

BATCH = 256  # requests searched at once


@dataclass(frozen=True)
class Requests:
    """R requests with their truth. histories, truths: item indices, oldest first; categories (R, C), numbers (R, M)."""

    histories: list[NDArray[np.int64]]
    truths: list[NDArray[np.int64]]
    categories: NDArray[np.int64]
    numbers: NDArray[np.float32]

    def beams(self, session: Any, longest: int, beam: int) -> Iterator[Beams]:
        """The model's answers, a batch after another. longest: history items the model reads."""
        for start in range(0, len(self.histories), BATCH):
            part = slice(start, start + BATCH)
            padded = pad_histories(self.histories[part], longest)
            yield search(session, padded, self.categories[part], self.numbers[part], beam)


def held_out_requests(dataset: Dataset, split: Split) -> Requests:
    """One request a held-out user, as the split has it."""
    return _requests(dataset, split.test_users, split.history_length[split.test_users], np.diff(dataset.offsets))


def training_requests(dataset: Dataset, split: Split, count: int, seed: int) -> Requests:
    """Up to `count` training users, each cut at a random place of what training has seen."""
    generator = np.random.default_rng([seed, 4])
    users = split.train_users[split.train_length[split.train_users] >= 2]
    users = np.sort(generator.permutation(users)[:count])
    cuts = 1 + (generator.random(len(users)) * (split.train_length[users] - 1)).astype(np.int64)
    return _requests(dataset, users, cuts, split.train_length)


def _requests(
    dataset: Dataset, users: NDArray[np.int64], cuts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> Requests:
    sequences = [dataset.sequence(user)[: lengths[user]].astype(np.int64) for user in users]
    return Requests(
        [sequence[:cut] for sequence, cut in zip(sequences, cuts, strict=True)],
        [sequence[cut:] for sequence, cut in zip(sequences, cuts, strict=True)],
        dataset.categories[users],
        dataset.numbers[users],
    )
