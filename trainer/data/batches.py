"""Sequences as batches: one encoder pass over a window of a user's items predicts each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.dataset import Dataset
from trainer.data.split import Split


@dataclass(frozen=True)
class Batch:
    """B windows of up to T items. history: (B, T) item indices, -1 after its end.

    targets: (B, T + 1), targets[:, t] is what followed the first t items; -1 where nothing is to be predicted.
    categories: (B, C), numbers: (B, M).
    """

    history: Tensor
    targets: Tensor
    categories: Tensor
    numbers: Tensor


class Batches:
    """The training users' sequences cut into windows; every item is predicted once an epoch.

    A window that does not start its sequence begins with one item that only serves as history.
    """

    def __init__(self, dataset: Dataset, split: Split, history: int, batch: int, later: float = 0.0) -> None:
        """history: longest window; batch: about how many predictions a batch holds.

        later: the share of predictions that are not of the next item but of any later one of the window, drawn anew
        in each epoch that has a generator. What is asked of retrieval is what a user does later, in any order.
        """
        self._dataset, self._history, self._batch, self._later = dataset, history, batch, later
        lengths = split.train_length[split.train_users]
        windows = np.maximum(1, -(-(lengths - 1) // history))  # of T + 1 items, overlapping by one
        self._user = np.repeat(split.train_users, windows)
        first = np.cumsum(windows) - windows
        number = np.arange(len(self._user)) - np.repeat(first, windows)  # within its user
        self._start = number * history
        self._length = np.minimum(np.repeat(lengths, windows) - self._start, history + 1)
        self._continues = number > 0
        self.predictions = int(lengths.sum())

    def epoch(self, generator: np.random.Generator | None) -> Iterator[Batch]:
        """Batches of windows of like length, in an order drawn from `generator`; None: longest first."""
        noise = generator.random(len(self._user)) if generator else np.zeros(len(self._user))
        # Like lengths together wastes no time on padding; the noise mixes who meets whom.
        order = np.argsort(-self._length * (1 + 0.2 * noise), kind="stable")
        ends = np.cumsum(self._length[order])
        groups = np.split(order, np.unique(np.searchsorted(ends, np.arange(self._batch, ends[-1], self._batch))))
        groups = [group for group in groups if len(group)]
        for index in generator.permutation(len(groups)) if generator else range(len(groups)):
            yield self._make(groups[index], generator)

    def _make(self, windows: NDArray[np.int64], generator: np.random.Generator | None) -> Batch:
        data, length = self._dataset, self._length[windows]
        column = np.arange(length.max())
        inside = column < length[:, None]  # (B, T + 1)
        place = (data.offsets[self._user[windows]] + self._start[windows])[:, None] + column
        items = np.where(inside, data.items[np.minimum(place, len(data.items) - 1)], -1).astype(np.int64)
        targets = items.copy()
        targets[self._continues[windows], 0] = -1
        if generator and self._later:
            ahead = generator.random(targets.shape) * (length[:, None] - column)
            drawn = column + np.where(generator.random(targets.shape) < self._later, ahead, 0).astype(np.int64)
            targets = np.where(targets < 0, -1, np.take_along_axis(items, np.clip(drawn, 0, length[:, None] - 1), 1))
        # The last item is only a target, the others are history too.
        last = np.arange(len(windows)), length - 1
        history = items.copy()
        history[last] = -1
        users = self._user[windows]
        return Batch(
            torch.from_numpy(history[:, :-1] if history.shape[1] > 1 else history),
            torch.from_numpy(
                targets if history.shape[1] > 1 else np.pad(targets, ((0, 0), (0, 1)), constant_values=-1)
            ),
            torch.from_numpy(data.context.categories[users]),
            torch.from_numpy(data.context.numbers[users]),
        )
