"""Make a Version from a trained network and its assignment of items to paths, step by step."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from index_store.path_facts import PathFacts
from index_store.version import Version, npy
from retrieval.attributes import Attributes
from retrieval.golden import record
from retrieval.paths.index import PathIndex
from retrieval.paths.overlay import NO_END, NO_LATE
from retrieval.paths.placing import PlacingFacts
from retrieval.paths.rerank import SOFTMAX, Reranker
from retrieval.paths.structure import PathStructure
from retrieval.paths.trie import path_trie
from retrieval.query import Limits, Request
from retrieval.searcher import Searcher
from retrieval.session import on_its_device, open_session
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.data.requests import Requests, clicked_requests, history_requests, training_requests, tuning_requests
from trainer.data.split import Split, click_counts
from trainer.deep_retrieval.fit import Trained
from trainer.deep_retrieval.layers import PathModel
from trainer.errors import ExportRefused
from trainer.progress import Progress
from trainer.publish.frontier import choose_beam
from trainer.publish.health import REACH_USERS, Health, churn, measure_health
from trainer.publish.index import make_index, neighbours
from trainer.publish.network import Network, to_onnx
from trainer.publish.parity import check_parity
from trainer.publish.placing import CLICKS, GROUPS, fit_features, fit_placing
from trainer.publish.reranker import fit_reranker
from trainer.publish.weights import WEIGHTS, weights_part

BEAM_REQUESTS = 1000  # training users on whom beam and per_path are chosen
RERANKED_USERS = 10_000  # most tuning users on whom the reranker is fitted
GOLDEN_REQUESTS = 16


def make_version(
    config: TrainConfig,
    dataset: Dataset,
    split: Split,
    trained: Trained,
    progress: Progress,
    previous: Version | None = None,
    *,
    allow_collapsed: bool = False,
    files: Mapping[str, str] | None = None,
) -> Version:
    """Make a version with everything that the service needs, and check it. Raises ExportRefused if a check fails.

    previous: the version to compare the new paths with. allow_collapsed: print a warning instead of raising
    ExportRefused if the index has collapsed (health.py). files: the names of the files that `dataset` was read from, to
    record them in the version.
    """
    requests = training_requests(dataset, split, BEAM_REQUESTS, config.seed)
    model = trained.model.eval()
    _require_finite(model)

    progress.say("exporting the network to ONNX and comparing it with torch")
    nearest = neighbours(dataset, split, config.neighbours if config.rerank == "lr" else 0)
    network, index = Network(model).eval(), make_index(model, trained.paths, nearest)
    onnx = to_onnx(network, dataset.context.schema)
    session = open_session(onnx)
    trie = on_its_device(session, path_trie(index.path_ids, config.depth, model.width))
    structure = PathStructure(session, index, trie, SOFTMAX, config.history, Limits.BEAM)
    check_parity(network, structure, requests.first(7))

    progress.say("choosing the beam and fitting the reranker")
    beam, per_path = choose_beam(structure, requests, config)
    if config.rerank == "lr":
        kept_back = tuning_requests(dataset, split).spread(RERANKED_USERS)
        structure = dataclasses.replace(structure, reranker=fit_reranker(structure, kept_back, beam, per_path))

    users, clicks = history_requests(dataset, split, REACH_USERS, config.seed), click_counts(dataset, split)
    health = measure_health(structure, users, config, (beam, per_path), trained.paths, model.width, clicks)
    if previous:
        changed = churn(trained.paths, dataset.item_ids, model.width ** (config.depth - 1), previous)
        health = dataclasses.replace(health, churn=changed, previous=previous.manifest.version)
    _gate(health, config, progress, allow_collapsed=allow_collapsed)

    metrics: dict[str, Any] = {"paths": health.to_json(), "epochs": trained.history, "data_sha256": dataset.digest()}
    metrics["clicks"] = int(clicks.sum())
    if files:
        metrics["files"] = dict(files)
    facts = path_facts(config, model.width, index, beam, per_path)
    sampled = clicked_requests(dataset, split, GROUPS, CLICKS, config.seed)
    features = fit_features(index, dataset.attributes, clicks, config.seed)
    placing = fit_placing(structure, dataset.context.schema, sampled, clicks, features)
    parts = {"model.onnx": onnx, WEIGHTS: weights_part(model)}
    return assemble(config, facts, parts, index, structure.reranker, placing, requests, dataset, metrics)


def path_facts(config: TrainConfig, width: int, index: PathIndex, beam: int, per_path: int) -> PathFacts:
    """The facts about the paths in the manifest. width: K. beam, per_path: the defaults of a request."""
    return PathFacts(
        depth=config.depth,
        width=width,
        paths_per_item=config.paths_per_item,
        paths=len(index.path_ids),
        postings=len(index.path_items),
        beam=beam,
        per_path=per_path,
        max_beam=Limits.BEAM,
    )


def assemble(
    config: TrainConfig,
    facts: PathFacts,
    network: Mapping[str, bytes],
    index: PathIndex,
    reranker: Reranker,
    placing: PlacingFacts,
    requests: Requests,
    dataset: Dataset,
    metrics: dict[str, Any],
) -> Version:
    """Make a version of these parts.

    requests: of training users, as item indices. Each is also written as a caller would send it, and ExportRefused is
    raised if the service encodes that differently from training. The first requests become golden queries, stored with
    their answers; the last golden query has an empty history. network: the parts model.onnx and weights.safetensors.
    """
    ids = dataset.item_ids
    parts = {
        **network,
        "path_ids.npy": npy(index.path_ids),
        "path_offsets.npy": npy(index.path_offsets),
        "path_items.npy": npy(index.path_items),
        "item_vectors.npy": npy(index.item_vectors),
        "item_bias.npy": npy(index.item_bias),
        "neighbours.npy": npy(index.neighbours.items),
        "similarities.npy": npy(index.neighbours.similarities),
        "item_since.npy": npy(np.zeros(len(ids), np.int64)),
        "item_ends.npy": npy(np.full(len(ids), NO_END, np.uint32)),
        "late_items.npy": npy(NO_LATE.items),
        "late_neighbours.npy": npy(NO_LATE.neighbours),
        "late_similarities.npy": npy(NO_LATE.similarities),
        "changes.json": _json([]),
        "feature_vectors.npy": npy(placing.features),
        **(dataset.attributes.table if dataset.attributes else Attributes.none(len(ids))).parts(),
        "reranker.json": _json(reranker.to_json()),
        "placing.json": _json(placing.to_json()),
        "context.json": _json(dataset.context.schema.to_json()),
        "golden.json": _json({}),
        **({"item_ids.json": _json(ids.tolist())} if ids.dtype == object else {"item_ids.npy": npy(ids)}),
    }
    build = functools.partial(
        Version.build,
        kind="paths",
        items=len(ids),
        embedding=config.embedding,
        history=config.history,
        k=config.k,
        structure=dataclasses.asdict(facts),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        config=config.to_json(),
        metrics=metrics,
    )
    searcher = Searcher.open(build(parts))
    asked = [
        Request(
            ids[history[-config.history :]].tolist(), dataset.context.raw(user), config.k, facts.beam, facts.per_path
        )
        for history, user in zip(requests.histories, requests.users.tolist(), strict=True)
    ]
    _check_encoding(searcher, asked, requests, config.history)
    golden = asked[:GOLDEN_REQUESTS]
    golden[-1:] = [dataclasses.replace(request, history=[]) for request in golden[-1:]]
    return build({**parts, "golden.json": _json(record(searcher, golden))})


def _require_finite(model: PathModel) -> None:
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ExportRefused(f"the network's {name} has values that are not finite; lower learning_rate")


def _check_encoding(searcher: Searcher, asked: list[Request], trained: Requests, longest: int) -> None:
    """Raise ExportRefused unless the service encodes the requests `asked` as training encoded the users, `trained`."""
    for place, request in enumerate(asked):
        query, unknown = searcher.prepare(request)
        for part, served, learned in (
            ("history", query.history, trained.histories[place][-longest:]),
            ("categories", query.categories, trained.categories[place]),
            ("numbers", query.numbers, trained.numbers[place]),
        ):
            if len(served) != len(learned) or not np.allclose(served, learned, rtol=1e-6, atol=1e-6) or any(unknown):
                raise ExportRefused(
                    f"the service would encode the {part} of user index {trained.users[place]} as {list(served)}, "
                    f"training as {list(learned)}; {sum(unknown)} values are unknown. Nothing was published"
                )


def _gate(health: Health, config: TrainConfig, progress: Progress, *, allow_collapsed: bool) -> None:
    progress.say(health.describe())
    faults = "; ".join(health.faults(config))
    if faults and not allow_collapsed:
        raise ExportRefused(
            f"the index has collapsed: {faults}. Nothing was published; see docs/training.md, Index health. To "
            "publish it all the same, run again with --resume and --allow-collapsed"
        )
    if faults:
        progress.say(f"warning: published though collapsed: {faults}")


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, sort_keys=True).encode()
