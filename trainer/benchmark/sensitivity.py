"""What each setting of the structure is worth on one's own data: the paper's Figure 3, Table 4 and Table 5.

Encoder and head are learned once; every variant then learns paths of its own on top of them. As in the paper, the beam
is the same for all variants of K, D, J and alpha. What is compared is which items are read: all are ranked by the same
head, no reranker is fitted, and nothing is exported; the network is searched as it was trained.
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
from trainer.data.requests import Requests, held_out_requests, training_requests
from trainer.data.split import split_users
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.fit import Trained, fit
from trainer.deep_retrieval.layers import PathModel
from trainer.errors import ConfigError, DataError
from trainer.evaluate.measures import MEASURES, Items, by_user, new_items, nobody, precision_recall_f, tops
from trainer.progress import Progress, counted
from trainer.publish.frontier import choose_beam
from trainer.publish.index import make_index
from trainer.publish.network import Network
from trainer.publish.version import TUNING_REQUESTS

BEAMS = (5, 10, 20, 35, 50, 100)
COUNTS = (1, 2, 3, 4, 5)  # J
WIDTHS = (0.3, 0.5, 1, 2, 4)  # times K
DEPTHS = (2, 3, 4)
#: Times the alpha that meets the budget: three decades below it, where paths are large, as the paper's are in Table 5.
#: Above it they have a few items each, and whole numbers follow no power law.
ALPHAS = (0.001, 0.01, 0.1, 1)
DEALS = 1000  # of chance, see `chance`
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


class TorchSession:
    """Has an ONNX session's `run`, computed by torch: nothing is exported."""

    def __init__(self, model: PathModel) -> None:
        self._network = Network(model).eval()

    def run(self, _: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """User vectors, the rows of their paths, log-probabilities."""
        names = ("history", "length", "categories", "numbers", "beam", "trie")
        with torch.inference_mode():
            found = self._network(*(torch.from_numpy(feeds[name]) for name in names))
        return [tensor.numpy() for tensor in found]


class MeasuredPaths:
    """What the paths of one training find for the held-out users."""

    def __init__(self, trained: Trained, requests: Requests, config: TrainConfig) -> None:
        self.trained, self.requests, self.config = trained, requests, config
        model, index = trained.model, make_index(trained.model, trained.paths)
        trie = path_trie(index.path_ids, model.depth, model.width)
        self.structure = PathStructure(TorchSession(model), index, trie, SOFTMAX, config.history, Limits.BEAM)

    def brute_force(self) -> list[Items]:
        """Each user's k best of all items by the head, without the history's."""
        found: list[Items] = []
        index = self.structure.index
        vectors = index.item_vectors.astype(np.float32)
        beams = self.requests.beams(self.structure, 1)
        for part, searched in zip(self.requests.parts(), beams, strict=True):
            scores = searched.user @ vectors.T + index.item_bias
            found += tops(scores, self.config.k, self.requests.histories[part])
        return found

    def figures(self, beam: int, exact: list[Items]) -> dict[str, Any]:
        """P/R/F@k, and the recall of each user who has a truth. exact: brute force's answers.

        The beam is not widened where it finds fewer than k: it is what is compared.
        """
        requests, k, index = self.requests, self.config.k, self.structure.index
        found: list[Items] = []
        reads = held = 0
        beams = requests.beams(self.structure, beam)
        for part, searched in zip(requests.parts(), beams, strict=True):
            histories = requests.histories[part]
            postings = self.structure.read(searched, Limits.READS // Limits.BEAM)
            answers = rerank(index, searched, postings, SOFTMAX, [k] * len(histories), histories)
            found += [answer.items for answer in answers]
            reads += sum(answer.read for answer in answers)
            read = candidates(index, searched, postings)
            keys = np.concatenate([row * index.items + top for row, top in enumerate(exact[part])])
            held += int(np.isin(keys, read.request * index.items + read.item).sum())
        rows = by_user(found, new_items(requests), k)
        return {
            **dict(zip(MEASURES, rows.mean(axis=0).tolist(), strict=True)),
            "structural_recall": held / sum(map(len, exact)),
            "reads": reads / len(found),
            "largest": int(np.unique(self.trained.paths, return_counts=True)[1].max()),
            "alpha": next((r["alpha"] for r in reversed(self.trained.history) if "alpha" in r), None),
            "recall_by_user": rows[:, MEASURES.index("recall")].tolist(),
        }


def sensitivity(config: TrainConfig, dataset: Dataset, folder: Path, progress: Progress) -> dict[str, Any]:
    """The document of `dr-trainer sensitivity --json`; what it measures is kept in `folder`."""
    split = split_users(dataset, config)
    requests = held_out_requests(dataset, split)
    if not requests.histories:
        raise DataError("test_users: nobody is held out, so there is nobody to measure")
    if not any(map(len, new_items(requests))):
        raise DataError(nobody(config.split))
    if config.passes - config.warmup < 2:
        raise ConfigError(f"epochs: a reassignment needs two after the warm-up; expected at least {config.warmup + 2}")
    width = config.resolve_width(len(dataset.item_ids))
    config = config.replace(width=width)  # so that a variant that is the settings as they are is known for that
    variants = possible(structures(width), config, dataset, progress)
    progress.say("the settings as they are")
    base = fit(config, dataset, split, Run(own_folder(folder, "base", config, dataset), config, dataset), progress)
    first = MeasuredPaths(base, requests, config)
    tuning = training_requests(dataset, split, TUNING_REQUESTS, config.seed)
    beam, _ = choose_beam(first.structure, tuning, config)
    as_it_is = config.replace(beam=beam)
    exact = first.brute_force()

    def measure(changed: TrainConfig, place: Path) -> dict[str, Any]:
        if changed == as_it_is:
            return first.figures(beam, exact)
        trained = fit(changed, dataset, split, Run(place, changed, dataset), progress, base.model.encoder)
        return MeasuredPaths(trained, requests, changed).figures(beam, exact)

    def row(variant: Variant) -> dict[str, Any]:
        progress.say(f"{TITLES[variant.setting]}: {variant.value}")
        changed = config.replace(**variant.changes, beam=beam)
        # Called alike, so that what two settings have in common is trained and measured once.
        found = keep(folder, "paths", changed, dataset, progress, functools.partial(measure, changed))
        return {"value": variant.value} | found

    rows = {"beam": [{"value": value} | first.figures(value, exact) for value in BEAMS]}
    for setting in ("width", "depth", "paths_per_item"):
        rows[setting] = [row(variant) for variant in variants if variant.setting == setting]
    # The paper's own way for alpha: from random paths, by reassignment.
    paper = {"start": "random", "reassignments": max(1, config.reassignments)}
    auto = row(Variant("alpha", "auto", paper | {"alpha": "auto"}))["alpha"]
    alphas = [float(f"{auto * factor:.3g}") for factor in ALPHAS]
    rows["alpha"] = [row(Variant("alpha", alpha, paper | {"alpha": alpha})) for alpha in alphas]
    recalls = {name: np.array([row.pop("recall_by_user") for row in rows[name]]) for name in TITLES}
    return {
        "k": config.k,
        "users": recalls["beam"].shape[1],
        "settings": {"beam": beam, "width": width, "depth": config.depth, "paths_per_item": config.paths_per_item},
        "brute_force": precision_recall_f(exact, new_items(requests), config.k),
        **rows,
        "largest_path_slope": slope(alphas, [row["largest"] for row in rows["alpha"]]),
        "effects": {name: float(np.ptp(recall.mean(axis=1))) for name, recall in recalls.items()},
        "chance": {name: chance(recall) for name, recall in recalls.items()},
    }


def chance(recalls: NDArray[np.float64]) -> dict[str, Any]:
    """A permutation test of the best value of a setting minus the worst. recalls: (values, users).

    standard_error: of that difference, over users. by_chance: its 95th percentile if the values were all alike: each
    user's recalls are dealt out to them anew, 1,000 times. within: whether the difference is not above that.
    """
    means = recalls.mean(axis=1)
    differences = recalls[means.argmax()] - recalls[means.argmin()]
    users = len(differences)
    generator = np.random.default_rng(0)
    dealt = [np.ptp(generator.permuted(recalls, axis=0).mean(axis=1)) for _ in range(DEALS)]
    by_chance = float(np.quantile(dealt, 0.95))
    return {
        "standard_error": float(differences.std(ddof=1) / users**0.5) if users > 1 else None,
        "by_chance": by_chance,
        "within": bool(differences.mean() <= by_chance + 1e-12),
    }


def effect(document: dict[str, Any], name: str) -> str:
    """What a setting is worth, for people."""
    found = document["chance"][name]
    error = "" if found["standard_error"] is None else f" ± {100 * found['standard_error']:.2f}"
    verdict = f"; within chance ({counted(document['users'], 'user')})" if found["within"] else ""
    return f"{100 * document['effects'][name]:.2f}{error} points between the best and the worst{verdict}"


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
    users = counted(result["users"], "held-out user")
    lines = [
        f"brute force: R@{k} {100 * result['brute_force']['recall']:.2f} %, {users}; ± is a standard error over users"
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
