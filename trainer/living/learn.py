"""Gradient steps on sessions, as in a training but for less long: encoder and head learn, then the path layers."""

from __future__ import annotations

import functools
from collections.abc import Sequence

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

#: Passes of encoder and head: so many that an item comes PASSED times on average, but from LEAST to MOST. Adam moves a
#: vector by about the learning rate in each step that has its item, so items with few clicks need more passes.
PASSED, LEAST, MOST = 100, 2, 6
PATH_EPOCHS = 2
OLD = 0.5  # share of the old clicks that a pass learns again, so that the network does not forget


class Learning:
    """Changes the weights of `model`, so that it predicts the new clicks of sessions."""

    def __init__(
        self,
        model: PathModel,
        clicks: NDArray[np.float64],
        sessions: Clicks,
        config: TrainConfig,
        seed: int,
        progress: Progress,
    ) -> None:
        """clicks: (V,), how often each item is clicked; negatives are drawn in proportion to it."""
        self._model, self._config, self._seed, self._progress = model, config, seed, progress
        self._sessions = sessions
        self._head = SoftmaxHead(config, clicks)
        self._passes = round(min(MOST, max(LEAST, PASSED * len(clicks) / max(clicks.sum(), 1))))

    def network(self) -> None:
        """Encoder, item vectors and softmax head learn."""
        config = self._config
        rate = RATE * config.learning_rate
        optimizers = make_optimizers([self._model], rate, config.weight_decay)
        self._epochs("network", self._passes, rate, optimizers, self._head)

    def paths(self, paths: NDArray[np.int64], path_ids: NDArray[np.int64]) -> None:
        """The path layers learn. paths: (V, J). path_ids: all paths in use."""
        model, config = self._model, self._config
        for module in model.encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = min(module.p, PATH_DROPOUT)
        loss = PathLoss(self._head, paths, config.taught, path_trie(path_ids, config.depth, model.width))
        optimizers = make_optimizers(model.layers, config.learning_rate, 0.0)
        self._epochs("paths", PATH_EPOCHS, config.learning_rate, optimizers, loss)

    def _epochs(
        self, name: str, epochs: int, rate: float, optimizers: Sequence[Optimizer], loss: SoftmaxHead | PathLoss
    ) -> None:
        """Epochs of gradient steps, in which the learning rate falls from `rate` to a tenth."""
        model = self._model
        model.train()
        for epoch in range(epochs):
            seed_epoch(self._seed, epoch)
            generator = np.random.default_rng([self._seed, epoch])
            batches = self._drawn(generator)
            falling = functools.partial(_set_rate, optimizers, rate, epoch, epochs)
            title = f"learning, {name}: epoch {epoch + 1} of {epochs}"
            with self._progress.task(title, batches.predictions) as advance:
                gradient_epoch(functools.partial(loss.losses, model), optimizers, batches, generator, advance, falling)
        model.eval()

    def _drawn(self, generator: np.random.Generator) -> Batches:
        """All new clicks and some of the old ones."""
        (dataset, split, fresh, taught), config = self._sessions, self._config
        drawn = taught & (fresh | (generator.random(len(fresh)) < OLD))
        size = config.resolve_batch(len(fresh))
        return Batches(dataset, split, config.history, size, config.resolve_later(), drawn)


def _set_rate(optimizers: Sequence[Optimizer], rate: float, epoch: int, epochs: int, done: float) -> None:
    """Set the learning rate after the share `done` of an epoch."""
    # With later items as targets, a few more than expected may be old ones that are drawn.
    set_learning_rate(optimizers, falling_rate(rate, epoch + min(done, 0.999), [epochs]))
