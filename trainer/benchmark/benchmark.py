"""Compare Deep Retrieval with the methods that teams use today, on your own data sets: `dr-trainer benchmark`.

All methods answer the same requests of the same users. The measured version is made as `fit` makes it.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from index_store.version import Version
from retrieval.paths.rerank import SOFTMAX
from retrieval.searcher import Searcher
from trainer.benchmark.datasets import Source
from trainer.benchmark.kept import keep
from trainer.benchmark.summary import ALWAYS, BUDGETS, HNSW_SEARCH, METHODS, OTHERS, summarise
from trainer.benchmark.two_tower import answer_hnsw, build_hnsw, encode, train_two_tower
from trainer.config import TrainConfig, load_config
from trainer.data.dataset import Dataset, load_dataset
from trainer.data.measures import Answers, new_items, no_new_items, recall_by_popularity
from trainer.data.requests import Requests, held_out_requests, training_requests, tuning_requests
from trainer.data.split import Split, click_counts, clicked_items, split_users
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.device import choose_device
from trainer.deep_retrieval.fit import Trained, fit
from trainer.deep_retrieval.warm_up import TUNED_ON
from trainer.errors import ConfigError, DataError
from trainer.evaluate.baselines import (
    ALS_SETTINGS,
    EASE_ITEMS,
    EASE_PENALTIES,
    Scorer,
    als,
    answer_all,
    best_setting,
    ease,
    item_cf,
    popularity,
)
from trainer.evaluate.curves import shares_by_reads
from trainer.evaluate.evaluate import MeasuredVersion
from trainer.progress import Progress
from trainer.publish.frontier import choose_beam, frontier
from trainer.publish.version import BEAM_REQUESTS, make_version

CUTOFFS = {"users": (), "last-out": (10, 50, 200)}  # k at which the publications measure, for each split
GROUPS = 5  # groups of items, from rarely to often clicked
FRONTIER_BEAMS = (5, 10, 15, 25, 35, 50, 75, 100, 150, 256)


def benchmark(
    sources: list[Source],
    seeds: int,
    settings: list[str],
    folder: Path,
    progress: Progress,
    methods: Sequence[str] = OTHERS,
) -> dict[str, Any]:
    """The document of `dr-trainer benchmark --json`. settings: `key=value`; these override each data set's protocol.

    methods: those that are measured beside Deep Retrieval and brute force.
    """
    unknown = sorted(set(methods) - {*ALWAYS, *OTHERS})
    if unknown:
        raise ConfigError(f"--methods {','.join(unknown)}: expected some of {', '.join((*ALWAYS, *OTHERS))}")
    others = tuple(name for name in OTHERS if name in methods)
    if any(setting.partition("=")[0].strip() == "seed" for setting in settings):
        raise ConfigError("--set seed: not allowed; --seeds N measures the seeds 0 to N - 1")
    results: dict[str, Any] = {}
    for source in sources:
        protocol = [f"{key}={json.dumps(value)}" for key, value in source.settings.items()]
        config = load_config(None, [*protocol, *settings])
        choose_device(config.device)  # before the files are read, to report a missing GPU early
        dataset = load_dataset(source.interactions, config, source.items, source.users)
        runs = []
        for seed in range(seeds):
            seeded = config.replace(seed=seed)
            measure = functools.partial(measure_seed, seeded, dataset, progress, others)
            runs.append(keep(folder, f"{source.name}-{seed}", seeded, dataset, progress, measure, others))
        results[source.name] = summarise(runs)
    return {"seeds": seeds, "datasets": results}


def measure_seed(
    config: TrainConfig, dataset: Dataset, progress: Progress, others: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Train and measure with the seed of `config`. Checkpoints are written to `folder`.

    others: the methods that are measured beside Deep Retrieval and brute force.
    """
    split = split_users(dataset, config)
    requests = held_out_requests(dataset, split)
    if not requests.histories:
        raise DataError("test_users: no users are held out, so nothing can be measured")
    k, clicks = config.k, click_counts(dataset, split)
    cutoffs = CUTOFFS[config.split]
    longest = max((k, *cutoffs))
    users = sum(len(truth) > 0 for truth in new_items(requests))
    if not users:
        progress.say(no_new_items(config.split))
    rows: dict[str, dict[str, Any]] = {}

    def add(
        name: str,
        answers: Answers,
        fit_seconds: float | None,
        encoding: float = 0.0,
        at: Mapping[int, Answers] | None = None,
    ) -> None:
        """Add a row. at: the answers for each of `cutoffs`, if they were measured."""
        best = [items[:k] for items in answers.filtered]
        by_popularity = recall_by_popularity(best, new_items(requests), clicks, GROUPS)
        rows[name] = answers.figures(requests, k) | {
            "at": {str(cut): wider.figures(requests, cut)["filtered"] for cut, wider in (at or {}).items()},
            "reads": float(answers.reads.mean()),
            "fit_seconds": fit_seconds,
            "answer_ms": 1000 * (answers.seconds + encoding) / len(requests.histories),
            "recall_by_popularity": by_popularity,
        }

    trained, version, seconds = _version(config, dataset, split, folder / "run", progress)
    encoder = sum(record["seconds"] for record in trained.history if "head_loss" in record)
    measured = MeasuredVersion(Searcher.open(version), requests, longest, progress)
    default = measured.searcher.default_search
    at = {cut: measured.retrieval(cut, *default(cut), progress) for cut in cutoffs}
    add("deep_retrieval", at.get(k) or measured.retrieval(k, *default(k), progress), seconds, at=at)
    add("deep_retrieval_by_head", measured.retrieval(k, *default(k), progress, reranker=SOFTMAX), None)
    exact = measured.brute_force
    add("brute_force", exact, encoder, at=dict.fromkeys(cutoffs, exact))
    index = measured.structure.index
    vectors, bias = index.item_vectors.astype(np.float32), np.asarray(index.item_bias)
    if "hnsw" in others:
        graph, building = build_hnsw(vectors, bias)
        vectors = np.concatenate(measured.users)
        for wider in HNSW_SEARCH:
            add(f"hnsw_{wider}", answer_hnsw(graph, vectors, requests, k, wider), encoder + building, measured.encoding)

    structures = {"deep_retrieval": measured}
    if "random_paths" in others:
        # The same encoder with random, fixed paths shows how much the learned paths contribute.
        fixed = config.replace(start="random", reassignments=0)
        _, random, _ = _version(fixed, dataset, split, folder / "random", progress, trained)
        structures["random_paths"] = MeasuredVersion(Searcher.open(random), requests, k, progress)
    beam_requests = training_requests(dataset, split, BEAM_REQUESTS, config.seed)
    curves = {}
    for name, candidate in structures.items():
        for budget in BUDGETS:
            beam, per_path = choose_beam(candidate.structure, beam_requests, config, budget)
            add(f"{name}_{budget}k", candidate.retrieval(k, beam, per_path, progress, widen=False), None)
        curves[name] = shares_by_reads(candidate, beam_requests, config)

    if "two_tower" in others:
        add("two_tower", *_two_tower(config, dataset, split, requests, progress))
    for name, score, took in _classics(config, dataset, split, others, progress):
        answers = answer_all(score, requests, longest)
        add(name, answers, took, at=dict.fromkeys(cutoffs, answers))

    points = frontier(measured.structure, requests, k, 20 * k, FRONTIER_BEAMS)
    sizes, counts = np.unique(index.sizes, return_counts=True)
    return {
        "k": k,
        "users": users,
        "items": len(dataset.item_ids),
        "interactions": len(dataset.items),
        "split": config.split,
        "structural_recall": measured.reads(k, *default(k)).exact,
        "curves": curves,
        "methods": rows,
        "frontier": [point._asdict() for point in points],
        "path_sizes": dict(zip(map(str, sizes.tolist()), counts.tolist(), strict=True)),
        "paths": dict(version.manifest.metrics["paths"]),
        "epochs": trained.history,
    }


