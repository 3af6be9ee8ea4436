"""The loss of the softmax head, which trains the encoder, and the loss of the path layers (Sec. 3.2, 3.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainer.config import TrainConfig
from trainer.data.batches import Batch
from trainer.deep_retrieval.layers import PathModel

#: Predictions per gradient step of the path layers. Many small steps give better paths (docs/decisions.md, Paths).
PATH_STEP = 256
#: Taught items are drawn from the head's softmax at half its temperature: each item's probability is squared. So the
#: layers learn most about the items at the top of brute force's answer (docs/log-paths.md).
SHARPNESS = 2.0


class UserModel(Protocol):
    """The interface of a model for a loss: user vectors, item vectors, and the score of every item for every user.

    item_bias: (V,), on the device of the model.
    """

    item_bias: Tensor

    @property
    def encoder(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """User vectors (B, T + 1, E) from items (B, T), categories (B, C) and numbers (B, M)."""

    def vectors_of(self, items: Tensor) -> Tensor:
        """The vectors of `items`, (..., E)."""

    def head_logits(self, user: Tensor) -> Tensor:
        """The softmax head's logit of every item, (N, V). user: (N, E)."""


class SoftmaxHead:
    """The loss of the softmax head: over all items, or for large V over sampled negatives with log-Q correction."""

    def __init__(
        self,
        config: TrainConfig,
        clicks: NDArray[Any],
        device: torch.device | Literal["cpu"] = "cpu",
    ) -> None:
        """clicks: (V,), the clicks of each item in training. device: the device of the models."""
        self.device = torch.device(device)
        self._sampled = config.samples_negatives(len(clicks))
        self._negatives = config.negatives
        # Items are drawn in proportion to their clicks; an item without clicks counts as clicked once.
        share = torch.from_numpy(np.maximum(clicks, 1) / np.maximum(clicks, 1).sum()).to(self.device)
        self._share, self._cumulative = share.float(), share.cumsum(dim=0)

    def losses(self, model: UserModel, batch: Batch) -> Iterator[tuple[Tensor, int]]:
        """One gradient step: the mean loss of the batch, and its number of predictions."""
        user, targets, strengths = predictions(model, batch)
        yield _mean(self.loss(model, user, targets), strengths), len(targets)

    def loss(self, model: UserModel, user: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of each prediction in nats, (N,). user: (N, E), targets: (N,)."""
        if not self._sampled:
            return F.cross_entropy(model.head_logits(user), targets, reduction="none")
        drawn, logits, correction = self._draw(model, user)
        # The target has its own column; the drawn items represent all other items.
        positive = (user * model.vectors_of(targets)).sum(1) + model.item_bias[targets]
        negative = (logits - correction).masked_fill(drawn == targets[:, None], -torch.inf)  # (N, M)
        logits = torch.cat([positive[:, None], negative], dim=1)
        return F.cross_entropy(logits, torch.zeros_like(targets), reduction="none")

    def sample(self, model: UserModel, user: Tensor, count: int = 1) -> Tensor:
        """Items for each user, (N, count), drawn from the head's sharpened softmax, or for large V from an estimate.

        The probability of an item is proportional to its probability in the softmax to the power of SHARPNESS.
        """
        if not self._sampled:
            return draw((SHARPNESS * model.head_logits(user)).softmax(dim=1).cumsum(dim=1), count)
        drawn, logits, correction = self._draw(model, user)  # sampling importance resampling
        return drawn[draw((SHARPNESS * logits - correction).softmax(dim=1).cumsum(dim=1), count)]

    def _draw(self, model: UserModel, user: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """M items (M,), drawn by their share of the clicks, their logits (N, M), and the corrections of these (M,).

        The sum of exp over the logits minus the corrections estimates the sum of exp over the logits of all items: the
        correction is the log of an item's expected number of draws (log Q; Bengio and Senecal 2008).
        """
        drawn = draw(self._cumulative, self._negatives)  # (M,)
        correction = self._share[drawn].log() + math.log(self._negatives)
        return drawn, user @ model.vectors_of(drawn).T + model.item_bias[drawn], correction


def draw(cumulative: Tensor, count: int) -> Tensor:
    """`count` draws with replacement from each row, (..., count). cumulative: (..., n), cumulative probabilities.

    Random numbers are looked up in `cumulative`. torch.multinomial would draw n random numbers for each row, which took
    half of an epoch, and it limits n to 2^24.
    """
    total = cumulative[..., -1:]
    at = torch.rand(*cumulative.shape[:-1], count, dtype=cumulative.dtype, device=cumulative.device) * total
    return torch.searchsorted(cumulative, at, right=True).clamp(max=cumulative.shape[-1] - 1)


class PathLoss:
    """Minus the log-probability of each target, with a fixed encoder and head.

    In eq. (2), a target's probability is the sum of its paths' probabilities. With hard EM, only the path that is most
    probable for the user counts. So each path of an item learns from a part of the item's users, and a beam has fewer
    paths that lead to the same item (docs/log-paths.md).

    A share of the targets are items drawn by the head, not the clicked items. A click gives no information about items
    that were not clicked, but the head has a probability for every item. Also, the goal of the paths is to find the
    items that the head ranks highest (after Hinton et al. 2015).
    """

    def __init__(
        self,
        head: SoftmaxHead,
        paths: NDArray[np.int64],
        taught: float,
        trie: NDArray[np.int32] | None = None,
        *,
        best_only: bool = True,
    ) -> None:
        """paths: (V, J). taught: the share of targets that are drawn from the head. trie: (R, K), of `paths`.

        Without a trie, the layers also learn which paths are not in use. best_only: hard EM instead of eq. (2).
        """
        self._head, self._taught, self._best_only = head, taught, best_only
        self._paths = torch.from_numpy(paths).to(head.device)
        self._trie = None if trie is None else torch.from_numpy(trie).to(head.device)

    def losses(self, model: PathModel, batch: Batch) -> Iterator[tuple[Tensor, int]]:
        """The gradient steps of a batch: for each step, its mean loss and its number of predictions.

        A batch is encoded as a whole, then shuffled and cut into steps, so that a step has predictions of different
        users. All steps have nearly the same size: a small last step would change the layers as much as a full step.
        """
        with torch.no_grad():
            users, clicked, strengths = predictions(model, batch)
        order = torch.randperm(len(clicked), device=clicked.device)
        for step in order.tensor_split(max(1, round(len(clicked) / PATH_STEP))):
            user, targets = users[step], clicked[step]
            with torch.no_grad():
                taught = torch.rand(len(targets), device=targets.device) < self._taught
                targets[taught] = self._head.sample(model, user[taught]).squeeze(1)
            log_probs = model.path_log_probs(user, self._paths[targets], self._trie)
            reached = log_probs.max(dim=1).values if self._best_only else log_probs.logsumexp(dim=1)
            yield _mean(-reached, None if strengths is None else strengths[step]), len(targets)


def predictions(model: UserModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """The user vectors (N, E) from which the N targets (N,) are predicted, and their strengths (N,) or None.

    All are on the model's device.
    """
    batch = batch.to(model.item_bias.device)
    wanted = batch.targets >= 0
    user = model.encoder(batch.history, batch.categories, batch.numbers)[wanted]
    return user, batch.targets[wanted], None if batch.strengths is None else batch.strengths[wanted]


def _mean(losses: Tensor, strengths: Tensor | None) -> Tensor:
    """The mean of the losses (N,), each times its strength (N,); the strengths of all clicks have the mean 1."""
    return losses.mean() if strengths is None else (losses * strengths).mean()
