"""The benchmark's methods, and their figures summarised over the seeds."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.data.measures import MEASURES, RATIOS, SHOWN, ratios

BUDGETS = (2, 5, 10)  # items read, as a multiple of k
HNSW_SEARCH = (2, 10)  # nodes that HNSW keeps during a search (efSearch), as a multiple of k

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

#: The names for `--methods`: those that are always measured, and those that may be left out.
ALWAYS = ("deep_retrieval", "brute_force")
OTHERS = ("random_paths", "hnsw", "two_tower", "ease", "als", "item_cf", "popularity")


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of every figure over the seeds, and the curves of the first seed."""
    first = runs[0]
    rows: dict[str, Any] = {}
    for name in (name for name in METHODS if name in first["methods"]):
        each = [run["methods"][name] for run in runs]
        exact = [run["methods"]["brute_force"] for run in runs]
        rows[name] = {key: _mean_and_std([row[key] for row in each]) for key in ("reads", "fit_seconds", "answer_ms")}
        rows[name]["at"] = {
            cut: {m: _mean_and_std([row["at"][cut][m] for row in each]) for m in SHOWN["last-out"]}
            for cut in each[0]["at"]
        }
        for kind in ("filtered", "unfiltered"):
            rows[name][kind] = {m: _mean_and_std([row[kind][m] for row in each]) for m in MEASURES}
            relative = [ratios(row[kind], brute[kind]) for row, brute in zip(each, exact, strict=True)]
            rows[name][kind]["ratio_to_brute_force"] = {
                m: _mean_and_std([ratio[m] for ratio in relative]) for m in RATIOS
            }
        rows[name]["recall_by_popularity"] = first["methods"][name]["recall_by_popularity"]
    return {
        **{key: first[key] for key in ("split", "k", "users", "items", "interactions")},
        "structural_recall": _mean_and_std([run["structural_recall"] for run in runs]),
        "curves": {name: _mean_curve([run["curves"][name] for run in runs]) for name in first["curves"]},
        "methods": rows,
        **{key: first[key] for key in ("frontier", "path_sizes", "paths", "epochs")},
    }


def _mean_curve(curves: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The curves of several seeds as one: at each number of reads, mean and standard deviation of the two shares."""
    return [
        {"reads": points[0]["reads"]}
        | {share: _mean_and_std([point[share] for point in points]) for share in ("brute_force", "truths")}
        for points in zip(*curves, strict=True)
    ]


def _mean_and_std(values: list[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation over the seeds; None if there are too few values."""
    measured = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(measured)) if measured else None,
        "std": float(np.std(measured, ddof=1)) if len(measured) > 1 else None,
    }
