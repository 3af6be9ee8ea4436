"""Compare a published version with brute force over the version's vectors, with Item-CF and with popularity.

The measured answers are those of the service: they come from the version's own network, path lists and reranker.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index_store.version import Version
from retrieval.paths.rerank import Beams, Reranker, candidates
from retrieval.query import Answer
from retrieval.searcher import Searcher
from trainer.data.dataset import Dataset
from trainer.data.measures import (
    RATIOS,
    SHOWN,
    TITLES,
    Answers,
    Items,
    count_read,
    new_items,
    no_new_items,
    ratios,
    tops,
)
from trainer.data.requests import Requests, held_out_requests
from trainer.data.split import Split, clicked_items
from trainer.deep_retrieval.occupancy import Occupancy
from trainer.errors import DataError
from trainer.evaluate.baselines import answer_all, item_cf, popularity
from trainer.progress import Progress, counted


def evaluate(searcher: Searcher, dataset: Dataset, split: Split, k: int, progress: Progress) -> dict[str, Any]:
    """The document of `dr-trainer evaluate --json`: fractions, not percent; a figure is None if no user can be
    measured.
    """
    requests = held_out_requests(dataset, split)
    if not requests.histories:
        raise DataError("test_users: nobody was held out, so there is nobody to measure; train with more")
    # The version may have items that came after its training; so its items have other indices than those of the data.
    items = searcher.vocabulary.places(dataset.item_ids.tolist())
    of_version = replace(
        requests,
        items=searcher.structure.index.items,
        histories=[items[history] for history in requests.histories],
        truths=[items[truth] for truth in requests.truths],
    )
    measured = MeasuredVersion(searcher, of_version, k, progress)
    search = searcher.default_search(k)
    deep = measured.retrieval(k, *search, progress)
    clicked = clicked_items(dataset, split.train_users, split.visible_length)
    figures = {
        "deep_retrieval": deep.figures(of_version, k),
        "brute_force": measured.brute_force.figures(of_version, k),
    }
    for name, fit in {"item_cf": item_cf, "popularity": popularity}.items():
        progress.say(f"measuring {name}")
        figures[name] = answer_all(fit(clicked), requests, k).figures(requests, k)

    def document(kind: str) -> dict[str, Any]:
        measures: dict[str, Any] = {name: figure[kind] for name, figure in figures.items()}
        measures["ratio_to_brute_force"] = ratios(measures["deep_retrieval"], measures["brute_force"])
        cost = {"candidates_mean": float(deep.reads.mean()), "candidates_p99": float(np.percentile(deep.reads, 99))}
        measures["deep_retrieval"] = measures["deep_retrieval"] | cost
        return measures

    occupancy = Occupancy.of_sizes(searcher.structure.index.sizes).to_json()
    return {
        "k": k,
        "users": sum(len(truth) > 0 for truth in new_items(requests)),
        "version": searcher.manifest.version,
        **document("filtered"),
        "structural_recall": measured.reads(k, *search).exact,
        "paths": {name: occupancy[name] for name in ("used", "largest", "mean_size", "gini")},
        "unfiltered": document("unfiltered"),
    }


def table(result: dict[str, Any], split: str) -> str:
    """The document as a text table, in percent. split: the setting `split` of TrainConfig."""
    k = result["k"]
    if result["users"]:
        head = f"{counted(result['users'], 'held-out user')}, history filtered (in brackets: not filtered)"
    else:
        head = f"{no_new_items(split)}; these figures are not filtered"
    lines = [f"{result['version']}: {head}", ""]
    lines.append(f"{'':16}" + "".join(f"{f'{TITLES[m]}@{k} %':>16}" for m in SHOWN[split]))
    for name in ("deep_retrieval", "brute_force", "item_cf", "popularity"):
        filtered, free = result[name], result["unfiltered"][name]
        cells = (
            f"{100 * filtered[m]:.2f} ({100 * free[m]:.2f})" if result["users"] else f"{100 * free[m]:.2f}"
            for m in SHOWN[split]
        )
        lines.append(f"{name.replace('_', ' '):16}" + "".join(f"{cell:>16}" for cell in cells))
    deep, paths = result["deep_retrieval"], result["paths"]
    ratio = (result if result["users"] else result["unfiltered"])["ratio_to_brute_force"]
    shown = (f"{m[0].upper()} " + ("-" if ratio[m] is None else f"{ratio[m]:.3f}") for m in RATIOS)
    lines += [
        "",
        f"ratio to brute force: {', '.join(shown)}",
        f"items read: {deep['candidates_mean']:.1f} a request on average, 99th percentile {deep['candidates_p99']:.0f}",
    ]
    if result["structural_recall"] is not None:
        lines.append(f"of brute force's answer, {100 * result['structural_recall']:.1f} % was among the items read")
    lines.append(
        f"paths used: {paths['used']}, the largest holds {paths['largest']}, the mean {paths['mean_size']:.2f}"
    )
    return "\n".join(lines)


def require_same_data(version: Version, dataset: Dataset, progress: Progress) -> None:
    """Raise DataError unless the data have the version's items. Warn if training had different interactions."""
    ids = np.asarray(version.item_ids, dtype=None if not isinstance(version.item_ids, list) else object)
    trained = np.delete(ids, version.array("late_items.npy"))  # a trained item may have been put again
    same_type = ids.dtype == dataset.item_ids.dtype
    if not same_type or not (np.isin(trained, dataset.item_ids).all() and np.isin(dataset.item_ids, ids).all()):
        made_from = version.manifest.metrics.get("files") or {}  # an earlier release did not record it
        named = (name if kind == "interactions" else f"--{kind} {name}" for kind, name in made_from.items())
        raise DataError(
            f"{version.manifest.version} knows {version.manifest.items} items, the files have "
            f"{len(dataset.item_ids)} and not the same; evaluate with the files it was trained on: "
            f"{' '.join(named) or 'those of fit, --items too'}"
        )
    if version.manifest.metrics.get("data_sha256") != dataset.digest():
        progress.say("warning: trained on other data; users measured here may have been trained on")


