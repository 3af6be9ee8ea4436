"""Rates of training: gradient steps, scoring and coordinate descent; and the time to a published index.

The interactions are random, so nothing can be learned from them, but the cost of a step does not depend on that. Each
rate is measured over one pass, with many items and with data of the shape of MovieLens 1M. The last figure is a whole
`fit` with the fewest possible epochs, two; the time of more epochs follows from the rates.

python -m tests.benchmarks.bench_training [--items 1500000] [--interactions 10000000]
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from index_store.store import open_store
from tests.benchmarks.catalogue import CLUSTER, make_dataset
from tests.benchmarks.measure import floor_rates, report
from trainer.config import TrainConfig
from trainer.data.batches import Batches
from trainer.data.dataset import Dataset
from trainer.data.split import click_counts, split_users
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.device import choose_device
from trainer.deep_retrieval.fit import fit
from trainer.deep_retrieval.layers import PathModel
from trainer.deep_retrieval.losses import PathLoss, SoftmaxHead
from trainer.deep_retrieval.m_step import descend, score_paths
from trainer.deep_retrieval.paths import random_paths
from trainer.deep_retrieval.scores import PathScores
from trainer.deep_retrieval.steps import gradient_epoch, make_optimizers
from trainer.progress import PlainProgress
from trainer.publish.version import make_version

CONFIG = TrainConfig(k=200, test_users=200, epochs=2)
SESSION = 50  # interactions a user
RATED = 100_000  # items for the rates, at most
RATED_INTERACTIONS = 250_000  # for the rates, at most
SCORED, KEPT, SWEEPS = 30, 50, 3  # S while scoring; S and T of the descent, of the paper's order
#: Items, interactions a user and K of MovieLens 1M, where a prototype scored 21,000 interactions a second.
ML1M_ITEMS, ML1M_SESSION, ML1M_WIDTH = 3533, 95, 30


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_500_000, help="V; default 1.5 million")
    parser.add_argument("--interactions", type=int, default=10_000_000, help="default 10 million")
    options = parser.parse_args()
    print_figures(bench(options.items, options.interactions))


def bench(items: int, interactions: int) -> dict[str, Any]:
    """The figures."""
    rated = min(items, RATED)
    users = max(CLUSTER, min(interactions, RATED_INTERACTIONS) // SESSION)
    dataset = make_dataset(rated, users, SESSION, np.random.default_rng(0))
    few = min(items, ML1M_ITEMS)
    small = make_dataset(few, users * SESSION // ML1M_SESSION, ML1M_SESSION, np.random.default_rng(0))
    rate, _ = floor_rates()
    return {
        "items": items,
        "interactions": interactions,
        "rated": {"items": rated, "interactions": len(dataset.items), "descended": 2 * rated},
        "settings": {"scoring_S": SCORED, "descent_S": KEPT, "descent_T": SWEEPS, "J": CONFIG.paths_per_item},
        "per_second": rates(CONFIG, dataset) | {"descended_items": descent_rate(2 * rated)},
        "ml1m_shape": {
            "items": few,
            "width": ML1M_WIDTH,
            "per_second": rates(CONFIG.replace(width=ML1M_WIDTH), small),
        },
        "operations_per_second": rate,
        "published": published(items, interactions),
    }


def rates(config: TrainConfig, dataset: Dataset) -> dict[str, float]:
    """Interactions a second of each pass over the data."""
    split = split_users(dataset, config)
    clicks = click_counts(dataset, split)
    width = config.resolve_width(len(clicks))
    torch.manual_seed(0)
    device = choose_device(config.device)
    model = PathModel(config, width, clicks, dataset.context.schema).to(device)
    rng = np.random.default_rng(0)
    paths = random_paths(len(clicks), config.paths_per_item, config.depth, width, rng)
    scores = PathScores(paths, SCORED, config.eta)
    head = SoftmaxHead(config, clicks, device)
    optimizers = make_optimizers([model], config.learning_rate, config.weight_decay)
    batches = Batches(dataset, split, config.history, config.resolve_batch(int(clicks.sum())), config.resolve_later())

    def learn(learner: SoftmaxHead | PathLoss) -> None:
        gradient_epoch(functools.partial(learner.losses, model), optimizers, batches, rng, _ignore_progress)

    passes: dict[str, Callable[[], object]] = {
        "encoder_steps": lambda: learn(head),
        "path_steps": lambda: learn(PathLoss(head, paths, config.taught)),
        "scoring": lambda: score_paths(model, batches, scores, _ignore_progress),
    }
    nothing = np.zeros((0, SCORED), np.int64)
    scores.observe(np.zeros(0, np.int32), nothing, nothing.astype(np.float32))  # compiles the kernels
    return {name: batches.predictions / _seconds(run_pass) for name, run_pass in passes.items()}


def descent_rate(items: int) -> float:
    """Items a second of the coordinate descent, with scores as after training, where an item's paths lie together."""
    rng = np.random.default_rng(0)
    width = CONFIG.resolve_width(items)
    total = width**CONFIG.depth
    scores = PathScores(random_paths(items, CONFIG.paths_per_item, CONFIG.depth, width, rng), KEPT, CONFIG.eta)
    near = min(2000, total // 2)
    centre = rng.integers(total - near, size=(items, 1))
    for _ in range(2):
        candidates = centre + rng.integers(near, size=(items, KEPT))
        scores.observe(np.arange(items, dtype=np.int32), candidates, _skewed(rng, candidates.shape))
    descend(scores, 1e-3, 1)
    return items / _seconds(lambda: descend(scores, 1e-3, SWEEPS))


def published(items: int, interactions: int) -> dict[str, float]:
    """Seconds of a whole training of two epochs, and of making and publishing the version."""
    dataset = make_dataset(items, max(CLUSTER, interactions // SESSION), SESSION, np.random.default_rng(0))
    split = split_users(dataset, CONFIG)
    progress = PlainProgress()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        trained = fit(CONFIG, dataset, split, Run(Path(folder, "run"), CONFIG, dataset), progress)
        fitted = time.perf_counter()
        version = make_version(CONFIG, dataset, split, trained, progress, allow_collapsed=True)
        made = time.perf_counter()
        open_store(str(Path(folder, "store"))).publish(version)
        return {
            "fit_seconds": fitted - started,
            "version_seconds": made - fitted,
            "publish_seconds": time.perf_counter() - made,
        }


def _skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return (0.1 * rng.random(shape, np.float32) ** 3).astype(np.float32)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _ignore_progress(_done: int) -> None:
    """A progress callback that does nothing."""


def print_figures(figures: dict[str, Any]) -> None:
    """Print a table, then the JSON."""
    rated, published = figures["rated"], figures["published"]
    lines = [
        f"{rated['items']:,} items, {rated['interactions']:,} interactions, settings' defaults, scoring S = {SCORED}",
        f"descent of {rated['descended']:,} items, J = {CONFIG.paths_per_item}, S = {KEPT}, T = {SWEEPS}",
        "",
    ]
    small = figures["ml1m_shape"]
    lines += [f"{name:18}{rate:>12,.0f} a second" for name, rate in figures["per_second"].items()]
    lines += ["", f"{small['items']:,} items, K = {small['width']}, the shape of MovieLens 1M:"]
    lines += [f"{name:18}{rate:>12,.0f} a second" for name, rate in small["per_second"].items()]
    total = sum(published.values())
    of = f"{figures['items']:,} items, {figures['interactions']:,} interactions, two epochs"
    lines += [
        "",
        f"{of}: published after {total:.0f} s",
        ", ".join(f"{name.removesuffix('_seconds')} {took:.1f} s" for name, took in published.items()),
    ]
    report("training", lines, figures)


if __name__ == "__main__":
    main()
