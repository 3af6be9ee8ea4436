"""From a trained network and assignment to a Version: ONNX with a parity gate, path lists, golden queries."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from index_store.version import Version, npy
from retrieval.golden import record
from retrieval.paths.index import SOFTMAX, Index, Reranker
from retrieval.paths.search import search
from retrieval.query import Limits
from retrieval.searcher import Request, Searcher
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.data.requests import Requests, history_requests, pad_histories, training_requests, tuning_requests
from trainer.data.split import Split, click_counts
from trainer.deep_retrieval.fit import Trained
from trainer.deep_retrieval.layers import PathModel, Retrieval, path_trie
from trainer.errors import ExportRefused
from trainer.progress import Progress
from trainer.publish.frontier import choose_beam
from trainer.publish.health import REACH_USERS, Health, churn, measure_health
from trainer.publish.reranker import fit_reranker

TUNING_REQUESTS = 1000  # training users on whom beam and per_path are chosen
GOLDEN_REQUESTS = 16
TOLERANCE = 1e-3  # between torch and ONNX, in log-probabilities and user vectors
HALF_TOLERANCE = 0.03  # between user vectors of item vectors in float32 and in float16


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
    """Everything the service needs, measured and verified. Raises ExportRefused when a check fails.

    previous: the version whose paths are compared. allow_collapsed: warn where the gate would refuse (health.py).
    files: the names of those that `dataset` was read from, which are recorded.
    """
    requests = training_requests(dataset, split, TUNING_REQUESTS, config.seed)
    model = trained.model.eval()
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ExportRefused(f"the network's {name} has values that are not finite; lower learning_rate")
    path_ids = np.unique(trained.paths)
    progress.say("exporting the network to ONNX and comparing it with torch")
    retrieval = Retrieval(model, path_trie(path_ids, config.depth, model.width)).eval()
    onnx_bytes = to_onnx(retrieval, path_ids, dataset)
    session = open_session(onnx_bytes)
    index = make_index(model, trained.paths)
    check_parity(retrieval, session, index, requests.first(7), config)
    progress.say("choosing the beam and fitting the reranker")
    beam, per_path = choose_beam(index, session, requests, config)
    reranker = SOFTMAX
    if config.rerank == "lr":
        reranker = fit_reranker(index, session, tuning_requests(dataset, split), config.history, beam, per_path)
    users = history_requests(dataset, split, REACH_USERS, config.seed)
    ids = dataset.item_ids
    clicks = click_counts(dataset, split)
    health = measure_health(index, session, users, config, (beam, per_path), trained.paths, model.width, clicks)
    if previous:
        changed = churn(trained.paths, ids, model.width ** (config.depth - 1), previous)
        health = dataclasses.replace(health, churn=changed, previous=previous.manifest.version)
    _gate(health, config, progress, allow_collapsed=allow_collapsed)
    metrics = {"paths": health.to_json(), "epochs": trained.history, "data_sha256": dataset.digest()}
    if files:
        metrics["files"] = dict(files)
    return assemble(config, model.width, onnx_bytes, index, reranker, (beam, per_path), requests, dataset, metrics)


def assemble(
    config: TrainConfig,
    width: int,
    onnx_bytes: bytes,
    index: Index,
    reranker: Reranker,
    reach: tuple[int, int],
    requests: Requests,
    dataset: Dataset,
    metrics: dict[str, Any],
) -> Version:
    """The version of these parts. width: K. reach: beam and items per path of a request that names neither.

    requests: compared with what a caller would send for the same users; the answers to the first of them are recorded,
    and to one without a history. Raises ExportRefused if a caller's request is encoded otherwise than training did.
    """
    beam, per_path = reach
    ids = dataset.item_ids
    parts = {
        "model.onnx": onnx_bytes,
        "path_ids.npy": npy(index.path_ids),
        "path_offsets.npy": npy(index.path_offsets),
        "path_items.npy": npy(index.path_items),
        "item_vectors.npy": npy(index.item_vectors),
        "item_bias.npy": npy(index.item_bias),
        "reranker.json": _json(reranker.to_json()),
        "context.json": _json(dataset.context.schema.to_json()),
        "golden.json": _json({}),
        **({"item_ids.json": _json(ids.tolist())} if ids.dtype == object else {"item_ids.npy": npy(ids)}),
    }
    build = functools.partial(
        Version.build,
        depth=config.depth,
        width=width,
        paths_per_item=config.paths_per_item,
        embedding=config.embedding,
        history=config.history,
        items=len(ids),
        paths=len(index.path_ids),
        postings=len(index.path_items),
        k=config.k,
        beam=beam,
        per_path=per_path,
        max_beam=Limits.BEAM,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        config=config.to_json(),
        metrics=metrics,
    )
    searcher = Searcher(build(parts), open_session(onnx_bytes))
    asked = [
        Request(ids[history[-config.history :]].tolist(), dataset.context.raw(user), config.k, beam, per_path)
        for history, user in zip(requests.histories, requests.users.tolist(), strict=True)
    ]
    _check_encoding(searcher, asked, requests, config.history)
    golden = asked[:GOLDEN_REQUESTS]
    golden[-1:] = [dataclasses.replace(request, history=[]) for request in golden[-1:]]
    return build({**parts, "golden.json": _json(record(searcher, golden))})


def _check_encoding(searcher: Searcher, asked: list[Request], trained: Requests, longest: int) -> None:
    """Raise ExportRefused unless the service's encoding of `asked` is training's of the same users, `trained`."""
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
            f"the index has collapsed: {faults}. Nothing was published; see README, Index health. To publish it all "
            "the same, run again with --resume and --allow-collapsed"
        )
    if faults:
        progress.say(f"warning: published though collapsed: {faults}")


def make_index(model: PathModel, paths: NDArray[np.int64]) -> Index:
    """The path lists of an assignment (V, J), each path's items by descending bias."""
    bias = model.item_bias.detach().numpy()
    return Index(*path_lists(paths, bias), _half(model.item_vectors.detach().numpy()), bias)


