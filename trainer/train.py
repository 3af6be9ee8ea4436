"""fit(): the EM loop of Deep Retrieval (Sec. 3.2), written out in plain sight.

An epoch is a pass of gradient steps on the network with the paths fixed; then, once the network tells paths
apart, a pass that scores paths for every click and a reassignment of the items' paths with the network fixed.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainer.assignment import Occupancy, PathAssigner
from trainer.batches import Batch, Batches
from trainer.checkpoint import Run
from trainer.config import TrainConfig
from trainer.data import Dataset, Split
from trainer.errors import TrainerError
from trainer.model import PathModel, random_paths
from trainer.progress import Progress

SAMPLED_REQUESTS = 4000  # whose beams tell how many items a request reads


@dataclass(frozen=True)
class Trained:
    """What fit returns: the network, the assignment (V, J) and what was measured on the way, a record an epoch."""

    model: PathModel
    paths: NDArray[np.int64]
    history: list[dict[str, Any]]


def fit(config: TrainConfig, dataset: Dataset, split: Split, run: Run, progress: Progress) -> Trained:
    """Train on `split`'s training users, continuing `run` where it left off.

    The result depends on config and data alone: each epoch draws from its own seed. Raises TrainerError when the
    loss is no longer finite.
    """
    items = len(dataset.item_ids)
    width = config.resolve_width(items)
    torch.manual_seed(config.seed)
    clicks = click_counts(dataset, split)
    model = PathModel(config, width, clicks, dataset.schema)
    generator = np.random.default_rng([config.seed, 1])
    assigner = PathAssigner(
        random_paths(items, config.paths_per_item, config.depth, width, generator), config.candidate_paths, config.eta
    )
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    batches = Batches(dataset, split, config.history, config.batch, config.later)
    done = run.restore(model, optimizer, assigner)
    progress.say(
        f"{items} items, {len(split.train_users)} users, {batches.predictions} interactions; "
        f"{config.depth} layers of {width} nodes, {config.paths_per_item} paths an item"
        + (f"; continuing after epoch {done}" if done else "")
    )
    for epoch in range(done + 1, config.epochs + 1):
        started = time.monotonic()
        torch.manual_seed(_epoch_seed(config.seed, epoch))
        generator = np.random.default_rng([config.seed, 2, epoch])

        # E-step: gradient steps on the network, the paths fixed.
        model.freeze_head(frozen=0 < config.joint_epochs < epoch)
        with progress.task(f"epoch {epoch}/{config.epochs}: learning", batches.predictions) as advance:
            losses = _gradient_epoch(
                config, model, optimizer, batches, assigner.paths, clicks, epoch, generator, advance
            )
        record: dict[str, Any] = {"epoch": epoch, **losses}

        # M-step: score paths for every click, then move the items, the network fixed.
        if epoch in config.reassignment_epochs():
            with progress.task(f"epoch {epoch}/{config.epochs}: scoring paths", batches.predictions) as advance:
                beams = _score_paths(model, batches, assigner, config.candidate_paths, advance)
            before = assigner.paths
            alpha = config.alpha if config.alpha != "auto" else _alpha_for_budget(assigner, beams, config)
            assigner.reassign(alpha, config.sweeps)
            record |= {"alpha": alpha, "moved": float((before[:, :, None] != assigner.paths[:, None]).all(2).mean())}

        occupancy = Occupancy.of(assigner.paths)
        record |= {**occupancy.to_json(), "entropy": occupancy.entropy, "seconds": round(time.monotonic() - started, 2)}
        run.save(record, model, optimizer, assigner)
        progress.say(_line(record, config.epochs))
        if warning := occupancy.collapse(items, 10 * config.k):
            progress.say(f"warning: {warning}")
    return Trained(model.eval(), assigner.paths, run.history)


def click_counts(dataset: Dataset, split: Split) -> NDArray[np.int64]:
    """How often each item occurs in what training may see, (V,)."""
    lengths = np.diff(dataset.offsets)
    seen = np.zeros(len(lengths), np.int64)
    seen[split.train_users] = split.train_length[split.train_users]
    place = np.arange(len(dataset.items)) - np.repeat(dataset.offsets[:-1], lengths)
    return np.bincount(dataset.items[place < np.repeat(seen, lengths)], minlength=len(dataset.item_ids))


def _gradient_epoch(
    config: TrainConfig,
    model: PathModel,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    paths: NDArray[np.int64],
    clicks: NDArray[np.int64],
    epoch: int,
    generator: np.random.Generator,
    advance: Any,
) -> dict[str, float]:
    """One pass of gradient steps. Returns the mean losses, in nats a click."""
    model.train()
    item_paths = torch.from_numpy(paths)
    head = SoftmaxHead(config, clicks)
    sums, count, done = np.zeros(2), 0, 0
    for batch in batches.epoch(generator):
        _set_learning_rate(optimizer, config, (epoch - 1 + done / batches.predictions) / config.epochs)
        user, targets = _predictions(model, batch)
        path_loss = -model.path_log_probs(user, item_paths[targets]).logsumexp(dim=1).mean()  # eq. (2)
        head_loss = head.loss(model, user, targets)
        loss = path_loss + head_loss
        if not math.isfinite(loss.item()):
            raise TrainerError(f"epoch {epoch}: the loss is {loss.item()}; lower learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        sums += len(targets) * np.array([path_loss.item(), head_loss.item()])
        count += len(targets)
        done += len(targets)
        advance(len(targets))
    return {"path_loss": sums[0] / count, "head_loss": sums[1] / count}


class SoftmaxHead:
    """The loss of the softmax head: full, or over sampled negatives with log-Q correction for large V."""

    def __init__(self, config: TrainConfig, clicks: NDArray[np.int64]) -> None:
        self._sampled = len(clicks) > config.full_softmax_items
        self._negatives = config.negatives
        # Items are drawn as they are clicked, each at least as if clicked once.
        self._share = torch.from_numpy(np.maximum(clicks, 1) / np.maximum(clicks, 1).sum()).float()

    def loss(self, model: PathModel, user: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy. user: (N, E), targets: (N,)."""
        if not self._sampled:
            return F.cross_entropy(model.head_logits(user), targets)
        drawn = torch.multinomial(self._share, self._negatives, replacement=True)  # (M,)
        correction = self._share.log()  # Bengio and Senecal 2008: subtract log Q of whatever is in the sum
        # The target stands for itself alone, the drawn for all other items.
        positive = (user * model.item_vectors[targets]).sum(1) + model.item_bias[targets]
        negative = user @ model.item_vectors[drawn].T + model.item_bias[drawn] - correction[drawn]
        negative = negative - math.log(self._negatives)
        negative = negative.masked_fill(drawn == targets[:, None], -torch.inf)  # (N, M)
        logits = torch.cat([positive[:, None], negative], dim=1)
        return F.cross_entropy(logits, torch.zeros_like(targets))


