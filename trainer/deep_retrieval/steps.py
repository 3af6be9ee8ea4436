"""An epoch of gradient steps: optimisers, learning rate, and the loop over batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.config import TrainConfig
from trainer.data.batches import Batch, Batches
from trainer.errors import TrainerError
from trainer.progress import Advance

#: The gradient steps of a batch: for each step, its mean loss and its number of predictions. Each loss is computed when
#: the iterator is advanced, after the step before has changed the network.
Losses = Callable[[Batch], Iterator[tuple[Tensor, int]]]


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """Adam, and SparseAdam for item vectors if a step reads few of them (`TrainConfig.steps_are_sparse`)."""
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
    advance: Advance,
) -> float:
    """One pass of gradient steps over all batches. Returns the mean loss, in nats per prediction.

    Raises TrainerError if a loss is not finite.
    """
    total, done = 0.0, 0
    for batch in batches.epoch(generator):
        for loss, count in losses(batch):
            value = loss.item()
            if not math.isfinite(value):
                raise TrainerError(f"epoch {epoch}: the loss is {value}; lower learning_rate")
            set_learning_rate(optimizers, config, epoch - 1 + done / batches.predictions)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            total += count * value
            done += count
            advance(count)
    return total / done


def set_learning_rate(optimizers: Sequence[Optimizer], config: TrainConfig, done: float) -> None:
    """Set the learning rate for the time after `done` epochs: in each round the rate falls linearly to a tenth.

    The warm-up is a round. The epochs after it are divided into rounds by the reassignments.
    """
    ends = sorted({config.warmup, *config.reassignment_epochs(), config.passes})
    end = next(end for end in ends if done < end)
    start = max((e for e in ends if e <= done), default=0)
    for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
        group["lr"] = config.learning_rate * (1 - 0.9 * (done - start) / (end - start))
