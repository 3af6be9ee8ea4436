"""Cut training sequences into batches of windows. One encoder pass over a window predicts every item of the window."""

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
    """B windows of up to T items.

    history: (B, T) item indices, padded with -1. targets: (B, T + 1); targets[:, t] is the item to predict from the
    first t items, or -1 if there is none. categories: (B, C) and numbers: (B, M), the users' context. strengths:
    float32 (B, T + 1), how much each target counts, or None if all count the same.
    """

    history: Tensor
    targets: Tensor
    categories: Tensor
    numbers: Tensor
    strengths: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        parts = (self.history, self.targets, self.categories, self.numbers, self.strengths)
        return Batch(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]


class Batches:
    """The training users' sequences, cut into windows; every item is predicted once per epoch.

    The second and later windows of a sequence begin with the last item of the window before. That item is then only
    history, not a target. predictions: the number of predictions per epoch.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        history: int,
        batch: int,
        later: float = 0.0,
        targets: NDArray[np.bool_] | None = None,
    ) -> None:
        """history: the longest window, in items. batch: the approximate number of predictions per batch.

        later: the share of targets that are a random item of the rest of the window instead of the next item, drawn
        again each epoch. The reason: retrieval should find all items that a user clicks later, in any order. targets:
        (N,), which of the clicks that training sees are predicted; the others are only history. None: all.
        """
        self._dataset, self._history, self._batch, self._later = dataset, history, batch, later
        self._targets = targets
        lengths = split.train_length[split.train_users]
        windows = np.maximum(1, -(-(lengths - 1) // history))  # windows of history + 1 items that overlap by one item
        self._user = np.repeat(split.train_users, windows)
        first = np.cumsum(windows) - windows
        number = np.arange(len(self._user)) - np.repeat(first, windows)  # position of the window in its sequence
        self._start = number * history
        self._length = np.minimum(np.repeat(lengths, windows) - self._start, history + 1)
        self._continues = number > 0
        self.predictions = int(lengths.sum()) if targets is None else int(targets.sum())
        self.steps = max(1, -(-self.predictions // batch))  # about the number of batches in an epoch

    def epoch(self, generator: np.random.Generator | None) -> Iterator[Batch]:
        """Batches of windows of similar length, on the CPU, in random order with `generator`, else the longest windows
        first.
        """
        noise = generator.random(len(self._user)) if generator else np.zeros(len(self._user))
        # Windows of similar length need little padding; the noise groups different windows in each epoch.
        order = np.argsort(-self._length * (1 + 0.2 * noise), kind="stable")
        if not len(order):
            return
        ends = np.cumsum(self._length[order])
        groups = np.split(order, np.unique(np.searchsorted(ends, np.arange(self._batch, ends[-1], self._batch))))
        groups = [group for group in groups if len(group)]
        for index in generator.permutation(len(groups)) if generator else range(len(groups)):
            batch = self._make(groups[index], generator)
            if self._targets is None or (batch.targets >= 0).any():
                yield batch

    def _make(self, windows: NDArray[np.int64], generator: np.random.Generator | None) -> Batch:
        data, length = self._dataset, self._length[windows]
        column = np.arange(max(2, int(length.max())))  # at least one item of history
        inside = column < length[:, None]  # (B, T + 1)
        position = (data.offsets[self._user[windows]] + self._start[windows])[:, None] + column
        position = np.minimum(position, len(data.items) - 1)
        items = np.where(inside, data.items[position], -1).astype(np.int64)
        predicted = np.broadcast_to(column, items.shape)  # the place of each target
        if generator and self._later:
            ahead = generator.random(items.shape) * (length[:, None] - column)
            drawn = column + np.where(generator.random(items.shape) < self._later, ahead, 0).astype(np.int64)
            predicted = np.clip(drawn, 0, length[:, None] - 1)
        targets = np.where(inside, np.take_along_axis(items, predicted, 1), -1)
        targets[self._continues[windows], 0] = -1
        if self._targets is not None:
            targets[~np.take_along_axis(self._targets[position], predicted, 1)] = -1
        strengths = None
        if data.strengths is not None:
            strengths = torch.from_numpy(np.take_along_axis(data.strengths[position], predicted, 1))
        # The last item of a window is only a target; the others are also history.
        last = np.arange(len(windows)), length - 1
        history = items.copy()
        history[last] = -1
        users = self._user[windows]
        return Batch(
            torch.from_numpy(history[:, :-1]),
            torch.from_numpy(targets),
            torch.from_numpy(data.context.categories[users]),
            torch.from_numpy(data.context.numbers[users]),
            strengths,
        )
