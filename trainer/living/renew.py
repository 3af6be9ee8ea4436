"""Make the version that follows another one when its network has learned from sessions.

Paths, attributes and beam stay as they are. Shapes: V items, J paths of an item, M neighbours of an item.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from index_store.manifest import Manifest
from index_store.path_facts import PathFacts
from index_store.version import Version, npy
from retrieval.attributes import Attributes
from retrieval.golden import record
from retrieval.paths.index import Neighbours, PathIndex
from retrieval.paths.placing import PlacingFacts
from retrieval.paths.rerank import Reranker
from retrieval.query import Request
from retrieval.searcher import Searcher
from trainer.config import TrainConfig
from trainer.data.attributes import ItemAttributes
from trainer.data.neighbours import following_items, nearest_items
from trainer.data.requests import Requests, clicked_requests, tuning_requests
from trainer.data.split import clicked_items
from trainer.errors import ExportRefused, TrainerError
from trainer.living.learn import Learning
from trainer.living.sessions import Clicks, Session, as_training_data
from trainer.progress import Progress
from trainer.publish.network import Network, to_onnx
from trainer.publish.parity import check_parity
from trainer.publish.placing import CLICKS, GROUPS, fit_features, fit_placing
from trainer.publish.reranker import fit_reranker
from trainer.publish.weights import WEIGHTS, load_model, weights_part

NEVER = -1e4  # the bias of an item that must not be found, while the network learns
FEW = 200  # sessions; with fewer, what the version knows about placing new items is not fitted again
REFITTED, MOST_REFITTED = 1000, 3000  # users with new clicks, on whom the reranker is fitted again


def renewed(
    version: Version, config: TrainConfig, sessions: Sequence[Session], facts: Mapping[str, Any], progress: Progress
) -> Version:
    """The version, with a network that has learned from `sessions`. facts: to record in its metrics.

    Raises TrainerError for a version that cannot learn, ExportRefused if the network fails a check.
    """
    searcher = Searcher.open(version)
    index, structure = searcher.structure.index, PathFacts.of(version.manifest.structure)
    paths, placed = paths_of_items(index, structure.paths_per_item)
    taught = placed & (index.ends > 0)
    data = as_training_data(sessions, searcher.vocabulary, searcher.schema, taught)
    total = clicks_of(version.manifest)
    learned = int(version.manifest.metrics.get("learned", 0)) + int(data.fresh.sum())
    share = popularity(np.exp(index.item_bias.astype(float)), total, data)
    model = load_model(version, config, total)
    bias = np.log(share).astype(np.float32)
    seen = np.bincount(data.dataset.items, minlength=len(bias)) > 0
    unclicked = ~seen & ~was_clicked(index)
    reranker = refitted(searcher, data, config)
    learning = Learning(model, np.where(taught, share * total, 0), data, config, learned, progress)
    # Of an item that nobody has clicked, the network would learn that all users dislike it. So it keeps its vector.
    known = torch.from_numpy(index.item_vectors[unclicked].astype(np.float32))
    model.item_bias.copy_(torch.from_numpy(np.where(taught & ~unclicked, bias, NEVER)))
    learning.network()
    with torch.no_grad():
        model.item_vectors[torch.from_numpy(unclicked)] = known
    model.item_bias.copy_(torch.from_numpy(np.where(taught, bias, NEVER)))
    learning.paths(paths, index.path_ids)
    model.item_bias.copy_(torch.from_numpy(bias))

    vectors = model.item_vectors.detach().numpy().astype(np.float16)
    finite = all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    if not finite or not np.isfinite(vectors).all():
        raise ExportRefused("the network has values that are not finite after learning from events")
    lists = path_lists(index, bias)
    nearest = joined_neighbours(index, data, share * total)
    network = Network(model).eval()
    onnx = to_onnx(network, searcher.schema)
    parts: dict[str, Any] = {
        "model.onnx": onnx,
        WEIGHTS: weights_part(model),
        "path_offsets.npy": npy(lists[0]),
        "path_items.npy": npy(lists[1]),
        "item_vectors.npy": npy(vectors),
        "item_bias.npy": npy(bias),
        "neighbours.npy": npy(nearest.items),
        "similarities.npy": npy(nearest.similarities),
        "reranker.json": _json(reranker.to_json()),
    }
    made = Searcher.open(version.with_parts(parts))
    golden = version.document("golden.json")
    requests = [Request(**request) for request in golden["requests"]]
    queries = [made.prepare(request)[0] for request in requests]
    check_parity(network, made.structure, _as_requests(queries, index.items))
    if len(data.dataset.user_ids) >= FEW:
        trained = np.where(index.ends > 0, np.rint(share * total), 0).astype(np.int64)
        trained[index.late.items] *= seen[index.late.items]
        parts |= _placing(made, data, trained, learned)
    answers = record(Searcher.open(version.with_parts(parts)), requests, int(golden["time"]))
    return version.with_parts(
        {**parts, "golden.json": _json(answers)},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        metrics={**version.manifest.metrics, **facts, "learned": learned},
    )


def clicks_of(manifest: Manifest) -> int:
    """The clicks of a version's training. Raises TrainerError for a version that does not tell."""
    try:
        return int(manifest.metrics["clicks"])
    except (KeyError, TypeError, ValueError):
        raise TrainerError(f"{manifest.version} does not say how many clicks its training had; train again") from None


