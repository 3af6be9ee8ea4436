"""Compare Deep Retrieval with the methods that teams use today, on your own data sets: `dr-trainer benchmark`.

All methods answer the same requests of the same users. The measured version is made as `fit` makes it.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from index_store.version import Version
from retrieval.paths.rerank import SOFTMAX
from retrieval.searcher import Searcher
from trainer.benchmark.datasets import Source
from trainer.benchmark.kept import keep
from trainer.benchmark.two_tower import answer_hnsw, build_hnsw, encode, train_two_tower
from trainer.config import TrainConfig, load_config
from trainer.data.dataset import Dataset, load_dataset
from trainer.data.requests import held_out_requests, training_requests, tuning_requests
from trainer.data.split import Split, click_counts, clicked_items, split_users
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.device import choose_device
from trainer.deep_retrieval.fit import Trained, fit
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
from trainer.evaluate.evaluate import MeasuredVersion
from trainer.evaluate.measures import MEASURES, Answers, new_items, no_new_items, ratios, recall_by_popularity
from trainer.progress import Progress, counted
from trainer.publish.frontier import choose_beam, frontier
from trainer.publish.version import BEAM_REQUESTS, make_version

BUDGETS = (2, 5, 10)  # items read, as a multiple of k
MARGIN = 0.9  # share of a budget that the beam is chosen for: held-out users may read more than training users
HNSW_SEARCH = (2, 10)  # nodes that HNSW keeps during a search (efSearch), as a multiple of k
GROUPS = 5  # groups of items, from rarely to often clicked
UNMEASURED = "-"  # shown in tables for a missing figure
FRONTIER_BEAMS = (5, 10, 15, 25, 35, 50, 75, 100, 150, 256)

#: The rows of the table, in order, with their titles.
METHODS = {
    "deep_retrieval": "Deep Retrieval",
    "deep_retrieval_by_head": "Deep Retrieval, ranked by head",
    **{f"deep_retrieval_{b}k": f"Deep Retrieval, {b} x k read" for b in BUDGETS},
    **{f"random_paths_{b}k": f"random paths, {b} x k read" for b in BUDGETS},
    "brute_force": "brute force, same vectors",
    **{f"hnsw_{w}": f"HNSW, same vectors, ef {w} x k" for w in HNSW_SEARCH},
    "two_tower": f"two-tower, HNSW, ef {HNSW_SEARCH[-1]} x k",
    "ease": "EASE",
    "als": "ALS",
    "item_cf": "Item-CF",
    "popularity": "popularity",
}


def benchmark(
    sources: list[Source], seeds: int, settings: list[str], folder: Path, progress: Progress
) -> dict[str, Any]:
    """The document of `dr-trainer benchmark --json`. settings: `key=value`; these override each data set's protocol."""
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
            measure = functools.partial(measure_seed, seeded, dataset, progress)
            runs.append(keep(folder, f"{source.name}-{seed}", seeded, dataset, progress, measure))
        results[source.name] = summarise(runs)
    return {"seeds": seeds, "datasets": results}


