"""Turn users' sequences into requests: each has the user's history, and the items that followed it as truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from retrieval.paths.rerank import Beams
from retrieval.paths.structure import PathStructure
from retrieval.query import Query
from trainer.data.dataset import Dataset
from trainer.data.split import Split, trained_items

BATCH = 256  # most requests searched at once
BATCH_SCORES = 50_000_000  # most scores (requests x items) in memory at once


@dataclass(frozen=True)
class Requests:
    """R requests with their truth: the items that the user clicked after the history. items: V, the number of items.

    histories, truths: item indices, oldest first; categories (R, C), numbers (R, M); users: (R,) user indices. shown:
    the items that were shown to the user together with the truth and not clicked, or nothing if that is not known.
    """

    items: int
    histories: list[NDArray[np.int64]]
    truths: list[NDArray[np.int64]]
    categories: NDArray[np.int64]
    numbers: NDArray[np.float32]
    users: NDArray[np.int64]
    shown: list[NDArray[np.int64]] = field(default_factory=list)

    def beams(self, structure: PathStructure, beam: int) -> Iterator[Beams]:
        """The beams that the network finds, one batch of `parts` at a time."""
        for part in self.parts():
            yield structure.search(self.histories[part], self.categories[part], self.numbers[part], beam)

    def queries(self, part: slice, k: int, beam: int, per_path: int, *, widen: bool = True) -> list[Query]:
        """The requests of a batch as queries that exclude the items of the history."""
        return [
            Query(history, categories, numbers, k, beam, per_path, history, widen=widen)
            for history, categories, numbers in zip(
                self.histories[part], self.categories[part].tolist(), self.numbers[part].tolist(), strict=True
            )
        ]

    def parts(self) -> Iterator[slice]:
        """Slices that cut the requests into batches, such that the scores of a batch for all items fit in memory."""
        size = max(1, min(BATCH, BATCH_SCORES // self.items))
        for start in range(0, len(self.histories), size):
            yield slice(start, min(start + size, len(self.histories)))

    def spread(self, count: int) -> Requests:
        """At most `count` requests, evenly spread over all."""
        return self._part(slice(None, None, max(1, -(-len(self.histories) // count))))

    def first(self, count: int) -> Requests:
        """The first `count` requests."""
        return self._part(slice(count))

    def _part(self, part: slice) -> Requests:
        lists = self.histories[part], self.truths[part]
        return Requests(
            self.items, *lists, self.categories[part], self.numbers[part], self.users[part], self.shown[part]
        )


def held_out_requests(dataset: Dataset, split: Split) -> Requests:
    """One request per held-out user, with the history and truth that the split defines."""
    return _requests(dataset, split.test_users, split.history_length[split.test_users], np.diff(dataset.offsets))


def training_requests(dataset: Dataset, split: Split, count: int, seed: int) -> Requests:
    """Requests of at most `count` training users. A random position separates history from truth in the seen items."""
    generator = np.random.default_rng([seed, 4])
    users = split.train_users[split.train_length[split.train_users] >= 2]
    users = np.sort(generator.permutation(users)[:count])
    cuts = 1 + (generator.random(len(users)) * (split.train_length[users] - 1)).astype(np.int64)
    return _requests(dataset, users, cuts, split.train_length)


def history_requests(dataset: Dataset, split: Split, count: int, seed: int) -> Requests:
    """Requests of at most `count` training users. All items that training saw are history; the truth is empty."""
    generator = np.random.default_rng([seed, 7])
    users = np.sort(generator.permutation(split.train_users)[:count])
    return _requests(dataset, users, split.train_length[users], split.train_length)


def clicked_requests(dataset: Dataset, split: Split, groups: int, count: int, seed: int) -> Requests:
    """Users just before sampled clicks: `count` clicks of one item after another, of `groups` items, with repetition.

    The truth is the clicked item. Items are drawn in proportion to the root of their clicks.
    """
    users, items = trained_items(dataset, split)
    generator = np.random.default_rng([seed, 8])
    order = np.argsort(items, kind="stable")
    _, first, clicks = np.unique(items[order], return_index=True, return_counts=True)
    chosen = generator.choice(len(first), groups, p=np.sqrt(clicks) / np.sqrt(clicks).sum())
    drawn = (generator.random((groups, count)) * clicks[chosen][:, None]).astype(int)
    at = order[first[chosen][:, None] + drawn].ravel()
    start = np.searchsorted(users, users[at])
    histories = [items[begin:end].astype(np.int64) for begin, end in zip(start, at, strict=True)]
    truths = list(items[at].astype(np.int64)[:, None])
    categories, numbers = dataset.context.categories[users[at]], dataset.context.numbers[users[at]]
    return Requests(len(dataset.item_ids), histories, truths, categories, numbers, users[at])


def tuning_requests(dataset: Dataset, split: Split) -> Requests:
    """One request per tuning user. The items that training saw are history, the withheld items are the truth."""
    users = split.tuning_users
    requests = _requests(dataset, users, split.train_length[users], split.visible_length)
    if (impressions := dataset.impressions) is None:
        return requests
    shown = []
    for user in users:
        part = slice(impressions.offsets[user], impressions.offsets[user + 1])
        before = impressions.before[part]
        withheld = (before >= split.train_length[user]) & (before < split.visible_length[user])
        shown.append(np.unique(impressions.items[part][withheld]).astype(np.int64))
    return replace(requests, shown=shown)


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
    """The last `longest` items of each history, (B, T), padded with -1. T is the longest length, at least 1."""
    histories = [history[-longest:] for history in histories]
    padded = np.full((len(histories), max(1, *map(len, histories))), -1, np.int64)
    for row, history in zip(padded, histories, strict=True):
        row[: len(history)] = history
    return padded


def history_matrix(histories: Sequence[NDArray[np.int64]], items: int) -> scipy.sparse.csr_array:
    """A sparse matrix (R, V): 1 if the history has the item, else 0."""
    histories = [np.unique(history) for history in histories]
    offsets = np.cumsum([0, *map(len, histories)])
    columns = np.concatenate([*histories, np.empty(0, np.int64)])
    return scipy.sparse.csr_array((np.ones(len(columns), np.float32), columns, offsets), shape=(len(histories), items))