def refitted(searcher: Searcher, data: Clicks, config: TrainConfig) -> Reranker:
    """The version's reranker, fitted to the new clicks, which it has not learned; as it is, if these are few."""
    known = searcher.structure.reranker
    lengths, start = np.diff(data.dataset.offsets), data.dataset.offsets[:-1]
    before = lengths - np.add.reduceat(data.fresh.astype(np.int64), start)
    users = np.flatnonzero((before > 0) & (before < lengths))
    if config.rerank != "lr" or len(users) < REFITTED:
        return known
    unseen = dataclasses.replace(data.split, tuning_users=users, train_length=before)
    requests = tuning_requests(data.dataset, unseen).spread(MOST_REFITTED)
    facts = PathFacts.of(searcher.manifest.structure)
    fitted = fit_reranker(searcher.structure, requests, facts.beam, facts.per_path)
    return known if fitted.kind == "softmax" else fitted


def popularity(share: NDArray[np.float64], total: int, data: Clicks) -> NDArray[np.float64]:
    """The share of the clicks of each item, (V,): of the last `total` clicks, which end with the new ones.

    share: (V,), before the new clicks.
    """
    new = np.bincount(data.dataset.items[data.fresh], minlength=len(share))
    weight = new.sum() / (total + new.sum())
    mixed = (1 - weight) * share + weight * new / max(new.sum(), 1)
    floored: NDArray[np.float64] = np.maximum(mixed, 0.5 / total)
    return floored


def was_clicked(index: PathIndex) -> NDArray[np.bool_]:
    """Which items were ever clicked beside another one, (V,): those with neighbours. All, if there are no lists."""
    items = index.neighbours.items
    if not items.shape[2]:
        return np.ones(items.shape[1], bool)
    clicked: NDArray[np.bool_] = (items[:, :, 0] >= 0).max(axis=0)
    return clicked


