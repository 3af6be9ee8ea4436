"""Deep Retrieval beside what teams use today, on data sets of one's own: `dr-trainer benchmark`.

Every method sees the same users and is asked the same; the version measured is the one that `fit` would publish. A
finished seed is kept in its folder, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from index_store.version import Version
from trainer.baselines import (
    ALS_CONFIDENCES,
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
from trainer.checkpoint import Run
from trainer.config import TrainConfig, load_config
from trainer.data import Dataset, Split, clicked_items, load_dataset, split_users
from trainer.datasets import Source
from trainer.evaluate import Measured
from trainer.export import TUNING_REQUESTS, make_version
from trainer.frontier import choose_beam, frontier
from trainer.measures import MEASURES, Answers, new_items, ratios, recall_by_popularity
from trainer.progress import Progress
from trainer.requests import held_out_requests, training_requests, tuning_requests
from trainer.train import Trained, click_counts, fit
from trainer.two_tower import answer_hnsw, encode, train_two_tower

BUDGETS = (2, 5, 10)  # items read for each that is returned
MARGIN = 0.9  # of a budget is aimed at: others' requests read a little more or less
GROUPS = 5  # kinds of items, from rarely to often clicked
FRONTIER_BEAMS = (5, 10, 15, 25, 35, 50, 75, 100, 150, 256)

#: Every row of the table in its order, and what it is called there.
METHODS = {
    "deep_retrieval": "Deep Retrieval",
    **{f"deep_retrieval_{b}k": f"Deep Retrieval, {b} k read" for b in BUDGETS},
    **{f"random_paths_{b}k": f"random paths, {b} k read" for b in BUDGETS},
    "brute_force": "brute force, same vectors",
    "hnsw": "HNSW, same vectors",
    "two_tower": "two-tower + HNSW",
    "ease": "EASE",
    "als": "ALS",
    "item_cf": "Item-CF",
    "popularity": "popularity",
}


def benchmark(
    sources: list[Source], seeds: int, settings: list[str], folder: Path, progress: Progress
) -> dict[str, Any]:
    """The document of `dr-trainer benchmark --json`. settings: `key=value`, on top of each data set's protocol."""
    found: dict[str, Any] = {}
    for source in sources:
        runs = []
        for seed in range(seeds):
            protocol = [f"{key}={json.dumps(value)}" for key, value in source.settings.items()]
            config = load_config(None, [*protocol, *settings], seed=seed)
            dataset = load_dataset(source.interactions, config, source.items, source.users)
            place = folder / f"{source.name}-{seed}-{_digest(config, dataset)}"
            file = place / "result.json"
            known = " was measured before:" if file.exists() else ":"
            progress.say(f"{source.name}, seed {seed} of 0 to {seeds - 1}{known} {place}")
            if not file.exists():
                result = measure_seed(config, dataset, split_users(dataset, config), place, progress)
                temporary = file.with_suffix(".partial")
                temporary.write_text(json.dumps(result))
                temporary.replace(file)
            runs.append(json.loads(file.read_text()))
        found[source.name] = summarise(runs)
    return {"seeds": seeds, "datasets": found}


