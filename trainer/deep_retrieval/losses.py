"""What the network learns from: the softmax head's loss, and the paths' (Sec. 3.2, 3.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainer.config import TrainConfig
from trainer.data.batches import Batch
from trainer.deep_retrieval.layers import PathModel

#: Predictions a gradient step of the path layers: many small steps find more (README, What was tried).
PATH_STEP = 256


class UserModel(Protocol):
    """What a loss needs of a model: user vectors, item vectors, and the scores they give together."""

    item_bias: Tensor

    @property
    def encoder(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]: ...

    def vectors_of(self, items: Tensor) -> Tensor: ...

    def head_logits(self, user: Tensor) -> Tensor: ...


class SoftmaxHead:
    """The softmax head over items: full, or over sampled negatives with log-Q correction for large V."""

    def __init__(self, config: TrainConfig, clicks: NDArray[np.int64]) -> None:
        self._sampled = config.samples_negatives(len(clicks))
        self._negatives = config.negatives
        # Items are drawn as they are clicked, each at least as if clicked once.
        share = torch.from_numpy(np.maximum(clicks, 1) / np.maximum(clicks, 1).sum())
        self._share, self._cumulative = share.float(), share.cumsum(dim=0)

    def losses(self, model: UserModel, batch: Batch) -> Iterator[tuple[Tensor, int]]:
        """The loss of a batch, from which encoder and item vectors learn, and how many predictions it has."""
        user, targets = predictions(model, batch)
        yield self.loss(model, user, targets), len(targets)

    def loss(self, model: UserModel, user: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy. user: (N, E), targets: (N,)."""
        if not self._sampled:
            return F.cross_entropy(model.head_logits(user), targets)
        drawn, negative = self._draw(model, user)
        # The target stands for itself alone, the drawn for all other items.
        positive = (user * model.vectors_of(targets)).sum(1) + model.item_bias[targets]
        negative = negative.masked_fill(drawn == targets[:, None], -torch.inf)  # (N, M)
        logits = torch.cat([positive[:, None], negative], dim=1)
        return F.cross_entropy(logits, torch.zeros_like(targets))

    def sample(self, model: UserModel, user: Tensor) -> Tensor:
        """An item for each user, (N,), drawn from the head's softmax, or nearly so where V is large."""
        if not self._sampled:
            return draw(model.head_logits(user).softmax(dim=1).cumsum(dim=1), 1).squeeze(1)
        drawn, logits = self._draw(model, user)  # sampling importance resampling
        return drawn[draw(logits.softmax(dim=1).cumsum(dim=1), 1).squeeze(1)]

    def _draw(self, model: UserModel, user: Tensor) -> tuple[Tensor, Tensor]:
        """M items drawn by their share, and logits (N, M) whose exp sum to an estimate of the sum over all items.

        Bengio and Senecal 2008: subtract log Q of whatever is in the sum.
        """
        drawn = draw(self._cumulative, self._negatives)  # (M,)
        correction = self._share[drawn].log() + math.log(self._negatives)
        return drawn, user @ model.vectors_of(drawn).T + model.item_bias[drawn] - correction


def draw(cumulative: Tensor, count: int) -> Tensor:
    """`count` draws with replacement of each row, (..., count), given its probabilities' running sum (..., n).

    By inversion: torch.multinomial draws a random number for each of n, which took half of an epoch, and has a limit of
    2^24 of them.
    """
    total = cumulative[..., -1:]
    at = torch.rand(*cumulative.shape[:-1], count, dtype=cumulative.dtype) * total
    return torch.searchsorted(cumulative, at, right=True).clamp(max=cumulative.shape[-1] - 1)


class PathLoss:
    """Eq. (2) with encoder and head fixed: a target has the sum of its paths' probabilities.

    A share of the targets is drawn from the head's softmax instead of being what was clicked: a prediction has one
    click, but the head tells of every item how likely it is, and it is the head's choice that the paths are to find
    (after Hinton et al. 2015).
    """

    def __init__(self, head: SoftmaxHead, paths: NDArray[np.int64], taught: float) -> None:
        self._head, self._paths, self._taught = head, torch.from_numpy(paths), taught

    def losses(self, model: PathModel, batch: Batch) -> Iterator[tuple[Tensor, int]]:
        """For each gradient step on a batch the loss, from which the path layers learn, and its predictions.

        A batch is encoded at once, then shuffled and cut: neighbours in a step should be of different users. All steps
        are of like size: a few predictions left over would move the layers as far as many do.
        """
        with torch.no_grad():
            users, clicked = predictions(model, batch)
        for step in torch.randperm(len(clicked)).tensor_split(max(1, round(len(clicked) / PATH_STEP))):
            user, targets = users[step], clicked[step]
            with torch.no_grad():
                taught = torch.rand(len(targets)) < self._taught
                targets[taught] = self._head.sample(model, user[taught])
            yield -model.path_log_probs(user, self._paths[targets]).logsumexp(dim=1).mean(), len(targets)


def predictions(model: UserModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The user vectors (N, E) from which the N targets (N,) are predicted."""
    wanted = batch.targets >= 0
    return model.encoder(batch.history, batch.categories, batch.numbers)[wanted], batch.targets[wanted]
