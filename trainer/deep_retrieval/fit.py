"""fit(): the EM loop of Deep Retrieval (Sec. 3.2).

First only the encoder and the softmax head learn. Similar items then have similar vectors, and a tree over the vectors
gives similar items neighbouring paths. Then encoder and head are fixed, and the path layers learn. Each epoch is a pass
of gradient steps with fixed paths (E-step). Some epochs end with a reassignment of paths with a fixed network (M-step).
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.query import Limits
from trainer.config import TrainConfig
from trainer.data.batches import Batches
from trainer.data.dataset import Dataset
from trainer.data.split import Split, click_counts, clicked_items
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.device import choose_device
from trainer.deep_retrieval.layers import PathModel
from trainer.deep_retrieval.losses import PathLoss, SoftmaxHead
from trainer.deep_retrieval.m_step import reassign
from trainer.deep_retrieval.occupancy import Occupancy, collapse
from trainer.deep_retrieval.paths import random_paths
from trainer.deep_retrieval.reads import TRAINED_READS
from trainer.deep_retrieval.steps import gradient_epoch, make_optimizers
from trainer.deep_retrieval.tree import tree_paths
from trainer.encoders.gru import UserEncoder
from trainer.encoders.spectral import spectral_vectors
from trainer.progress import Progress


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
    optimizers = make_optimizers(model, config)
    batches = Batches(dataset, split, config.history, config.resolve_batch(int(clicks.sum())), config.later)
    generator = np.random.default_rng([config.seed, 1])
    first_paths = random_paths(items, config.paths_per_item, config.depth, width, generator)
    done, paths = run.restore(model, optimizers) or (0, first_paths)
    if not done and encoder:
        model.encoder.load_state_dict(encoder.state_dict())
        done = config.warmup
    elif not done:
        clicked = clicked_items(dataset, split.train_users, split.train_length)
        model.start_from(spectral_vectors(clicked, config.embedding, config.seed))
    progress.say(
        f"{items} items, {len(split.train_users)} users, {batches.predictions} interactions; "
        f"{config.depth} layers of {width} nodes, {config.paths_per_item} paths an item"
        + ("; on a GPU" if device.type == "cuda" else "")
        + (f"; continuing after epoch {done}" if done else "")
    )
    for epoch in range(done + 1, config.passes + 1):
        started = time.monotonic()
        torch.manual_seed(_epoch_seed(config.seed, epoch))
        generator = np.random.default_rng([config.seed, 2, epoch])

        if epoch == config.warmup + 1 and config.start == "tree":
            progress.say("placing items by their vectors")
            vectors = model.item_vectors.detach().cpu().numpy()
            # leaf: the number of items per path, such that the widest beam reads TRAINED_READS k items. For a k up to
            # 51 the leaf is 1. That costs little where it reads less: with paths of one item, a request that reads
            # half as many items as with larger leaves finds nearly as many of brute force's items (docs/log.md, Where
            # items get their paths).
            leaf = max(1, round(TRAINED_READS * config.k / Limits.BEAM))
            paths = tree_paths(vectors, config.paths_per_item, config.depth, width, leaf, generator)

        # E-step: gradient steps on the network, with fixed paths.
        warming_up = epoch <= config.warmup
        model.train(warming_up)  # no dropout in a fixed encoder
        learner = head if warming_up else PathLoss(head, paths, config.taught)
        with progress.task(f"epoch {epoch}/{config.passes}: learning", batches.predictions) as advance:
            losses = functools.partial(learner.losses, model)
            loss = gradient_epoch(config, losses, optimizers, batches, epoch, generator, advance)
        record: dict[str, Any] = {"epoch": epoch, "head_loss" if warming_up else "path_loss": loss}

        # M-step: score paths for every click, then give each item new paths, with a fixed network.
        if epoch in config.reassignment_epochs():
            before = paths
            with progress.task(f"epoch {epoch}/{config.passes}: scoring paths", batches.predictions) as advance:
                paths, alpha = reassign(model, batches, paths, config, advance)
            record |= {"alpha": alpha, "moved": float((before[:, :, None] != paths[:, None]).all(2).mean())}

        occupancy = Occupancy.of(paths)
        record |= {**occupancy.to_json(), "seconds": round(time.monotonic() - started, 2)}
        run.save(record, model, optimizers, paths)
        progress.say(_line(record, config.passes))
        for fault in [] if warming_up else collapse(occupancy, config):
            remedy = "warmup_epochs or alpha" if config.reassignments else "warmup_epochs or width"
            progress.say(f"warning: the index is collapsing: {fault}; raise {remedy}")
    return Trained(model.cpu().eval(), paths, run.history)


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, 3, epoch]).generate_state(1, np.uint64)[0] >> 1)


def _line(record: dict[str, Any], epochs: int) -> str:
    """An epoch's record as a line of text."""
    start, seconds = f"epoch {record['epoch']}/{epochs}", f"({record['seconds']:.1f} s)"
    if "head_loss" in record:
        return f"{start}: head loss {record['head_loss']:.3f} {seconds}"
    moved = f", alpha {record['alpha']:.3g} moved {record['moved']:.0%} of postings" if "alpha" in record else ""
    return (
        f"{start}: path loss {record['path_loss']:.3f}; {record['used']} paths used, "
        f"largest {record['largest']}, mean {record['mean_size']:.2f}{moved} {seconds}"
    )