def _version(
    config: TrainConfig, dataset: Dataset, split: Split, folder: Path, progress: Progress, base: Trained | None = None
) -> tuple[Trained, Version, float]:
    """Train a network and make a version of it. Also returns the seconds. base: a training whose encoder is reused."""
    run = Run(folder, config, dataset)
    trained = fit(config, dataset, split, run, progress, base.model.encoder if base else None)
    started = time.perf_counter()
    version = make_version(config, dataset, split, trained, progress, allow_collapsed=True)
    seconds = time.perf_counter() - started + sum(record["seconds"] for record in trained.history)
    return trained, version, seconds


def _two_tower(
    config: TrainConfig, dataset: Dataset, split: Split, requests: Requests, progress: Progress
) -> tuple[Answers, float, float]:
    """The answers of a two-tower model with HNSW, the seconds of its training, and those of encoding the users."""
    started = time.perf_counter()
    tower = train_two_tower(config, dataset, split, progress)
    graph, _ = build_hnsw(tower.item_vectors.detach().numpy(), tower.item_bias.numpy())
    seconds = time.perf_counter() - started
    vectors, encoding = encode(tower, requests, config.history)
    return answer_hnsw(graph, vectors, requests, config.k, HNSW_SEARCH[-1]), seconds, encoding


def _classics(
    config: TrainConfig, dataset: Dataset, split: Split, others: Sequence[str], progress: Progress
) -> list[tuple[str, Scorer, float]]:
    """Fit the classic baselines among `others`. Returns the name and scorer of each, and the seconds, including the
    choice of its setting.
    """
    seen = clicked_items(dataset, split.train_users, split.train_length)
    everything = clicked_items(dataset, split.train_users, split.visible_length)
    tuning = tuning_requests(dataset, split).spread(TUNED_ON)

    def tuned(fit_one: Callable[..., Scorer], settings: tuple[Any, ...]) -> Scorer:
        return fit_one(everything, best_setting(fit_one, settings, seen, tuning, config.k))

    fits: dict[str, Callable[[], Scorer]] = {
        "item_cf": lambda: item_cf(everything),
        "popularity": lambda: popularity(everything),
    }
    if len(dataset.item_ids) <= EASE_ITEMS:
        fits["ease"] = lambda: tuned(ease, EASE_PENALTIES)
    fits["als"] = lambda: tuned(functools.partial(als, factors=config.embedding), ALS_SETTINGS)
    fitted = []
    for name, make in ((name, make) for name, make in fits.items() if name in others):
        progress.say(f"fitting {METHODS[name]}")
        started = time.perf_counter()
        score = make()
        fitted.append((name, score, time.perf_counter() - started))
    return fitted
