"""Catalogues of any size, made in seconds: an untrained network over items that lie in clusters.

The cost of a request depends on the network's shape, the length of the path lists and where in memory the items lie,
not on the weights; the answers mean nothing. All path lists have about the same length, as those of a trained tree do,
whose leaves have 1 to 4 items on published data sets. A path's items are random, so nearly all items that a request
reads are different.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from index_store.version import Version
from retrieval.context import ContextSchema
from retrieval.paths.index import Neighbours, PathIndex
from retrieval.paths.placing import PlacingFacts
from retrieval.paths.rerank import Reranker
from trainer.config import TrainConfig
from trainer.data.context import UserContext
from trainer.data.dataset import Dataset
from trainer.data.requests import Requests
from trainer.deep_retrieval.layers import PathModel
from trainer.publish.index import path_lists
from trainer.publish.network import Network, to_onnx
from trainer.publish.version import assemble, path_facts
from trainer.publish.weights import WEIGHTS

#: The shape of the paper's Amazon Books (Sec. 4.2), and its k.
CONFIG = TrainConfig(depth=3, width=100, paths_per_item=3, beam=50, per_path=10, k=200)
CLUSTER = 500  # items
BLOCK = 1_000_000  # vectors drawn at once


@dataclass(frozen=True)
class Catalogue:
    """A version, and requests to it with full histories."""

    version: Version
    requests: Requests


def make_catalogue(items: int, paths: int, users: int, config: TrainConfig = CONFIG) -> Catalogue:
    """A catalogue of V items on `paths` of the K^D paths, each item on J of them; and `users` requests."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    width, count = config.resolve_width(items), config.paths_per_item
    used = np.sort(rng.choice(width**config.depth, paths, replace=False))
    slots = used[rng.permutation(items * count) % paths].reshape(items, count)
    bias = np.log(rng.pareto(1.2, items) + 1e-3).astype(np.float32)
    first = CLUSTER * (np.arange(items)[:, None] // CLUSTER)
    nearest = first + rng.integers(CLUSTER, size=(2, items, config.neighbours))
    similarities = rng.integers(65536, size=nearest.shape).astype(np.uint16)
    neighbours = Neighbours(np.minimum(nearest, items - 1).astype(np.int32), similarities)
    index = PathIndex(*path_lists(slots, bias), _clustered(items, config.embedding, rng), bias, neighbours)
    model = PathModel(config, width, np.ones(1, np.int64), ContextSchema()).eval()
    dataset = make_dataset(items, users, config.history, rng)
    onnx = to_onnx(Network(model).eval(), ContextSchema())
    requests = Requests(
        items,
        [dataset.sequence(user).astype(np.int64) for user in range(users)],
        [np.empty(0, np.int64)] * users,
        dataset.context.categories,
        dataset.context.numbers,
        np.arange(users),
    )
    reranker = Reranker("lr", np.array([1, *[0.1] * 7], np.float32), 0.0)
    facts = path_facts(config, width, index, int(config.beam), int(config.per_path))
    size = config.embedding
    placing = PlacingFacts(
        np.zeros(size, np.float32),
        np.eye(size, dtype=np.float32),
        np.zeros(size, np.float32),
        1,
        0,
        np.zeros((1, size), np.float16),
    )
    network = {"model.onnx": onnx, WEIGHTS: b""}
    version = assemble(config, facts, network, index, reranker, placing, requests.first(4), dataset, {})
    return Catalogue(version, requests)


def make_dataset(items: int, users: int, history: int, rng: np.random.Generator) -> Dataset:
    """Users who each click `history` times in one cluster of items."""
    first = CLUSTER * rng.integers(max(1, items // CLUSTER), size=(users, 1))
    clicks = first + rng.integers(min(CLUSTER, items), size=(users, history))
    offsets = np.arange(users + 1) * history
    ids = np.arange(items)
    return Dataset(
        ids,
        np.arange(users),
        clicks.ravel().astype(np.int32),
        offsets,
        UserContext.none(users),
    )


def _clustered(items: int, size: int, rng: np.random.Generator) -> NDArray[np.float16]:
    """Vectors (V, E), each CLUSTER neighbouring items around one centre: the data that HNSW and IVF are made for."""
    centres = rng.normal(size=(-(-items // CLUSTER), size)).astype(np.float32)
    vectors = np.empty((items, size), np.float16)
    for start in range(0, items, BLOCK):
        block = np.arange(start, min(start + BLOCK, items))
        vectors[block] = centres[block // CLUSTER] + 0.5 * rng.standard_normal((len(block), size), np.float32)
    return vectors
