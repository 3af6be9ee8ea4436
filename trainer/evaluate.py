"""P/R/F@k of a published version against brute force and classic baselines (Sec. 4.1).

Measured is what the service answers: the version's ONNX file, its path lists, its reranker. Per user, then the
unweighted mean: F is the mean of the users' F. With history filtered, items of the history are neither answered nor
asked for; users who then have nothing left to find are not counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from index_store.retrieval import Answer, Query, answer, fetch
from index_store.version import Version
from trainer.assignment import Occupancy
from trainer.data import Dataset, Split
from trainer.errors import DataError
from trainer.export import open_session
from trainer.progress import Progress
from trainer.requests import Requests, held_out_requests
from trainer.train import click_counts

Scores = Callable[[slice], NDArray[np.floating[Any]]]
NEIGHBOURS = 100  # of an item, in Item-CF


def evaluate(version: Version, dataset: Dataset, split: Split, k: int, progress: Progress) -> dict[str, Any]:
    """The document of `dr-trainer evaluate --json`; fractions, not percent."""
    requests = held_out_requests(dataset, split)
    if not requests.histories:
        raise DataError("test_users: nobody was held out, so there is nobody to measure; train with more")
    model = _measure_model(version, requests, k, progress)
    clicks = click_counts(dataset, split).astype(np.float32)
    similar = item_similarity(dataset, split)
    baselines: dict[str, Scores] = {
        "item_cf": lambda part: (_history_matrix(requests, part, len(clicks)) @ similar).toarray(),
        "popularity": lambda part: np.tile(clicks, (len(requests.histories[part]), 1)),
    }
    filtered, unfiltered = model["filtered"], model["unfiltered"]
    for name, scores in baselines.items():
        with progress.task(f"measuring {name}", len(requests.histories)) as advance:
            top = []
            for part in requests.parts():
                top += _both_tops(scores(part), requests, part, k)
                advance(part.stop - part.start)
        filtered[name] = precision_recall_f([t[0] for t in top], new_items(requests), k)
        unfiltered[name] = precision_recall_f([t[1] for t in top], requests.truths, k)
    sizes = np.diff(version.index.path_offsets)
    return {
        "k": k,
        "users": sum(len(truth) > 0 for truth in new_items(requests)),
        "version": version.manifest.version,
        **filtered,
        "structural_recall": model["structural_recall"],
        "paths": Occupancy.of_sizes(sizes).to_json(),
        "unfiltered": unfiltered,
    }


def require_same_data(version: Version, dataset: Dataset, progress: Progress) -> None:
    """Raise DataError unless the data have the version's items; warn if it was trained on other interactions."""
    ids = np.asarray(version.item_ids, dtype=None if not isinstance(version.item_ids, list) else object)
    if ids.dtype != dataset.item_ids.dtype or not np.array_equal(ids, dataset.item_ids):
        raise DataError(
            f"{version.manifest.version} knows {version.manifest.items} items, the files have "
            f"{len(dataset.item_ids)} and not the same; evaluate with the files it was trained on (--items too)"
        )
    if version.manifest.metrics.get("data_sha256") != dataset.digest():
        progress.say("warning: trained on other interactions; users measured here may have been trained on")


def precision_recall_f(
    answers: Iterable[NDArray[np.int64]], truths: Iterable[NDArray[np.int64]], k: int
) -> dict[str, float]:
    """Means over the users who have a truth. An answer counts an item once; precision is out of k."""
    rows = []
    for found, truth in zip(answers, truths, strict=True):
        if not len(truth):
            continue
        wanted = np.unique(truth)
        hits = len(np.intersect1d(found, wanted))
        precision, recall = hits / k, hits / len(wanted)
        rows.append((precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0))
    means = np.mean(rows, axis=0) if rows else np.zeros(3)
    return dict(zip(("precision", "recall", "f_measure"), map(float, means), strict=True))


def new_items(requests: Requests) -> list[NDArray[np.int64]]:
    """The truths without what the history has."""
    return [np.setdiff1d(truth, history) for truth, history in zip(requests.truths, requests.histories, strict=True)]


