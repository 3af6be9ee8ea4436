"""Gradient steps on sessions: encoder and head learn, then the path layers, as in a training but for less long."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from retrieval.paths.trie import path_trie
from trainer.config import TrainConfig
from trainer.data.batches import Batches
from trainer.deep_retrieval.fit import PATH_DROPOUT
from trainer.deep_retrieval.layers import PathModel
from trainer.deep_retrieval.losses import PathLoss, SoftmaxHead
from trainer.deep_retrieval.steps import falling_rate, gradient_epoch, make_optimizers, set_learning_rate
from trainer.deep_retrieval.warm_up import RATE, seed_epoch
from trainer.living.sessions import Clicks
from trainer.progress import Progress

HEAD_EPOCHS = 2
PATH_EPOCHS = 2


def learn(
    model: PathModel,
    paths: NDArray[np.int64],
    path_ids: NDArray[np.int64],
    clicks: NDArray[np.float64],
    sessions: Clicks,
    config: TrainConfig,
    seed: int,
    progress: Progress,
) -> None:
    """Change the weights of `model`, so that it predicts the new clicks of `sessions`.

    paths: (V, J). path_ids: all paths in use. clicks: (V,), how often each item is clicked; 0 for an item that must
    not be found.
    """
    data = sessions.dataset
    size = config.resolve_batch(len(data.items))
    batches = Batches(data, sessions.split, config.history, size, config.resolve_later())
    head = SoftmaxHead(config, clicks)
    trie = path_trie(path_ids, config.depth, model.width)
    learned = PathLoss(head, paths, config.taught, trie)
    parts = (
        ("network", HEAD_EPOCHS, [model], RATE * config.learning_rate, config.weight_decay, head),
        ("paths", PATH_EPOCHS, model.layers, config.learning_rate, 0.0, learned),
    )
    for name, epochs, modules, rate, decay, loss in parts:
        optimizers = make_optimizers(modules, rate, decay)
        if name == "paths":
            for module in model.encoder.modules():
                if isinstance(module, nn.Dropout):
                    module.p = min(module.p, PATH_DROPOUT)
        for epoch in range(epochs):
            seed_epoch(seed, epoch)
            falling = functools.partial(_set_rate, optimizers, rate, epoch, epochs)
            generator = np.random.default_rng([seed, epoch])

            model.train()
            with progress.task(f"learning, {name}: epoch {epoch + 1} of {epochs}", batches.predictions) as advance:
                losses = functools.partial(loss.losses, model)
                gradient_epoch(losses, optimizers, batches, generator, advance, falling)
    model.eval()


def _set_rate(optimizers: list[Optimizer], rate: float, epoch: int, epochs: int, done: float) -> None:
    """Set the learning rate after the share `done` of an epoch; it falls from `rate` to a tenth."""
    set_learning_rate(optimizers, falling_rate(rate, epoch + done, [epochs]))
