"""An epoch of gradient steps: optimisers, learning rate, and the loop over batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.config import TrainConfig
from trainer.data.batches import Batch, Batches
from trainer.errors import TrainerError

#: For each gradient step on a batch its loss and how many predictions it has; computed when it is asked for.
Losses = Callable[[Batch], Iterator[tuple[Tensor, int]]]


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """Adam, and for item vectors of which a step reads few (`steps_are_sparse`) Adam of just those."""
    sparse = [part.weight for part in model.modules() if isinstance(part, nn.Embedding) and part.sparse]
    chosen = set(map(id, sparse))
    dense = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    adam = torch.optim.Adam(dense, config.learning_rate, weight_decay=config.weight_decay, fused=True)
    return [adam, torch.optim.SparseAdam(sparse, config.learning_rate)] if sparse else [adam]


def gradient_epoch(
    config: TrainConfig,
    losses: Losses,
    optimizers: Sequence[Optimizer],
    batches: Batches,
    epoch: int,
    generator: np.random.Generator,
    advance: Any,
) -> float:
    """One pass of gradient steps. Returns the mean loss, in nats a click."""
    total, done = 0.0, 0
    for batch in batches.epoch(generator):
        for loss, count in losses(batch):
            set_learning_rate(optimizers, config, epoch - 1 + done / batches.predictions)
            if not math.isfinite(loss.item()):
                raise TrainerError(f"epoch {epoch}: the loss is {loss.item()}; lower learning_rate")
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            total += count * loss.item()
            done += count
            advance(count)
    return total / done


def set_learning_rate(optimizers: Sequence[Optimizer], config: TrainConfig, done: float) -> None:
    """Falls linearly to a tenth in each round: the warm-up, then from one reassignment to the next. done: epochs."""
    ends = sorted({config.warmup, *config.reassignment_epochs(), config.passes})
    end = next(end for end in ends if done < end)
    start = max((e for e in ends if e <= done), default=0)
    for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
        group["lr"] = config.learning_rate * (1 - 0.9 * (done - start) / (end - start))