def measure_seed(
    config: TrainConfig, dataset: Dataset, split: Split, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Train and measure all methods once."""
    requests = held_out_requests(dataset, split)
    k = config.k
    clicks = click_counts(dataset, split)
    rows: dict[str, dict[str, Any]] = {}

    def add(name: str, answers: Answers, fit_seconds: float) -> None:
        figures = answers.figures(requests, k)
        kinds = recall_by_popularity(answers.filtered, new_items(requests), clicks, GROUPS)
        rows[name] = figures | {
            "reads": float(answers.reads.mean()),
            "fit_seconds": fit_seconds,
            "answer_ms": 1000 * answers.seconds / len(requests.histories),
            "recall_by_popularity": kinds,
        }

    trained, mine, seconds = _version(config, dataset, split, folder / "run", progress)
    measured = Measured(mine, requests, k, progress)
    deep, share = measured.retrieval(*mine.manifest.reach(k), progress)
    add("deep_retrieval", deep, seconds)
    add("brute_force", measured.brute_force, sum(r["seconds"] for r in trained.history if "head_loss" in r))
    users = np.concatenate(measured.users)
    vectors, bias = np.asarray(mine.index.item_vectors), np.asarray(mine.index.item_bias)
    answers, building = answer_hnsw(vectors, bias, users, requests, k)
    add("hnsw", answers, building)

    # The same network with paths that are drawn and stay: what the learned structure is worth.
    drawn = config.replace(start="random", reassignments=0)
    _, random, _ = _version(drawn, dataset, split, folder / "random", progress, trained)
    tuning = training_requests(dataset, split, TUNING_REQUESTS, config.seed)
    for name, one in (("deep_retrieval", measured), ("random_paths", Measured(random, requests, k, progress))):
        for budget in BUDGETS:
            reach = choose_beam(one.version.index, one.session, tuning, config, MARGIN * budget)
            add(f"{name}_{budget}k", one.retrieval(reach[0], reach[1], progress)[0], 0.0)

    started = time.perf_counter()
    tower = train_two_tower(config, dataset, split, progress)
    vectors, bias = tower.item_vectors.detach().numpy(), tower.item_bias.numpy()
    answers, _ = answer_hnsw(vectors, bias, encode(tower, requests, config.history), requests, k)
    add("two_tower", answers, time.perf_counter() - started - answers.seconds)
    for name, score, took in _classics(config, dataset, split, progress):
        add(name, answer_all(score, requests, k), took)

    points = frontier(mine.index, measured.session, requests, k, config.history, 20 * k, FRONTIER_BEAMS)
    return {
        "seed": config.seed,
        "k": k,
        "users": sum(len(truth) > 0 for truth in new_items(requests)),
        "items": len(dataset.item_ids),
        "interactions": int(clicks.sum()),
        "structural_recall": share,
        "methods": rows,
        "frontier": [point._asdict() for point in points],
        "path_sizes": np.sort(np.diff(mine.index.path_offsets))[::-1].tolist(),
        "paths": dict(mine.manifest.metrics["paths"]),
        "epochs": trained.history,
    }


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of every figure, and the first seed's curves."""
    first = runs[0]
    rows: dict[str, Any] = {}
    for name in (name for name in METHODS if name in first["methods"]):
        each = [run["methods"][name] for run in runs]
        exact = [run["methods"]["brute_force"] for run in runs]
        rows[name] = {key: _spread([row[key] for row in each]) for key in ("reads", "fit_seconds", "answer_ms")}
        for kind in ("filtered", "unfiltered"):
            rows[name][kind] = {m: _spread([row[kind][m] for row in each]) for m in MEASURES}
            relative = [ratios(row[kind], brute[kind]) for row, brute in zip(each, exact, strict=True)]
            rows[name][kind]["ratio_to_brute_force"] = {m: _spread([ratio[m] for ratio in relative]) for m in MEASURES}
        rows[name]["recall_by_popularity"] = first["methods"][name]["recall_by_popularity"]
    return {
        **{key: first[key] for key in ("k", "users", "items", "interactions")},
        "structural_recall": _spread([run["structural_recall"] for run in runs]),
        "methods": rows,
        **{key: first[key] for key in ("frontier", "path_sizes", "paths", "epochs")},
    }


def _version(
    config: TrainConfig, dataset: Dataset, split: Split, folder: Path, progress: Progress, base: Trained | None = None
) -> tuple[Trained, Version, float]:
    """A trained network, its version, and the seconds that both took. base: whose encoder is taken."""
    run = Run(folder, config, dataset)
    trained = fit(config, dataset, split, run, progress, base.model.encoder if base else None)
    started = time.perf_counter()
    version = make_version(config, dataset, split, trained, progress, allow_collapsed=True)
    seconds = time.perf_counter() - started + sum(record["seconds"] for record in trained.history)
    return trained, version, seconds


def _classics(
    config: TrainConfig, dataset: Dataset, split: Split, progress: Progress
) -> list[tuple[str, Scorer, float]]:
    """Each classic baseline, fitted, and the seconds that took, choosing its setting included."""
    seen = clicked_items(dataset, split.train_users, split.train_length)
    everything = clicked_items(dataset, split.train_users, split.visible_length)
    kept_back = tuning_requests(dataset, split)

    def tuned(fit_one: Callable[..., Scorer], settings: tuple[float, ...]) -> Scorer:
        return fit_one(everything, best_setting(fit_one, settings, seen, kept_back, config.k))

    fits: dict[str, Callable[[], Scorer]] = {
        "item_cf": lambda: item_cf(everything),
        "popularity": lambda: popularity(everything),
    }
    if len(dataset.item_ids) <= EASE_ITEMS:
        fits["ease"] = lambda: tuned(ease, EASE_PENALTIES)
    fits["als"] = lambda: tuned(functools.partial(als, factors=config.embedding), ALS_CONFIDENCES)
    found = []
    for name, make in fits.items():
        progress.say(f"fitting {METHODS[name]}")
        started = time.perf_counter()
        score = make()
        found.append((name, score, time.perf_counter() - started))
    return found


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}


def _digest(config: TrainConfig, dataset: Dataset) -> str:
    """Of all that a result depends on, the code too: what was measured by other code is measured again."""
    digest = hashlib.sha256(json.dumps(config.to_json(), sort_keys=True).encode())
    digest.update(dataset.digest().encode())
    root = Path(__file__).parent
    for file in sorted([*root.glob("*.py"), *root.parent.glob("index_store/*.py")]):
        if file.name not in {"__main__.py", "plots.py", "report.py"}:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def table(name: str, found: dict[str, Any]) -> str:
    """One data set's table for people: percent, mean and standard deviation over the seeds."""
    k = found["k"]
    lines = [
        f"{name}: {found['users']} held-out users, {found['items']} items, {found['interactions']} interactions",
        "history filtered; in brackets: not filtered",
        "",
        f"{'':28}{f'P@{k} %':>8}{f'R@{k} %':>8}{f'F@{k} %':>22}{'/ brute':>9}{'read':>10}{'fit s':>8}{'ms':>8}",
    ]
    for method, row in found["methods"].items():
        p, r, f = (row["filtered"][m] for m in MEASURES)
        free = row["unfiltered"]["f_measure"]["mean"]
        fs = f"{100 * f['mean']:.2f} +- {100 * f['std']:.2f} ({100 * free:.2f})"
        ratio = row["filtered"]["ratio_to_brute_force"]["f_measure"]["mean"]
        took = f"{row['fit_seconds']['mean']:.0f}" if row["fit_seconds"]["mean"] else ""
        lines.append(
            f"{METHODS[method]:28}{100 * p['mean']:>8.2f}{100 * r['mean']:>8.2f}{fs:>22}{ratio:>9.3f}"
            f"{row['reads']['mean']:>10.0f}{took:>8}{row['answer_ms']['mean']:>8.2f}"
        )
    return "\n".join(lines)