def _predictions(model: PathModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The user vectors (N, E) from which the N targets (N,) are predicted."""
    wanted = batch.targets >= 0
    return model.encoder(batch.history, batch.categories, batch.numbers)[wanted], batch.targets[wanted]


def _score_paths(
    model: PathModel, batches: Batches, assigner: PathAssigner, candidate_paths: int, advance: Any
) -> NDArray[np.int64]:
    """Let the assigner observe every click. Returns some requests' beams, (R, S) path ids.

    Besides the beam's paths, an item's present ones are scored too: for a rare item they are seldom in the beam.
    """
    model.eval()
    beams: list[NDArray[np.int64]] = []
    every = max(1, batches.predictions // SAMPLED_REQUESTS)
    with torch.inference_mode():
        for batch in batches.epoch(None):
            user, targets = _predictions(model, batch)
            own = assigner.paths[targets.numpy()]
            found, log_probs = model.beam_search(user, candidate_paths)
            own_log_probs = model.path_log_probs(user, torch.from_numpy(own))
            assigner.observe(
                targets.numpy().astype(np.int32),
                np.concatenate([found.numpy(), own], axis=1),
                torch.cat([log_probs, own_log_probs], dim=1).exp().numpy(),
            )
            beams.append(found.numpy()[::every].copy())
            advance(len(targets))
    return np.concatenate(beams)


def _alpha_for_budget(assigner: PathAssigner, beams: NDArray[np.int64], config: TrainConfig) -> float:
    """The alpha at which a request reads about 7.5 k items, by bisection on the coordinate descent alone.

    The score table stays as it is, so this needs no training. Larger alpha, smaller paths (Table 5: the largest
    path goes like alpha^-0.3).
    """
    beam = 25 if config.beam == "auto" else config.beam
    low, high = -9.0, 6.0  # of log10 alpha

    def reads(exponent: float) -> float:
        return expected_reads(assigner.descend(10**exponent, config.sweeps), beams, beam)

    # The scored paths may be too few for the budget. Then a penalty that overrules every score gains nothing
    # over the smallest one that comes near it.
    budget = max(7.5 * config.k, 1.1 * reads(high))
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if reads(middle) > budget else (low, middle)
    return float(10**high)


def expected_reads(paths: NDArray[np.int64], beams: NDArray[np.int64], beam: int) -> float:
    """Items on a beam of `beam` paths, given requests' beams (R, S): the mean size of the paths they met, times W."""
    used, sizes = np.unique(paths, return_counts=True)
    met = beams.ravel()
    place = np.minimum(np.searchsorted(used, met), len(used) - 1)
    live = used[place] == met
    return beam * float(sizes[place[live]].mean()) if live.any() else 0.0


def _set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, progress: float) -> None:
    """Falls linearly to a tenth over the run."""
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * (1 - 0.9 * progress)


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, 3, epoch]).generate_state(1, np.uint64)[0] >> 1)


def _line(record: dict[str, Any], epochs: int) -> str:
    moved = f", alpha {record['alpha']:.3g} moved {record['moved']:.0%} of postings" if "alpha" in record else ""
    return (
        f"epoch {record['epoch']}/{epochs}: path loss {record['path_loss']:.3f}, "
        f"head loss {record['head_loss']:.3f}; {record['used']} paths used, largest {record['largest']}, "
        f"mean {record['mean_size']:.2f}{moved} ({record['seconds']:.1f} s)"
    )
