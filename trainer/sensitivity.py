"""What each setting of the structure is worth on one's own data: the paper's Figure 3, Table 4 and Table 5.

Encoder and head are learned once; every variant then learns paths of its own on top of them. As in the paper, the beam
is the same for all variants of K, D, J and alpha.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from index_store.retrieval import MAX_READS
from trainer.checkpoint import Run
from trainer.config import MAX_BEAM, TrainConfig
from trainer.data import Dataset, Split
from trainer.errors import TrainerError
from trainer.evaluate import Measured
from trainer.export import make_version
from trainer.progress import Progress
from trainer.requests import held_out_requests
from trainer.train import Trained, fit

BEAMS = (5, 10, 20, 35, 50, 100)
COUNTS = (1, 2, 3, 4, 5)  # J
WIDTHS = (0.3, 0.5, 1, 2, 4)  # times K
DEPTHS = (2, 3, 4)
ALPHAS = (0.01, 0.1, 1, 10)  # times the alpha that meets the budget: three decades
#: What each variant is called in plots and tables.
TITLES = {
    "beam": "beam width B",
    "width": "nodes a layer K",
    "depth": "layers D (and K)",
    "paths_per_item": "paths an item J",
    "alpha": "penalty alpha",
}


def sensitivity(
    config: TrainConfig, dataset: Dataset, split: Split, folder: Path, progress: Progress
) -> dict[str, Any]:
    """The document of `dr-trainer sensitivity --json`."""
    requests = held_out_requests(dataset, split)
    if config.passes - config.warmup < 2:
        raise TrainerError(
            f"epochs: a reassignment needs two after the warm-up of {config.warmup}; set {2 * config.passes}"
        )
    progress.say("the settings as they are")
    base = fit(config, dataset, split, Run(folder / "base", config, dataset), progress)
    version = make_version(config, dataset, split, base, progress, allow_collapsed=True)
    beam, width = version.manifest.beam, version.manifest.width
    measured = Measured(version, requests, config.k, progress)

    def figures(one: Measured, trained: Trained, value: Any, beam: int) -> dict[str, Any]:
        found, share = one.retrieval(beam, MAX_READS // MAX_BEAM, progress)
        return {
            "value": value,
            **found.figures(requests, config.k)["filtered"],
            "structural_recall": share,
            "reads": float(found.reads.mean()),
            "largest": int(np.unique(trained.paths, return_counts=True)[1].max()),
        }

    def variant(name: str, value: Any, **changes: Any) -> tuple[dict[str, Any], Trained]:
        progress.say(f"{TITLES[name]}: {value}")
        changed = config.replace(**changes, beam=beam)
        place = folder / "-".join([name, str(value)])
        trained = fit(changed, dataset, split, Run(place, changed, dataset), progress, base.model.encoder)
        made = make_version(changed, dataset, split, trained, progress, allow_collapsed=True)
        return figures(Measured(made, requests, config.k, progress), trained, value, beam), trained

    result: dict[str, Any] = {
        "k": config.k,
        "settings": {"beam": beam, "width": width, "depth": config.depth, "paths_per_item": config.paths_per_item},
        "brute_force": measured.brute_force.figures(requests, config.k)["filtered"],
        "beam": [figures(measured, base, beam, beam) for beam in BEAMS],
        "paths_per_item": [variant("paths_per_item", j, paths_per_item=j)[0] for j in COUNTS],
        "width": [
            variant("width", k, width=k)[0] for k in sorted({max(2, round(factor * width)) for factor in WIDTHS})
        ],
        "depth": [
            variant("depth", f"{d} (K = {k})", depth=d, width=k)[0]
            for d, k in [*((d, width) for d in DEPTHS), (2, round(width**1.5))]
            if config.paths_per_item <= k**d
        ],
    }
    # The paper's own way for alpha: from random paths, by reassignment.
    paper = {"start": "random", "reassignments": max(1, config.reassignments)}
    _, trained = variant("alpha", "auto", **paper, alpha="auto")
    auto = next(record["alpha"] for record in reversed(trained.history) if "alpha" in record)
    rows = [variant("alpha", f"{auto * factor:.3g}", **paper, alpha=auto * factor)[0] for factor in ALPHAS]
    result["alpha"] = [row | {"value": auto * factor} for row, factor in zip(rows, ALPHAS, strict=True)]
    result["largest_path_slope"] = slope(
        [row["value"] for row in result["alpha"]], [row["largest"] for row in result["alpha"]]
    )
    result["effects"] = {
        name: max(row["recall"] for row in result[name]) - min(row["recall"] for row in result[name]) for name in TITLES
    }
    return result


def slope(alphas: list[float], largest: list[int]) -> float:
    """Of log largest path over log alpha, by least squares; the paper's Table 5 has -0.3."""
    return float(np.polyfit(np.log(alphas), np.log(largest), 1)[0])


def table(result: dict[str, Any]) -> str:
    """For people, recall in percent."""
    k = result["k"]
    lines = [f"brute force: R@{k} {100 * result['brute_force']['recall']:.2f} %"]
    for name, title in TITLES.items():
        lines += ["", f"{title}: {100 * result['effects'][name]:.2f} points between the best and the worst"]
        lines.append(f"  {'':>12}{f'R@{k} %':>10}{f'F@{k} %':>10}{'read':>10}{'largest':>10}")
        for row in result[name]:
            value = f"{row['value']:.3g}" if isinstance(row["value"], float) else str(row["value"])
            lines.append(
                f"  {value:>12}{100 * row['recall']:>10.2f}{100 * row['f_measure']:>10.2f}"
                f"{row['reads']:>10.0f}{row['largest']:>10}"
            )
    return "\n".join([*lines, "", f"largest path ~ alpha^{result['largest_path_slope']:.2f}"])