def item_similarity(dataset: Dataset, split: Split) -> scipy.sparse.csr_array:
    """Item-CF: cosine between items over training users, each item's 100 nearest kept. (V, V), sparse."""
    users = np.repeat(np.arange(len(dataset.user_ids)), np.diff(dataset.offsets))
    place = np.arange(len(dataset.items)) - dataset.offsets[users]
    trained = np.isin(users, split.train_users) & (place < split.train_length[users])
    shape = len(dataset.user_ids), len(dataset.item_ids)
    clicked = scipy.sparse.csr_array(
        (np.ones(trained.sum(), np.float32), (users[trained], dataset.items[trained])), shape=shape
    )
    clicked.data[:] = 1  # a repeated click counts once
    norm = np.sqrt(clicked.sum(axis=0))
    unit = scipy.sparse.csr_array(clicked @ scipy.sparse.diags_array(1 / np.maximum(norm, 1)))
    blocks = []
    for start in range(0, shape[1], 1000):
        block = scipy.sparse.coo_array(unit[:, start : start + 1000].T @ unit)
        row, column, cosine = block.row, block.col, block.data
        other = row + start != column
        row, column, cosine = row[other], column[other], cosine[other]
        order = np.lexsort((column, -cosine, row))
        place = np.arange(len(order)) - np.searchsorted(row[order], row[order])  # within its row
        nearest = order[place < NEIGHBOURS]
        found = (cosine[nearest], (row[nearest], column[nearest]))
        blocks.append(scipy.sparse.csr_array(found, shape=block.shape))
    return scipy.sparse.csr_array(scipy.sparse.vstack(blocks).T)


def _measure_model(version: Version, requests: Requests, k: int, progress: Progress) -> dict[str, Any]:
    manifest, index = version.manifest, version.index
    beam, per_path = manifest.reach(k)
    session = open_session(bytes(version.parts["model.onnx"]))
    answers: list[Answer] = []
    free_answers: list[Answer] = []
    tops: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    held = wanted = 0
    with progress.task("measuring deep retrieval", len(requests.histories)) as advance:
        for part, beams in zip(requests.parts(), requests.beams(session, manifest.history, beam), strict=True):
            histories = requests.histories[part]
            queries = [
                Query(history, categories, numbers, k, beam, per_path, history)
                for history, categories, numbers in zip(
                    histories, requests.categories[part].tolist(), requests.numbers[part].tolist(), strict=True
                )
            ]
            free = [dataclasses.replace(query, excluded=np.empty(0, np.int64)) for query in queries]
            for gathered, asked in ((answers, queries), (free_answers, free)):
                gathered.extend(answer(session, index, version.reranker, asked, manifest.history, manifest.max_beam))
            batch_tops = _both_tops(beams.user @ index.item_vectors.T + index.item_bias, requests, part, k)
            tops += batch_tops
            candidates, _ = fetch(index, beams, per_path)
            keys = np.concatenate([row * manifest.items + top[0] for row, top in enumerate(batch_tops)])
            held += int(np.isin(keys, candidates.request * manifest.items + candidates.item).sum())
            wanted += len(keys)
            advance(len(histories))
    result: dict[str, Any] = {"structural_recall": held / max(wanted, 1)}
    for name, truths, mine, exact_tops in (
        ("filtered", new_items(requests), answers, [t[0] for t in tops]),
        ("unfiltered", requests.truths, free_answers, [t[1] for t in tops]),
    ):
        measured = precision_recall_f([found.items for found in mine], truths, k)
        brute = precision_recall_f(exact_tops, truths, k)
        ratios = {key: measured[key] / brute[key] if brute[key] else 1.0 for key in measured}
        reads = np.array([found.read for found in mine])
        cost = {"candidates_mean": float(reads.mean()), "candidates_p99": float(np.percentile(reads, 99))}
        result[name] = {"deep_retrieval": measured | cost, "brute_force": brute, "ratio_to_brute_force": ratios}
    return result


def _both_tops(
    scores: NDArray[Any], requests: Requests, part: slice, k: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Each user's k best of all items, without and with those of the history. Ties go by item index."""
    tops = []
    for row, history in zip(np.asarray(scores, np.float32), requests.histories[part], strict=True):
        kept = row.copy()
        kept[history] = -np.inf
        tops.append((_top(kept, k), _top(row, k)))
    return tops


def _top(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    k = min(k, len(scores))
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    found = np.flatnonzero(scores >= threshold)
    found = found[np.argsort(-scores[found], kind="stable")][:k]
    return found[np.isfinite(scores[found])]


def _history_matrix(requests: Requests, part: slice, items: int) -> scipy.sparse.csr_array:
    histories = [np.unique(history) for history in requests.histories[part]]
    offsets = np.cumsum([0, *map(len, histories)])
    columns = np.concatenate([*histories, np.empty(0, np.int64)])
    return scipy.sparse.csr_array((np.ones(len(columns), np.float32), columns, offsets), shape=(len(histories), items))
