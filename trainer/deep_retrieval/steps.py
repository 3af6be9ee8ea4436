"""An epoch of gradient steps: optimisers, and the loop over batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.data.batches import Batch, Batches
from trainer.errors import TrainerError
from trainer.progress import Advance

#: The gradient steps of a batch: for each step, its mean loss and its number of predictions. Each loss is computed when
#: the iterator is advanced, after the step before has changed the network.
Losses = Callable[[Batch], Iterator[tuple[Tensor, int]]]


def make_optimizers(parts: Iterable[nn.Module], learning_rate: float, weight_decay: float) -> list[Optimizer]:
    """AdamW, and SparseAdam for item vectors if a step reads few of them (`TrainConfig.steps_are_sparse`).

    Matrices and vectors decay by learning_rate * weight_decay in a step; biases, scales and sparse vectors do not.
    """
    modules = [module for part in parts for module in part.modules()]
    sparse = [module.weight for module in modules if isinstance(module, nn.Embedding) and module.sparse]
    others = [p for module in modules for p in module.parameters(recurse=False) if not any(p is s for s in sparse)]
    groups = [
        {"params": [p for p in others if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in others if p.dim() == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW([group for group in groups if group["params"]], learning_rate, fused=True)
    return [adam, torch.optim.SparseAdam(sparse, learning_rate)] if sparse else [adam]


def gradient_epoch(
    losses: Losses,
    optimizers: Sequence[Optimizer],
    batches: Batches,
    generator: np.random.Generator,
    advance: Advance,
    before_step: Callable[[float], None] = lambda _: None,
) -> float:
    """One pass of gradient steps over all batches. Returns the mean loss, in nats per prediction; 0 without any.

    before_step: called before each step with the share of the epoch that is done. Raises TrainerError if a loss is not
    finite.
    """
    total, done = 0.0, 0
    for batch in batches.epoch(generator):
        for loss, count in losses(batch):
            value = loss.item()
            if not math.isfinite(value):
                raise TrainerError(f"the loss is {value}; lower learning_rate")
            before_step(done / batches.predictions)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            total += count * value
            done += count
            advance(count)
    return total / max(done, 1)


def set_learning_rate(optimizers: Sequence[Optimizer], rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
        group["lr"] = rate


def falling_rate(start: float, done: float, ends: Sequence[int]) -> float:
    """The learning rate after `done` epochs: in each round it falls linearly from `start` to a tenth.

    ends: the epochs at which the rounds end, ascending. The first round begins at 0.
    """
    end = next(end for end in ends if done < end)
    begin = max((e for e in ends if e <= done), default=0)
    return start * (1 - 0.9 * (done - begin) / (end - begin))