class Reads(NamedTuple):
    """What the requests of a search have read. A share is None if there is nothing to find.

    mean: items per request. exact: share of brute force's k best items that were read. truths: share of the true items,
    without items of the history, that were read.
    """

    mean: float
    exact: float | None
    truths: float | None


class MeasuredVersion:
    """A version, and the answers of brute force (a scan of all its item vectors) to some requests."""

    def __init__(self, searcher: Searcher, requests: Requests, longest: int, progress: Progress) -> None:
        """longest: the number of items in brute force's answers, and the largest k that can be measured."""
        self.searcher, self.requests = searcher, requests
        self.structure = self.searcher.structure
        index = self.structure.index
        for beams in itertools.islice(self._beams(1), 1):
            index.logits(beams.user)  # the first search and the first scan take longer than later ones
        self.users: list[NDArray[np.float32]] = []  # user vectors, one array per batch
        filtered: list[Items] = []
        unfiltered: list[Items] = []
        seconds = 0.0
        self.encoding = 0.0  # seconds for all requests
        with progress.task("measuring brute force", len(requests.histories)) as advance:
            started = time.perf_counter()
            for part, beams in zip(requests.parts(), self._beams(1), strict=True):
                self.encoding += time.perf_counter() - started
                histories = requests.histories[part]
                started = time.perf_counter()
                scores = index.logits(beams.user)
                filtered += tops(scores, longest, histories)
                seconds += time.perf_counter() - started
                unfiltered += tops(scores, longest)
                self.users.append(beams.user)
                advance(len(histories))
                started = time.perf_counter()
        reads = np.full(len(filtered), index.items)
        self.brute_force = Answers(filtered, unfiltered, reads, self.encoding + seconds)

    def retrieval(
        self,
        k: int,
        beam: int,
        per_path: int,
        progress: Progress,
        *,
        widen: bool = True,
        reranker: Reranker | None = None,
    ) -> Answers:
        """The answers of the service. widen: search more paths if fewer than k items are found.

        reranker: replaces the version's reranker.
        """
        requests = self.requests
        structure = replace(self.structure, reranker=reranker) if reranker else self.structure
        answers: list[Answer] = []
        free_answers: list[Answer] = []
        seconds = 0.0
        with progress.task("measuring deep retrieval", len(requests.histories)) as advance:
            for part in requests.parts():
                queries = requests.queries(part, k, beam, per_path, widen=widen)
                started = time.perf_counter()
                answers += structure.answer(queries)
                seconds += time.perf_counter() - started
                nothing = np.empty(0, np.int64)
                free_answers += structure.answer([replace(query, excluded=nothing) for query in queries])
                advance(len(queries))
        reads = np.array([answer.read for answer in answers])
        return Answers([a.items for a in answers], [a.items for a in free_answers], reads, seconds)

    def reads(self, k: int, beam: int, per_path: int) -> Reads:
        """The items that a search reads, without searching wider for short answers."""
        requests, index = self.requests, self.structure.index
        truths, exact = new_items(requests), [answer[:k] for answer in self.brute_force.filtered]
        postings, held, found = 0, 0, 0
        for part, beams in zip(requests.parts(), self._beams(beam), strict=True):
            lists = self.structure.read(beams, per_path)
            read = candidates(index, beams, lists)
            postings += len(lists.items)
            held += count_read(exact[part], read, index.items)
            found += count_read(truths[part], read, index.items)

        def share(count: int, wanted: list[Items]) -> float | None:
            total = sum(map(len, wanted))
            return count / total if total else None

        return Reads(postings / len(requests.histories), share(held, exact), share(found, truths))

    def _beams(self, beam: int) -> Iterator[Beams]:
        return self.requests.beams(self.structure, beam)