def path_lists(
    paths: NDArray[np.int64], bias: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """path_ids (P,), path_offsets (P + 1,) and path_items (V J,) of an assignment (V, J); bias: (V,)."""
    flat = paths.ravel()
    items = np.repeat(np.arange(len(paths), dtype=np.int32), paths.shape[1])
    order = np.lexsort((items, -bias[items], flat))
    path_ids, starts = np.unique(flat[order], return_index=True)
    return path_ids, np.append(starts, len(flat)), items[order]


def _half(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    """Half the memory, and what is rounded is less than what training left to chance. Raises ExportRefused."""
    largest = float(np.abs(vectors).max(initial=0))
    if not largest <= float(np.finfo(np.float16).max):
        raise ExportRefused(f"an item vector has {largest:.3g}, float16 holds 65504 at most; lower learning_rate")
    return vectors.astype(np.float16)


def to_onnx(retrieval: Retrieval, path_ids: NDArray[np.int64], dataset: Dataset) -> bytes:
    """The ONNX file: dynamic batch and history length, beam width an input. Without anything of this machine in it.

    path_ids: whose rows it names; their digest is in it, so that it is never served with others.
    """
    example = (
        torch.zeros(2, 2, retrieval.start.shape[0], dtype=torch.float16),
        torch.tensor([1, 2]),
        torch.zeros(2, dataset.context.categories.shape[1], dtype=torch.int64),
        torch.zeros(2, dataset.context.numbers.shape[1]),
        torch.tensor(2),
    )
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            retrieval,
            example,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["history", "length", "categories", "numbers", "beam"],
            output_names=["user", "paths", "path_log_probs"],
            dynamic_shapes=({0: "batch", 1: "time"}, {0: "batch"}, {0: "batch"}, {0: "batch"}, None),
        )
    assert program is not None, "the exporter returns a program when it is given no file"
    model = program.model_proto
    for part in (model, model.graph):
        del part.metadata_props[:]
    for node in model.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.helper.set_model_props(model, {"path_ids": hashlib.sha256(npy(path_ids)).hexdigest()})
    onnx.checker.check_model(model, full_check=True)
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of itself: deprecations inside it, libraries it could have used."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def open_session(onnx_bytes: bytes) -> onnxruntime.InferenceSession:
    """A session on the CPU, as the service opens one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        file.write_bytes(onnx_bytes)
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def check_parity(
    retrieval: Retrieval, session: onnxruntime.InferenceSession, index: Index, requests: Requests, config: TrainConfig
) -> None:
    """Raise ExportRefused unless ONNX gives what torch gives, at several batch sizes, lengths and beam widths.

    Equal means: the same user vectors, the same log-probability rank by rank, and each path that ONNX names has
    in torch the log-probability that ONNX gives it.
    """
    histories = [*requests.histories, np.empty(0, np.int64)]
    categories = np.concatenate([requests.categories, requests.categories[:1] * 0])
    numbers = np.concatenate([requests.numbers, requests.numbers[:1] * 0])
    for batch in sorted({1, 2, len(histories)}):
        chosen = slice(len(histories) - batch, None)
        padded = pad_histories(histories[chosen], config.history)
        there = padded >= 0
        inputs = [
            torch.from_numpy(index.item_vectors[padded] * there[:, :, None]),
            torch.from_numpy(there.sum(axis=1)),
            torch.from_numpy(categories[chosen]),
            torch.from_numpy(numbers[chosen]),
        ]
        for beam in (1, 10, 50, Limits.BEAM):
            found = search(session, index, histories[chosen], categories[chosen], numbers[chosen], beam, config.history)
            with torch.inference_mode():
                user, _, log_probs = retrieval(*inputs, torch.tensor(beam))
                again = retrieval.model.path_log_probs(user, torch.from_numpy(index.path_ids[found.paths]))
                trained = retrieval.model.encoder(torch.from_numpy(padded), *inputs[2:])
                last = trained[torch.arange(batch), inputs[1]]
            if not np.allclose(last.numpy(), found.user, rtol=HALF_TOLERANCE, atol=HALF_TOLERANCE):
                raise ExportRefused(
                    f"the exported encoder is not the trained one, at batch {batch}; nothing was published"
                )
            alive = np.isfinite(found.log_probs)
            for what, expected, got in (
                ("user vectors", user.numpy(), found.user),
                ("log-probabilities", log_probs.numpy(), found.log_probs),
                ("paths", again.numpy()[alive], found.log_probs[alive]),
                ("dead places", np.where(alive, 0, -1), np.where(found.paths >= 0, 0, -1)),
            ):
                if expected.shape != got.shape or not np.allclose(expected, got, rtol=TOLERANCE, atol=TOLERANCE):
                    raise ExportRefused(
                        f"ONNX and torch differ in their {what} at batch {batch} and beam {beam}; nothing was published"
                    )


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, sort_keys=True).encode()