def paths_of_items(index: PathIndex, count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The paths of each item, (V, J), and which items have any. An item with fewer paths has one of them repeatedly."""
    rows = np.repeat(np.arange(len(index.path_ids)), index.sizes)
    order = np.argsort(index.path_items, kind="stable")
    items, rows = index.path_items[order], rows[order]
    place = np.arange(len(items)) - np.searchsorted(items, items)
    paths = np.full((len(index.item_bias), count), -1)
    paths[items, place] = index.path_ids[rows]
    paths = np.where(paths < 0, paths[:, :1], paths)
    return np.maximum(paths, 0), paths[:, 0] >= 0


def path_lists(index: PathIndex, bias: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The lists of the paths, late items first, then by descending bias: offsets (P + 1,) and items."""
    rows = np.repeat(np.arange(len(index.path_ids)), index.sizes)
    late = np.zeros(len(bias), bool)
    late[index.late.items] = True
    items = index.path_items
    order = np.lexsort((items, -bias[items], ~late[items], rows))
    return index.path_offsets, items[order]


def joined_neighbours(index: PathIndex, data: Clicks, clicks: NDArray[np.float64]) -> Neighbours:
    """The neighbours that are known, joined with those in the sessions with new clicks; late items are in no list.

    clicks: (V,), how many clicks what is known of each item rests on.
    """
    known, count = index.neighbours, index.neighbours.items.shape[2]
    if not count:
        return known
    late = np.zeros(len(clicks), bool)
    late[index.late.items] = True
    users = np.unique(np.searchsorted(data.dataset.offsets, np.flatnonzero(data.fresh), side="right") - 1)
    split = dataclasses.replace(data.split, train_users=users)
    clicked = clicked_items(data.dataset, users, split.train_length)
    seen = clicked.sum(axis=0)
    weight = np.divide(seen, seen + np.where(late, 0, clicks), out=np.zeros(len(seen)), where=seen > 0)
    lists = nearest_items(clicked, count), following_items(data.dataset, split, count)
    items, similarities = [], []
    for kind, (new, values) in enumerate(lists):
        both = np.concatenate([known.items[kind], np.where((new >= 0) & late[new], -1, new)], axis=1)
        amounts = np.concatenate(
            [known.similarities[kind] / 65535 * (1 - weight[:, None]), np.minimum(values, 1) * weight[:, None]], axis=1
        )
        top, best = _largest_sums(both, amounts, count)
        items.append(top)
        similarities.append(np.rint(65535 * best).astype(np.uint16))
    return Neighbours(np.stack(items), np.stack(similarities))


def _largest_sums(
    items: NDArray[np.int32], amounts: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """In each row, the `count` items with the largest sums of amounts, -1 after the last, and these sums."""
    order = np.argsort(items, axis=1, kind="stable")
    items, amounts = np.take_along_axis(items, order, 1), np.take_along_axis(amounts, order, 1)
    again = np.zeros(items.shape, bool)  # an item occurs at most twice in a row
    again[:, 1:] = items[:, 1:] == items[:, :-1]
    amounts[:, :-1] += np.where(again[:, 1:], amounts[:, 1:], 0)
    amounts[again | (items < 0)] = 0
    best = np.argsort(-amounts, axis=1, kind="stable")[:, :count]
    top, sums = np.take_along_axis(items, best, 1), np.take_along_axis(amounts, best, 1)
    return np.where(sums > 0, top, -1), sums


def _placing(made: Searcher, data: Clicks, clicks: NDArray[np.int64], seed: int) -> dict[str, bytes]:
    """What a version needs to place new items, fitted to the new network.

    clicks: (V,), of each item; 0 for one that is deleted, or was put and is not clicked.
    """
    table, index = Attributes.of(made.version), made.structure.index
    features = fit_features(index, ItemAttributes(table) if table.schema.size else None, clicks, seed)
    requests = clicked_requests(data.dataset, data.split, GROUPS, CLICKS, seed)
    before = PlacingFacts.from_json(made.version.document("placing.json"), features)
    placing = dataclasses.replace(
        fit_placing(made.structure, made.schema, requests, clicks, features), bias=before.bias
    )
    return {"placing.json": _json(placing.to_json()), "feature_vectors.npy": npy(features)}


def _as_requests(queries: list[Any], items: int) -> Requests:
    nothing = [np.empty(0, np.int64) for _ in queries]
    return Requests(
        items,
        [query.history for query in queries],
        nothing,
        np.array([query.categories for query in queries], np.int64).reshape(len(queries), -1),
        np.array([query.numbers for query in queries], np.float32).reshape(len(queries), -1),
        np.arange(len(queries)),
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, sort_keys=True).encode()
