"""Requests made from sequences: what a user had done, and what they did next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from retrieval.paths.rerank import Beams
from retrieval.paths.structure import PathStructure
from retrieval.query import Query
from trainer.data.dataset import Dataset
from trainer.data.split import Split

BATCH = 256  # requests searched at once, at most
BATCH_SCORES = 50_000_000  # scores of requests times items held at once, at most


@dataclass(frozen=True)
class Requests:
    """R requests with their truth, over V items.

    histories, truths: item indices, oldest first; categories (R, C), numbers (R, M); users: (R,), whose they are.
    """

    items: int

    histories: list[NDArray[np.int64]]
    truths: list[NDArray[np.int64]]
    categories: NDArray[np.int64]
    numbers: NDArray[np.float32]
    users: NDArray[np.int64]

    def beams(self, structure: PathStructure, beam: int) -> Iterator[Beams]:
        """The network's answers, a batch after another as `parts` has them."""
        for part in self.parts():
            yield structure.search(self.histories[part], self.categories[part], self.numbers[part], beam)

    def queries(self, part: slice, k: int, beam: int, per_path: int, *, widen: bool = True) -> list[Query]:
        """The requests of a batch as queries that leave out their history."""
        return [
            Query(history, categories, numbers, k, beam, per_path, history, widen=widen)
            for history, categories, numbers in zip(
                self.histories[part], self.categories[part].tolist(), self.numbers[part].tolist(), strict=True
            )
        ]

    def parts(self) -> Iterator[slice]:
        """The batches: so many requests that a score of every item for each fits in memory."""
        size = max(1, min(BATCH, BATCH_SCORES // self.items))
        for start in range(0, len(self.histories), size):
            yield slice(start, min(start + size, len(self.histories)))

    def first(self, count: int) -> Requests:
        """The first `count` of them."""
        few = slice(count)
        return Requests(
            self.items,
            self.histories[few],
            self.truths[few],
            self.categories[few],
            self.numbers[few],
            self.users[few],
        )


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


def history_requests(dataset: Dataset, split: Split, count: int, seed: int) -> Requests:
    """Up to `count` training users with all that training has seen of them; nothing is left to ask for."""
    generator = np.random.default_rng([seed, 7])
    users = np.sort(generator.permutation(split.train_users)[:count])
    return _requests(dataset, users, split.train_length[users], split.train_length)


def tuning_requests(dataset: Dataset, split: Split) -> Requests:
    """One request a tuning user: what training has seen of them, then what it has not."""
    users = split.tuning_users
    return _requests(dataset, users, split.train_length[users], split.visible_length)


def _requests(
    dataset: Dataset, users: NDArray[np.int64], cuts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> Requests:
    sequences = [dataset.sequence(user)[: lengths[user]].astype(np.int64) for user in users]
    return Requests(
        len(dataset.item_ids),
        [sequence[:cut] for sequence, cut in zip(sequences, cuts, strict=True)],
        [sequence[cut:] for sequence, cut in zip(sequences, cuts, strict=True)],
        dataset.context.categories[users],
        dataset.context.numbers[users],
        users,
    )


def pad_histories(histories: Sequence[NDArray[np.int64]], longest: int) -> NDArray[np.int64]:
    """The last `longest` items of each history, (B, T), -1 after its end. T is the longest there is, at least 1."""
    histories = [history[-longest:] for history in histories]
    padded = np.full((len(histories), max(1, *map(len, histories))), -1, np.int64)
    for row, history in zip(padded, histories, strict=True):
        row[: len(history)] = history
    return padded


def history_matrix(histories: Sequence[NDArray[np.int64]], items: int) -> scipy.sparse.csr_array:
    """1 where a history has an item, however often, (R, V)."""
    histories = [np.unique(history) for history in histories]
    offsets = np.cumsum([0, *map(len, histories)])
    columns = np.concatenate([*histories, np.empty(0, np.int64)])
    return scipy.sparse.csr_array((np.ones(len(columns), np.float32), columns, offsets), shape=(len(histories), items))
