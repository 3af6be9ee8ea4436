"""What each setting of the structure is worth on one's own data: the paper's Figure 3, Table 4 and Table 5.

Encoder and head are learned once; every variant then learns paths of its own on top of them. As in the paper, the beam
is the same for all variants of K, D, J and alpha.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index_store.index import MAX_READS
from trainer.checkpoint import Run
from trainer.config import MAX_BEAM, TrainConfig
from trainer.data import Dataset, split_users
from trainer.errors import ConfigError, DataError
from trainer.evaluate import Measured
from trainer.export import make_version
from trainer.kept import keep, own_folder
from trainer.progress import Progress
from trainer.requests import held_out_requests
from trainer.train import Trained, fit

BEAMS = (5, 10, 20, 35, 50, 100)
COUNTS = (1, 2, 3, 4, 5)  # J
WIDTHS = (0.3, 0.5, 1, 2, 4)  # times K
DEPTHS = (2, 3, 4)
#: Times the alpha that meets the budget: three decades below it, where paths are large, as the paper's are in Table 5.
#: Above it they have a few items each, and whole numbers follow no power law.
ALPHAS = (0.001, 0.01, 0.1, 1)
#: What each variant is called in plots and tables.
TITLES = {
    "beam": "beam width B",
    "width": "nodes a layer K",
    "depth": "layers D (and K)",
    "paths_per_item": "paths an item J",
    "alpha": "penalty alpha",
}


@dataclass(frozen=True)
class Variant:
    """One value of one setting."""

    setting: str  # of TITLES
    value: Any
    changes: Mapping[str, Any]


def sensitivity(config: TrainConfig, dataset: Dataset, folder: Path, progress: Progress) -> dict[str, Any]:
    """The document of `dr-trainer sensitivity --json`; what it measures is kept in `folder`."""
    split = split_users(dataset, config)
    requests = held_out_requests(dataset, split)
    if not requests.histories:
        raise DataError("test_users: nobody is held out, so there is nobody to measure")
    if config.passes - config.warmup < 2:
        raise ConfigError(f"epochs: a reassignment needs two after the warm-up; expected at least {config.warmup + 2}")
    width = config.resolve_width(len(dataset.item_ids))
    variants = possible(structures(width), config, dataset, progress)
    progress.say("the settings as they are")
    base = fit(config, dataset, split, Run(own_folder(folder, "base", config, dataset), config, dataset), progress)
    version = make_version(config, dataset, split, base, progress, allow_collapsed=True)
    beam = version.manifest.beam
    measured = Measured(version, requests, config.k, progress)

    def figures(one: Measured, trained: Trained, value: Any, beam: int) -> dict[str, Any]:
        # Not widened: the beam is what is compared.
        found, share = one.retrieval(beam, MAX_READS // MAX_BEAM, progress, widen=False)
        return {
            "value": value,
            **found.figures(requests, config.k)["filtered"],
            "structural_recall": share,
            "reads": float(found.reads.mean()),
            "largest": int(np.unique(trained.paths, return_counts=True)[1].max()),
            "alpha": next((r["alpha"] for r in reversed(trained.history) if "alpha" in r), None),
        }

    def measure(value: Any, changed: TrainConfig, place: Path) -> dict[str, Any]:
        trained = fit(changed, dataset, split, Run(place, changed, dataset), progress, base.model.encoder)
        made = make_version(changed, dataset, split, trained, progress, allow_collapsed=True)
        return figures(Measured(made, requests, config.k, progress), trained, value, beam)

    def row(variant: Variant) -> dict[str, Any]:
        name = f"{variant.setting}-{variant.value}"
        changed = config.replace(**variant.changes, beam=beam)
        return keep(folder, name, changed, dataset, progress, functools.partial(measure, variant.value, changed))

    result: dict[str, Any] = {
        "k": config.k,
        "settings": {"beam": beam, "width": width, "depth": config.depth, "paths_per_item": config.paths_per_item},
        "brute_force": measured.brute_force.figures(requests, config.k)["filtered"],
        "beam": [figures(measured, base, value, value) for value in BEAMS],
    }
    for setting in ("width", "depth", "paths_per_item"):
        result[setting] = [row(variant) for variant in variants if variant.setting == setting]
    # The paper's own way for alpha: from random paths, by reassignment.
    paper = {"start": "random", "reassignments": max(1, config.reassignments)}
    auto = row(Variant("alpha", "auto", paper | {"alpha": "auto"}))["alpha"]
    result["alpha"] = [
        row(Variant("alpha", float(f"{auto * factor:.3g}"), paper | {"alpha": float(f"{auto * factor:.3g}")}))
        for factor in ALPHAS
    ]
    result["largest_path_slope"] = slope(
        [row["value"] for row in result["alpha"]], [row["largest"] for row in result["alpha"]]
    )
    result["effects"] = {
        name: max(row["recall"] for row in result[name]) - min(row["recall"] for row in result[name]) for name in TITLES
    }
    return result


def structures(width: int) -> list[Variant]:
    """The values of K, D and J: a setting changes, the others stay; and for D once K^D in other layers."""
    widths = sorted({max(2, round(factor * width)) for factor in WIDTHS})
    depths = [*((depth, width) for depth in DEPTHS), (2, round(width**1.5))]
    return [
        *(Variant("width", k, {"width": k}) for k in widths),
        *(Variant("depth", f"{d} (K = {k})", {"depth": d, "width": k}) for d, k in depths),
        *(Variant("paths_per_item", j, {"paths_per_item": j}) for j in COUNTS),
    ]


def possible(variants: list[Variant], config: TrainConfig, dataset: Dataset, progress: Progress) -> list[Variant]:
    """Those that can be trained; of the others it is said why not."""
    found = []
    for variant in variants:
        try:
            config.replace(**variant.changes).resolve_width(len(dataset.item_ids))
            found.append(variant)
        except ConfigError as error:
            progress.say(f"left out: {TITLES[variant.setting]} {variant.value}: {error}")
    return found


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
