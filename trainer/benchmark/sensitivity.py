"""Measure the effect of each setting of the paths on your own data: the paper's Figure 3, Table 4 and Table 5.

Encoder and head are trained once; every variant then trains its own paths with this encoder. As in the paper, the beam
is the same for all variants of K, D, J and alpha. Variants differ only in the items that they read: all rank by the
same head, without a reranker. The network runs in torch, without an export.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.paths.rerank import SOFTMAX, candidates, rerank
from retrieval.paths.structure import PathStructure
from retrieval.paths.trie import path_trie
from retrieval.query import Limits
from trainer.benchmark.kept import keep, own_folder
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.data.measures import (
    MEASURES,
    Items,
    by_user,
    count_read,
    mean_figures,
    new_items,
    no_new_items,
    tops,
)
from trainer.data.requests import Requests, held_out_requests, training_requests
from trainer.data.split import split_users
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.fit import Trained, fit
from trainer.deep_retrieval.layers import PathModel
from trainer.errors import ConfigError, DataError
from trainer.progress import Progress, counted
from trainer.publish.frontier import choose_beam
from trainer.publish.index import make_index
from trainer.publish.network import Network
from trainer.publish.version import BEAM_REQUESTS

BEAMS = (5, 10, 20, 35, 50, 100)
COUNTS = (1, 2, 3, 4, 5)  # values of J
WIDTHS = (0.3, 0.5, 1, 2, 4)  # values of K, as multiples of the K in the settings
DEPTHS = (2, 3, 4)
#: Multiples of the alpha that meets the budget of reads. With a smaller alpha, paths are large, as in Table 5 of the
#: paper. With a larger alpha, paths have only a few items, and such small whole numbers follow no power law.
ALPHAS = (0.001, 0.01, 0.1, 1)
PERMUTATIONS = 1000  # permutations in the test of `chance`
#: Titles of the settings in plots and tables.
TITLES = {
    "beam": "beam width W",
    "width": "nodes a layer K",
    "depth": "layers D (and K)",
    "paths_per_item": "paths an item J",
    "alpha": "penalty alpha",
}


@dataclass(frozen=True)
class Variant:
    """A value of a setting, with the changes to the configuration."""

    setting: str  # a key of TITLES
    value: Any
    changes: Mapping[str, Any]


class TorchSession:
    """Has the method `run` of an ONNX session, but computes with torch, so that no export is needed."""

    def __init__(self, model: PathModel) -> None:
        self._network = Network(model).eval()

    def run(self, _: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """User vectors, the positions of their paths among the paths in use, and log-probabilities."""
        names = ("history", "length", "categories", "numbers", "beam", "trie")
        with torch.inference_mode():
            outputs = self._network(*(torch.from_numpy(feeds[name]) for name in names))
        return [tensor.numpy() for tensor in outputs]


class MeasuredPaths:
    """Measures the items that the paths of a training find for the held-out users."""

    def __init__(self, trained: Trained, requests: Requests, config: TrainConfig) -> None:
        self.trained, self.requests, self.config = trained, requests, config
        model, index = trained.model, make_index(trained.model, trained.paths)
        trie = path_trie(index.path_ids, model.depth, model.width)
        self.structure = PathStructure(TorchSession(model), index, trie, SOFTMAX, config.history, Limits.BEAM)

    def brute_force(self) -> list[Items]:
        """Each user's k best items by the head's logit, without items of the history."""
        answers: list[Items] = []
        for part, beams in zip(self.requests.parts(), self.requests.beams(self.structure, 1), strict=True):
            logits = self.structure.index.logits(beams.user)
            answers += tops(logits, self.config.k, self.requests.histories[part])
        return answers

    def figures(self, beam: int, exact: list[Items]) -> dict[str, Any]:
        """P/R/F@k, and the recall of each user whose truth is not empty. exact: brute force's answers.

        If the beam finds fewer than k items, no wider beam is searched, because equal beams are to be compared.
        """
        requests, k, index = self.requests, self.config.k, self.structure.index
        items: list[Items] = []
        reads = held = 0
        beams = requests.beams(self.structure, beam)
        for part, searched in zip(requests.parts(), beams, strict=True):
            histories = requests.histories[part]
            postings = self.structure.read(searched, Limits.READS // Limits.BEAM)
            answers = rerank(index, searched, postings, SOFTMAX, [k] * len(histories), histories)
            items += [answer.items for answer in answers]
            reads += sum(answer.read for answer in answers)
            held += count_read(exact[part], candidates(index, searched, postings), index.items)
        rows = by_user(items, new_items(requests), k)
        return {
            **dict(zip(MEASURES, rows.mean(axis=0).tolist(), strict=True)),
            "structural_recall": held / sum(map(len, exact)),
            "reads": reads / len(items),
            "largest": int(np.unique(self.trained.paths, return_counts=True)[1].max()),
            "alpha": next((r["alpha"] for r in reversed(self.trained.history) if "alpha" in r), None),
            "recall_by_user": rows[:, MEASURES.index("recall")].tolist(),
        }


def sensitivity(config: TrainConfig, dataset: Dataset, folder: Path, progress: Progress) -> dict[str, Any]:
    """The document of `dr-trainer sensitivity --json`. Its measurements are stored in `folder`."""
    split = split_users(dataset, config)
    requests = held_out_requests(dataset, split)
    if not requests.histories:
        raise DataError("test_users: no users are held out, so nothing can be measured")
    if not any(map(len, new_items(requests))):
        raise DataError(no_new_items(config.split))
    if config.path_epochs < 2:
        raise ConfigError(
            f"epochs: a reassignment needs two epochs after the warm-up; expected at least {config.encoder_epochs + 2}"
        )
    width = config.resolve_width(len(dataset.item_ids))
    config = config.replace(width=width)  # a number, so that a variant equal to the base settings is recognised
    variants = possible(structures(width), config, dataset, progress)
    progress.say("base: your settings, unchanged")
    base = fit(config, dataset, split, Run(own_folder(folder, "base", config, dataset), config, dataset), progress)
    first = MeasuredPaths(base, requests, config)
    beam_requests = training_requests(dataset, split, BEAM_REQUESTS, config.seed)
    beam, _ = choose_beam(first.structure, beam_requests, config)
    unchanged = config.replace(beam=beam)
    exact = first.brute_force()

    def measure(changed: TrainConfig, own: Path) -> dict[str, Any]:
        if changed == unchanged:
            return first.figures(beam, exact)
        trained = fit(changed, dataset, split, Run(own, changed, dataset), progress, base.model.encoder)
        return MeasuredPaths(trained, requests, changed).figures(beam, exact)

    def row(variant: Variant) -> dict[str, Any]:
        progress.say(f"{TITLES[variant.setting]}: {variant.value}")
        changed = config.replace(**variant.changes, beam=beam)
        # `keep` gets the same name for all variants, so equal variants of two settings share a folder and are trained
        # and measured only once.
        figures = keep(folder, "paths", changed, dataset, progress, functools.partial(measure, changed))
        return {"value": variant.value} | figures

    rows = {"beam": [{"value": value} | first.figures(value, exact) for value in BEAMS]}
    for setting in ("width", "depth", "paths_per_item"):
        rows[setting] = [row(variant) for variant in variants if variant.setting == setting]
    # Alpha is measured as in the paper: with random first paths and a reassignment.
    paper = {"start": "random", "reassignments": max(1, config.reassignments)}
    auto = row(Variant("alpha", "auto", paper | {"alpha": "auto"}))["alpha"]
    alphas = [float(f"{auto * factor:.3g}") for factor in ALPHAS]
    rows["alpha"] = [row(Variant("alpha", alpha, paper | {"alpha": alpha})) for alpha in alphas]
    recalls = {name: np.array([row.pop("recall_by_user") for row in rows[name]]) for name in TITLES}
    return {
        "k": config.k,
        "users": recalls["beam"].shape[1],
        "settings": {"beam": beam, "width": width, "depth": config.depth, "paths_per_item": config.paths_per_item},
        "brute_force": mean_figures(exact, new_items(requests), config.k),
        **rows,
        "largest_path_slope": slope(alphas, [row["largest"] for row in rows["alpha"]]),
        "effects": {name: float(np.ptp(recall.mean(axis=1))) for name, recall in recalls.items()},
        "chance": {name: chance(recall) for name, recall in recalls.items()},
    }


def chance(recalls: NDArray[np.float64]) -> dict[str, Any]:
    """A permutation test of the difference between the best and the worst value. recalls: (values, users).

    standard_error: the standard error of the difference, over users. by_chance: the 95th percentile of the difference
    if the setting has no effect; for this, each user's recalls are shuffled among the values 1,000 times. within:
    whether the difference is at most by_chance.
    """
    means = recalls.mean(axis=1)
    differences = recalls[means.argmax()] - recalls[means.argmin()]
    users = len(differences)
    generator = np.random.default_rng(0)
    shuffled = [np.ptp(generator.permuted(recalls, axis=0).mean(axis=1)) for _ in range(PERMUTATIONS)]
    by_chance = float(np.quantile(shuffled, 0.95))
    return {
        "standard_error": float(differences.std(ddof=1) / users**0.5) if users > 1 else None,
        "by_chance": by_chance,
        "within": bool(differences.mean() <= by_chance + 1e-12),
    }


def effect(document: dict[str, Any], name: str) -> str:
    """The effect of a setting on recall, as text."""
    test = document["chance"][name]
    error = "" if test["standard_error"] is None else f" ± {100 * test['standard_error']:.2f}"
    verdict = f"; within chance ({counted(document['users'], 'user')})" if test["within"] else ""
    return f"{100 * document['effects'][name]:.2f}{error} points between the best and the worst{verdict}"


def structures(width: int) -> list[Variant]:
    """Variants of K, D and J, one changed at a time.

    One more variant of D has two layers, and a K that gives about the same number of paths as three layers.
    """
    widths = sorted({max(2, round(factor * width)) for factor in WIDTHS})
    depths = [*((depth, width) for depth in DEPTHS), (2, round(width**1.5))]
    return [
        *(Variant("width", k, {"width": k}) for k in widths),
        *(Variant("depth", f"{d} (K = {k})", {"depth": d, "width": k}) for d, k in depths),
        *(Variant("paths_per_item", j, {"paths_per_item": j}) for j in COUNTS),
    ]


def possible(variants: list[Variant], config: TrainConfig, dataset: Dataset, progress: Progress) -> list[Variant]:
    """The variants that can be trained. Prints for each other variant the reason why it is left out."""
    trainable = []
    for variant in variants:
        try:
            config.replace(**variant.changes).resolve_width(len(dataset.item_ids))
            trainable.append(variant)
        except ConfigError as error:
            progress.say(f"left out: {TITLES[variant.setting]} {variant.value}: {error}")
    return trainable


def slope(alphas: list[float], largest: list[int]) -> float:
    """Least-squares slope of log(largest path) over log(alpha); the paper's Table 5 has -0.3."""
    return float(np.polyfit(np.log(alphas), np.log(largest), 1)[0])


def table(result: dict[str, Any]) -> str:
    """The tables as text, recall in percent."""
    k = result["k"]
    users = counted(result["users"], "held-out user")
    lines = [
        f"brute force: R@{k} {100 * result['brute_force']['recall']:.2f} %, {users}; ± is the standard error over users"
    ]
    for name, title in TITLES.items():
        lines += ["", f"{title}: {effect(result, name)}"]
        lines.append(f"  {'':>12}{f'R@{k} %':>10}{f'F@{k} %':>10}{'read':>10}{'largest':>10}")
        for row in result[name]:
            value = f"{row['value']:.3g}" if isinstance(row["value"], float) else str(row["value"])
            lines.append(
                f"  {value:>12}{100 * row['recall']:>10.2f}{100 * row['f_measure']:>10.2f}"
                f"{row['reads']:>10.0f}{row['largest']:>10}"
            )
    return "\n".join([*lines, "", f"largest path ~ alpha^{result['largest_path_slope']:.2f}"])
