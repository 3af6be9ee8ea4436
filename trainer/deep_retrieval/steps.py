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

#: The gradient steps of a batch: for each its mean loss and how many predictions that is of. Each is computed only when
#: it is asked for, after the step before it.
Losses = Callable[[Batch], Iterator[tuple[Tensor, int]]]


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """Adam; and SparseAdam for item vectors of which a step reads few (`TrainConfig.steps_are_sparse`)."""
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
    """One pass of gradient steps. Returns the mean loss, in nats a click.

    Raises TrainerError at a loss that is not finite.
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
    """Set the learning rate after `done` epochs: in each round it falls linearly to a tenth.

    A round is the warm-up, the epochs from there to the first reassignment, or those from a reassignment to the next.
    """
    ends = sorted({config.warmup, *config.reassignment_epochs(), config.passes})
    end = next(end for end in ends if done < end)
    start = max((e for e in ends if e <= done), default=0)
    for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
        group["lr"] = config.learning_rate * (1 - 0.9 * (done - start) / (end - start))
