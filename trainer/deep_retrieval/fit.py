"""fit(): the EM loop of Deep Retrieval (Sec. 3.2).

First only the encoder and the softmax head learn. Similar items then have similar vectors, and a tree over the vectors
of items and of their audiences gives similar items neighbouring paths. Then encoder and head are fixed, and the path
layers learn. Each epoch is a pass of gradient steps with fixed paths (E-step). Some epochs end with a reassignment of
paths with a fixed network (M-step).
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from retrieval.paths.trie import path_trie
from retrieval.query import Limits
from trainer.config import TrainConfig
from trainer.data.batches import Batches
from trainer.data.dataset import Dataset
from trainer.data.requests import tuning_requests
from trainer.data.split import Split, click_counts, clicked_items
from trainer.deep_retrieval.audience import placing_vectors
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.device import choose_device
from trainer.deep_retrieval.layers import PathModel
from trainer.deep_retrieval.losses import PathLoss, SoftmaxHead
from trainer.deep_retrieval.m_step import reassign
from trainer.deep_retrieval.occupancy import Occupancy, collapse
from trainer.deep_retrieval.paths import random_paths
from trainer.deep_retrieval.reads import TRAINED_READS
from trainer.deep_retrieval.scores import Paths
from trainer.deep_retrieval.steps import falling_rate, gradient_epoch, make_optimizers, set_learning_rate
from trainer.deep_retrieval.tree import tree_paths
from trainer.deep_retrieval.unclicked import describe_unclicked
from trainer.deep_retrieval.warm_up import WarmUp, seed_epoch
from trainer.encoders.spectral import spectral_vectors
from trainer.encoders.user import UserEncoder
from trainer.progress import Progress, counted

#: The most dropout in the encoder while the path layers learn. The encoder is overfitted to its training sequences;
#: with dropout, their user vectors resemble those of users that it has not seen.
PATH_DROPOUT = 0.2


@dataclass(frozen=True)
class Trained:
    """The result of fit: the network on the CPU, the paths (V, J), and one record of measurements per epoch."""

    model: PathModel
    paths: NDArray[np.int64]
    history: list[dict[str, Any]]


def fit(
    config: TrainConfig,
    dataset: Dataset,
    split: Split,
    run: Run,
    progress: Progress,
    encoder: UserEncoder | None = None,
) -> Trained:
    """Train on `split`'s training users, continuing `run` from its last checkpoint.

    On the CPU the result depends only on config and data, because each epoch has its own random seed. A GPU adds
    numbers in varying order. encoder: a trained encoder that replaces the warm-up, so that structures can be compared.
    Raises TrainerError if the loss is not finite, ConfigError if `config.device` is not available.
    """
    device = choose_device(config.device)
    items = len(dataset.item_ids)
    width = config.resolve_width(items)
    torch.manual_seed(config.seed)
    clicks = click_counts(dataset, split)
    model = PathModel(config, width, clicks, dataset.context.schema).to(device)
    head = SoftmaxHead(config, clicks, device)
    batches = Batches(dataset, split, config.history, config.resolve_batch(int(clicks.sum())), config.resolve_later())
    generator = np.random.default_rng([config.seed, 1])
    paths = random_paths(items, config.paths_per_item, config.depth, width, generator)
    if encoder:
        model.encoder.load_state_dict(encoder.state_dict())
    else:
        clicked = clicked_items(dataset, split.train_users, split.train_length)
        model.start_from(spectral_vectors(clicked, config.embedding, config.seed))
    warm_up = WarmUp(config, model, head, batches, tuning_requests(dataset, split))
    optimizers = make_optimizers(model.layers, config.learning_rate, 0.0)
    checkpoint = run.last()
    warmed_up = _of_warm_up(run)
    warming_up = not (encoder or warm_up.finished(warmed_up))
    if checkpoint:
        paths = checkpoint.paths
        averages = {"averages": warm_up.averages} if warming_up else {}
        learned = warm_up.optimizers if warming_up else optimizers if "path_loss" in run.history[-1] else []
        checkpoint.load({"model": model, **averages}, learned)
    progress.say(
        f"{items} items, {len(split.train_users)} users, {batches.predictions} interactions; "
        f"{config.depth} layers of {width} nodes, {config.paths_per_item} paths an item"
        + ("; on a GPU" if device.type == "cuda" else "")
        + (f"; continuing after epoch {run.history[-1]['epoch']}" if checkpoint else "")
    )
    if warming_up:
        for record in warm_up.epochs(warmed_up, progress):
            run.save(record, {"model": model, "averages": warm_up.averages}, warm_up.optimizers, paths)
            progress.say(_line(record, config))
    if dataset.attributes and len(_of_warm_up(run)) == len(run.history):  # later checkpoints have these vectors
        described = describe_unclicked(model, clicks, dataset.attributes)
        if described:
            progress.say(f"{counted(described, 'item')} without clicks: vectors from their attributes and titles")
    paths = _learn_paths(config, model, head, batches, paths, run, optimizers, progress)
    return Trained(model.cpu().eval(), paths, run.history)


def _learn_paths(
    config: TrainConfig,
    model: PathModel,
    head: SoftmaxHead,
    batches: Batches,
    paths: Paths,
    run: Run,
    optimizers: list[Optimizer],
    progress: Progress,
) -> Paths:
    """The epochs of the path layers that `run` does not have yet, after the warm-up. Returns the paths, (V, J)."""
    before = len(_of_warm_up(run))
    for module in model.encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = min(module.p, PATH_DROPOUT)
    for epoch in range(len(run.history) - before + 1, config.path_epochs + 1):
        started = time.monotonic()
        seed_epoch(config.seed, before + epoch)
        generator = np.random.default_rng([config.seed, 2, before + epoch])

        if epoch == 1 and config.start == "tree":
            with progress.task("placing items: averaging their users", batches.predictions) as advance:
                vectors = placing_vectors(model, head, batches, advance)
            progress.say("placing items: the tree")
            count, depth = config.paths_per_item, config.depth
            # leaf: the number of items per path, such that the widest beam reads TRAINED_READS k items. For a k up to
            # 51 the leaf is 1. That costs little where it reads less: with paths of one item, a request that reads
            # half as many items as with larger leaves finds nearly as many of brute force's items (docs/log-paths.md,
            # Where items get their paths).
            leaf = max(1, round(TRAINED_READS * config.k / Limits.BEAM))
            paths = tree_paths(vectors, count, depth, model.width, leaf, generator)

        # E-step: gradient steps on the path layers, with fixed paths, encoder and head.
        model.train()  # with dropout in the encoder, though it is fixed
        # A reassignment also scores paths that are not in use, so then these must have probabilities too.
        trie = None if config.reassignments else path_trie(np.unique(paths), config.depth, model.width)
        path_loss = PathLoss(head, paths, config.taught, trie, best_only=not config.is_the_papers_em)
        losses = functools.partial(path_loss.losses, model)
        rate = functools.partial(_path_rate, config, optimizers, epoch - 1)
        title = f"epoch {before + epoch}: paths {epoch}/{config.path_epochs}"
        with progress.task(f"{title}: learning", batches.predictions) as advance:
            loss = gradient_epoch(losses, optimizers, batches, generator, advance, rate)
        record = {"epoch": before + epoch, "path_loss": loss}

        # M-step: score paths for every click, then give each item new paths, with a fixed network.
        if epoch in config.reassignment_epochs():
            old = paths
            with progress.task(f"{title}: scoring paths", batches.predictions) as advance:
                paths, alpha = reassign(model, batches, paths, config, advance)
            record |= {"alpha": alpha, "moved": float((old[:, :, None] != paths[:, None]).all(2).mean())}

        occupancy = Occupancy.of(paths)
        record |= {**occupancy.to_json(), "seconds": round(time.monotonic() - started, 2)}
        run.save(record, {"model": model}, optimizers, paths)
        progress.say(_line(record, config))
        for fault in collapse(occupancy, config):
            remedy = "warmup_epochs or alpha" if config.is_the_papers_em else "warmup_epochs or width"
            progress.say(f"warning: the index is collapsing: {fault}; raise {remedy}")
    return paths


def _of_warm_up(run: Run) -> list[dict[str, Any]]:
    return [record for record in run.history if "head_loss" in record]


def _path_rate(config: TrainConfig, optimizers: list[Optimizer], epochs: int, done: float) -> None:
    """Set the learning rate after `epochs` epochs of the path layers and the share `done` of the next."""
    ends = sorted({*config.reassignment_epochs(), config.path_epochs})
    set_learning_rate(optimizers, falling_rate(config.learning_rate, epochs + done, ends))


def _line(record: dict[str, Any], config: TrainConfig) -> str:
    """An epoch's record as a line of text."""
    start, seconds = f"epoch {record['epoch']}", f"({record['seconds']:.1f} s)"
    if "head_loss" in record:
        score = "" if record["ndcg"] is None else f", NDCG@{config.k} of tuning users {record['ndcg']:.4f}"
        return f"{start}: head loss {record['head_loss']:.3f}{score} {seconds}"
    moved = f", alpha {record['alpha']:.3g} moved {record['moved']:.0%} of postings" if "alpha" in record else ""
    return (
        f"{start}: path loss {record['path_loss']:.3f}; {record['used']} paths used, "
        f"largest {record['largest']}, mean {record['mean_size']:.2f}{moved} {seconds}"
    )
