"""The warm-up: encoder and softmax head learn, until the answers to tuning users no longer improve.

The weights are averaged over about one epoch of steps (Polyak averaging). The learning rate stays constant, so the
number of epochs need not be known in advance: after each epoch, brute force with the averaged weights answers tuning
users, and the averages with the highest NDCG@k are kept.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from trainer.config import TrainConfig
from trainer.data.batches import Batches
from trainer.data.measures import mean_figures, new_items, tops
from trainer.data.requests import Requests, pad_histories
from trainer.deep_retrieval.losses import SoftmaxHead
from trainer.deep_retrieval.steps import gradient_epoch, make_optimizers
from trainer.progress import Progress

RATE = 1 / 3  # learning rate of the encoder, relative to the setting
AVERAGED_EVERY = 8  # steps between two updates of the averaged weights
TUNED_ON = 5000  # most tuning users whose answers decide when the warm-up ends
UNTUNED_EPOCHS = 8  # epochs if there are no tuning users and the config does not limit the epochs


class Averages(nn.Module):
    """Two copies of a model: its weights averaged over about one epoch, and the best of these averages so far."""

    def __init__(self, model: nn.Module, updates: int) -> None:
        """updates: the number of updates in an epoch."""
        super().__init__()

        def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            # At first the average is over few updates, because the weights before training should not count.
            newest = max(1 / max(updates, 1), 10 / (10 + float(count)))
            return averaged.lerp(current, min(1.0, newest))

        self.current = AveragedModel(model, avg_fn=average)
        self.best = copy.deepcopy(model)

    def keep_best(self) -> None:
        """Make the current average the best one."""
        self.best.load_state_dict(self.current.module.state_dict())


class WarmUp:
    """Trains a model's encoder and item vectors. `epochs` continues after the records of earlier epochs."""

    def __init__(
        self, config: TrainConfig, model: Any, head: SoftmaxHead, batches: Batches, tuning: Requests, name: str = ""
    ) -> None:
        """model: a UserModel that is also a torch module. tuning: requests of users with withheld items.

        name: the beginning of progress lines.
        """
        self.config, self.model, self._head, self._batches, self._name = config, model, head, batches, name
        self._tuning = tuning.spread(TUNED_ON)
        untuned = config.epochs == config.warmup_epochs == "auto" and not any(map(len, new_items(self._tuning)))
        self.limit = UNTUNED_EPOCHS if untuned else config.encoder_epochs
        self.averages = Averages(model, -(-batches.steps // AVERAGED_EVERY)).to(head.device)
        self.optimizers = make_optimizers([model], RATE * config.learning_rate, config.weight_decay)

    def finished(self, records: list[dict[str, Any]]) -> bool:
        """Whether no epoch follows those of `records`."""
        scores = [record["ndcg"] for record in records]
        if len(records) >= self.limit:
            return True
        return bool(scores) and None not in scores and len(scores) - _best(scores) >= self.config.patience

    def epochs(self, records: list[dict[str, Any]], progress: Progress) -> Iterator[dict[str, Any]]:
        """Train until the warm-up is finished. Yields the record of each epoch, when the epoch can be saved.

        records: those of the epochs that are done. With the last record, the model has the best averaged weights.
        """
        records = list(records)
        while not self.finished(records):
            epoch = len(records) + 1
            started = time.monotonic()
            seed_epoch(self.config.seed, epoch)
            generator = np.random.default_rng([self.config.seed, 2, epoch])
            self.model.train()
            steps = 0

            def average(_: float) -> None:
                nonlocal steps
                if steps % AVERAGED_EVERY == 0:
                    self.averages.current.update_parameters(self.model)
                steps += 1

            title = f"{self._name}epoch {epoch}, of at most {self.limit} for the encoder"
            with progress.task(title, self._batches.predictions) as advance:
                losses = functools.partial(self._head.losses, self.model)
                loss = gradient_epoch(losses, self.optimizers, self._batches, generator, advance, average)
            self.averages.current.update_parameters(self.model)
            score = ndcg(self.averages.current.module, self._tuning, self.config.k, self.config.history)
            records.append({"epoch": epoch, "head_loss": loss, "ndcg": score})
            if score is None or _best([record["ndcg"] for record in records]) == epoch:
                self.averages.keep_best()
            if self.finished(records):
                self.model.load_state_dict(self.averages.best.state_dict())
            records[-1]["seconds"] = round(time.monotonic() - started, 2)
            yield records[-1]


def _best(scores: list[float]) -> int:
    """The epoch with the highest score, counted from 1; the earlier of two equal ones."""
    return 1 + max(range(len(scores)), key=scores.__getitem__)


def ndcg(model: Any, requests: Requests, k: int, history: int) -> float | None:
    """NDCG@k of brute force without the items of the histories; None if there is nothing to find.

    model: a UserModel that is also a torch module.
    """
    answers = []
    device = model.item_bias.device
    training = model.training
    model.eval()
    with torch.inference_mode():
        for part in requests.parts():
            padded = pad_histories(requests.histories[part], history)
            inputs = padded, requests.categories[part], requests.numbers[part]
            vectors = model.encoder(*(torch.from_numpy(array).to(device) for array in inputs))
            last = torch.from_numpy((padded >= 0).sum(axis=1)).to(device)
            user = vectors[torch.arange(len(padded), device=device), last]
            answers += tops(model.head_logits(user).cpu().numpy(), k, requests.histories[part])
    model.train(training)
    figure: float | None = mean_figures(answers, new_items(requests), k)["ndcg"]
    return figure


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed torch for an epoch, so that a run which continues there draws the same numbers."""
    torch.manual_seed(int(np.random.SeedSequence([seed, 3, epoch]).generate_state(1, np.uint64)[0] >> 1))