def measure_seed(config: TrainConfig, dataset: Dataset, progress: Progress, folder: Path) -> dict[str, Any]:
    """Train and measure all methods with the seed of `config`. Checkpoints are written to `folder`."""
    split = split_users(dataset, config)
    requests = held_out_requests(dataset, split)
    if not requests.histories:
        raise DataError("test_users: no users are held out, so nothing can be measured")
    k, clicks = config.k, click_counts(dataset, split)
    users = sum(len(truth) > 0 for truth in new_items(requests))
    if not users:
        progress.say(no_new_items(config.split))
    rows: dict[str, dict[str, Any]] = {}

    def add(name: str, answers: Answers, fit_seconds: float | None, encoding: float = 0.0) -> None:
        by_popularity = recall_by_popularity(answers.filtered, new_items(requests), clicks, GROUPS)
        rows[name] = answers.figures(requests, k) | {
            "reads": float(answers.reads.mean()),
            "fit_seconds": fit_seconds,
            "answer_ms": 1000 * (answers.seconds + encoding) / len(requests.histories),
            "recall_by_popularity": by_popularity,
        }

    trained, version, seconds = _version(config, dataset, split, folder / "run", progress)
    encoder = sum(record["seconds"] for record in trained.history if "head_loss" in record)
    measured = MeasuredVersion(Searcher.open(version), requests, k, progress)
    default = measured.searcher.default_search(k)
    deep, share = measured.retrieval(*default, progress)
    add("deep_retrieval", deep, seconds)
    add("deep_retrieval_by_head", measured.retrieval(*default, progress, reranker=SOFTMAX)[0], None)
    add("brute_force", measured.brute_force, encoder)
    index = measured.structure.index
    vectors, bias = index.item_vectors.astype(np.float32), np.asarray(index.item_bias)
    graph, building = build_hnsw(vectors, bias)
    vectors = np.concatenate(measured.users)
    for wider in HNSW_SEARCH:
        add(f"hnsw_{wider}", answer_hnsw(graph, vectors, requests, k, wider), encoder + building, measured.encoding)

    # The same encoder with random, fixed paths shows how much the learned paths contribute.
    fixed = config.replace(start="random", reassignments=0)
    _, random, _ = _version(fixed, dataset, split, folder / "random", progress, trained)
    beam_requests = training_requests(dataset, split, BEAM_REQUESTS, config.seed)
    measured_random = MeasuredVersion(Searcher.open(random), requests, k, progress)
    for name, candidate in (("deep_retrieval", measured), ("random_paths", measured_random)):
        for budget in BUDGETS:
            beam, per_path = choose_beam(candidate.structure, beam_requests, config, MARGIN * budget)
            add(f"{name}_{budget}k", candidate.retrieval(beam, per_path, progress, widen=False)[0], None)

    started = time.perf_counter()
    tower = train_two_tower(config, dataset, split, progress)
    graph, _ = build_hnsw(tower.item_vectors.detach().numpy(), tower.item_bias.numpy())
    seconds = time.perf_counter() - started
    vectors, encoding = encode(tower, requests, config.history)
    add("two_tower", answer_hnsw(graph, vectors, requests, k, HNSW_SEARCH[-1]), seconds, encoding)
    for name, score, took in _classics(config, dataset, split, progress):
        add(name, answer_all(score, requests, k), took)

    points = frontier(measured.structure, requests, k, 20 * k, FRONTIER_BEAMS)
    sizes, counts = np.unique(index.sizes, return_counts=True)
    return {
        "k": k,
        "users": users,
        "items": len(dataset.item_ids),
        "interactions": len(dataset.items),
        "structural_recall": share,
        "methods": rows,
        "frontier": [point._asdict() for point in points],
        "path_sizes": dict(zip(map(str, sizes.tolist()), counts.tolist(), strict=True)),
        "paths": dict(version.manifest.metrics["paths"]),
        "epochs": trained.history,
    }


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of every figure over the seeds, and the curves of the first seed."""
    first = runs[0]
    rows: dict[str, Any] = {}
    for name in (name for name in METHODS if name in first["methods"]):
        each = [run["methods"][name] for run in runs]
        exact = [run["methods"]["brute_force"] for run in runs]
        rows[name] = {key: _mean_and_std([row[key] for row in each]) for key in ("reads", "fit_seconds", "answer_ms")}
        for kind in ("filtered", "unfiltered"):
            rows[name][kind] = {m: _mean_and_std([row[kind][m] for row in each]) for m in MEASURES}
            relative = [ratios(row[kind], brute[kind]) for row, brute in zip(each, exact, strict=True)]
            rows[name][kind]["ratio_to_brute_force"] = {
                m: _mean_and_std([ratio[m] for ratio in relative]) for m in MEASURES
            }
        rows[name]["recall_by_popularity"] = first["methods"][name]["recall_by_popularity"]
    return {
        **{key: first[key] for key in ("k", "users", "items", "interactions")},
        "structural_recall": _mean_and_std([run["structural_recall"] for run in runs]),
        "methods": rows,
        **{key: first[key] for key in ("frontier", "path_sizes", "paths", "epochs")},
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


def _classics(
    config: TrainConfig, dataset: Dataset, split: Split, progress: Progress
) -> list[tuple[str, Scorer, float]]:
    """Fit the classic baselines. Returns the name and scorer of each, and the seconds, including the choice of its
    setting.
    """
    seen = clicked_items(dataset, split.train_users, split.train_length)
    everything = clicked_items(dataset, split.train_users, split.visible_length)
    tuning = tuning_requests(dataset, split)

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
    for name, make in fits.items():
        progress.say(f"fitting {METHODS[name]}")
        started = time.perf_counter()
        score = make()
        fitted.append((name, score, time.perf_counter() - started))
    return fitted


def _mean_and_std(values: list[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation over the seeds; None if there are too few values."""
    measured = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(measured)) if measured else None,
        "std": float(np.std(measured, ddof=1)) if len(measured) > 1 else None,
    }


def table(name: str, result: dict[str, Any]) -> str:
    """The results of a data set as a text table: percentages, mean and standard deviation over the seeds."""
    k = result["k"]
    lines = [
        f"{name}: {about(result)}",
        f"{filtering(result)}. ms: per request, in batches (HNSW: one request at a time)",
        "",
        f"{'':32}{f'P@{k} %':>8}{f'R@{k} %':>8}{f'F@{k} %':>24}{'/ brute':>9}{'read':>8}{'fit s':>7}{'ms':>7}",
    ]
    for method, row in result["methods"].items():
        p, r = (mean(row["filtered"][m], 2, 100) for m in ("precision", "recall"))
        f = f"{percent(row['filtered']['f_measure'])} ({mean(row['unfiltered']['f_measure'], 2, 100)})"
        ratio = mean(row["filtered"]["ratio_to_brute_force"]["f_measure"], 3)
        took = mean(row["fit_seconds"], 0).replace(UNMEASURED, "")
        lines.append(
            f"{METHODS[method]:32}{p:>8}{r:>8}{f:>24}{ratio:>9}{mean(row['reads'], 0):>8}{took:>7}"
            f"{mean(row['answer_ms'], 2):>7}"
        )
    return "\n".join(lines)


def about(result: dict[str, Any]) -> str:
    """The size of a data set, as text."""
    counts = {"users": "held-out user", "items": "item", "interactions": "interaction"}
    return ", ".join(counted(result[key], noun) for key, noun in counts.items())


def filtering(result: dict[str, Any]) -> str:
    """Whether the history is filtered, as text: for the figures, and for the figures in brackets."""
    if result["users"]:
        return "history filtered; in brackets: not filtered"
    return f"{no_new_items()}; in brackets: not filtered"


def mean(figure: dict[str, float | None], digits: int, factor: float = 1) -> str:
    """The mean as text, or a dash if nothing was measured."""
    return UNMEASURED if figure["mean"] is None else f"{factor * figure['mean']:.{digits}f}"


def percent(figure: dict[str, float | None]) -> str:
    """The mean in percent, with the standard deviation if there is one."""
    return mean(figure, 2, 100) + ("" if figure["std"] is None else f" ± {100 * figure['std']:.2f}")
