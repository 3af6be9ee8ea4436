"""The main alternative to Deep Retrieval: a two-tower network as in YouTube DNN (Covington et al. 2016), with HNSW."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retrieval.context import ContextSchema
from trainer.config import TrainConfig
from trainer.data.batches import Batches
from trainer.data.dataset import Dataset
from trainer.data.measures import Answers, Items
from trainer.data.requests import Requests, pad_histories, tuning_requests
from trainer.data.split import Split, click_counts
from trainer.deep_retrieval.device import choose_device
from trainer.deep_retrieval.layers import log_share
from trainer.deep_retrieval.losses import SoftmaxHead
from trainer.deep_retrieval.warm_up import WarmUp
from trainer.progress import Progress

LINKS = 32  # links per node of the HNSW graph


class TwoTower(nn.Module):
    """User tower: two layers on the mean of the history's embeddings, concatenated with the context. Item tower: a
    vector per item.
    """

    def __init__(self, config: TrainConfig, clicks: NDArray[np.int64], schema: ContextSchema) -> None:
        super().__init__()
        items, size = len(clicks), config.embedding
        sparse = config.steps_are_sparse(items)
        self.history_embedding = nn.Embedding(items + 1, size, padding_idx=items, sparse=sparse)
        self.item_embedding = nn.Embedding(items, size, sparse=sparse)
        self.category_embeddings = nn.ModuleList(
            nn.Embedding(len(category.values) + 1, min(16, size)) for category in schema.categories
        )
        inputs = size + sum(min(16, size) for _ in schema.categories) + len(schema.numbers)
        self.dropout = nn.Dropout(config.resolve_dropout(int(clicks.sum()), items))
        self.tower = nn.Sequential(nn.Linear(inputs, 4 * size), nn.ReLU(), nn.Linear(4 * size, size))
        self.register_buffer("item_bias", log_share(clicks))
        self.item_bias: Tensor
        for embedding in (self.history_embedding, self.item_embedding):
            nn.init.normal_(embedding.weight, std=size**-0.5)

    @property
    def item_vectors(self) -> Tensor:
        """The vectors of all items, (V, E)."""
        return self.item_embedding.weight

    def vectors_of(self, items: Tensor) -> Tensor:
        """The vectors of `items`, (..., E)."""
        vectors: Tensor = self.item_embedding(items)
        return vectors

    def encoder(self, history: Tensor, categories: Tensor, numbers: Tensor) -> Tensor:
        """User vectors (B, T + 1, E); [:, t] depends on the first t items. history: (B, T), padded with -1."""
        padding = len(self.item_bias)
        embedded = self.dropout(self.history_embedding(torch.where(history < 0, padding, history)))  # (B, T, E)
        total = torch.cat([torch.zeros_like(embedded[:, :1]), embedded.cumsum(dim=1)], dim=1)
        mean = total / torch.arange(total.shape[1], device=total.device).clamp(min=1).unsqueeze(1)
        context = [embed(categories[:, i]) for i, embed in enumerate(self.category_embeddings)]
        joined = torch.cat([*context, numbers], dim=1).unsqueeze(1).expand(-1, total.shape[1], -1)
        user: Tensor = self.tower(torch.cat([mean, joined], dim=2))
        return user

    def head_logits(self, user: Tensor) -> Tensor:
        """The logit of every item, (N, V)."""
        return user @ self.item_vectors.T + self.item_bias


def train_two_tower(config: TrainConfig, dataset: Dataset, split: Split, progress: Progress) -> TwoTower:
    """Train as our own encoder is trained: the same data, targets, loss and end of the training."""
    torch.manual_seed(config.seed)
    clicks = click_counts(dataset, split)
    device = choose_device(config.device)
    model, head = TwoTower(config, clicks, dataset.context.schema).to(device), SoftmaxHead(config, clicks, device)
    batches = Batches(dataset, split, config.history, config.resolve_batch(int(clicks.sum())), config.resolve_later())
    warm_up = WarmUp(config, model, head, batches, tuning_requests(dataset, split), "two-tower: ")
    for _ in warm_up.epochs([], progress):
        pass
    return model.cpu().eval()


def encode(model: TwoTower, requests: Requests, history: int) -> tuple[NDArray[np.float32], float]:
    """The user vector of each request, (R, E), and the seconds for computing all of them."""
    users = []
    started = time.perf_counter()
    with torch.inference_mode():
        for part in requests.parts():
            padded = torch.from_numpy(pad_histories(requests.histories[part], history))
            vectors = model.encoder(
                padded, torch.from_numpy(requests.categories[part]), torch.from_numpy(requests.numbers[part])
            )
            users.append(vectors[torch.arange(len(vectors)), (padded >= 0).sum(dim=1)].numpy())
    return np.concatenate(users), time.perf_counter() - started


def build_hnsw(vectors: NDArray[np.float32], bias: NDArray[np.float32]) -> tuple[Any, float]:
    """Build an HNSW graph over items. Also returns the seconds. vectors: (V, E), bias: (V,).

    HNSW works badly with inner products. So inner products are converted to distances: an additional coordinate gives
    all item vectors the same length (Bachrach et al. 2014).
    """
    import faiss  # installed only for the benchmark

    started = time.perf_counter()
    points = np.concatenate([vectors, bias[:, None] - bias.mean()], axis=1)
    squares = (points**2).sum(axis=1)
    graph = faiss.IndexHNSWFlat(points.shape[1] + 1, LINKS)
    graph.hnsw.efConstruction = 200
    graph.add(np.concatenate([points, np.sqrt(squares.max() - squares)[:, None]], axis=1))
    return graph, time.perf_counter() - started


def answer_hnsw(graph: Any, users: NDArray[np.float32], requests: Requests, k: int, wider: int) -> Answers:
    """The k items with the largest inner products for each request, one request at a time. users: (R, E).

    wider: nodes kept during a search (efSearch), as a multiple of k. Reads are the number of computed distances.
    """
    import faiss

    library: Any = faiss  # the type stubs of faiss lack the names that its Python wrapper adds
    statistics = library.cvar
    answers: dict[bool, list[Items]] = {True: [], False: []}
    reads, seconds = [], 0.0
    for user, history in zip(users, requests.histories, strict=True):
        point = np.append(user, [1, 0]).astype(np.float32)[None]
        for filtered, lists in answers.items():
            seen = history if filtered else history[:0]
            unseen = library.IDSelectorNot(library.IDSelectorBatch(seen))
            parameters = library.SearchParametersHNSW(efSearch=wider * k, sel=unseen)
            statistics.hnsw_stats.reset()
            started = time.perf_counter()
            _, (items,) = graph.search(point, min(k, requests.items), params=parameters)
            if filtered:
                seconds += time.perf_counter() - started
                reads.append(statistics.hnsw_stats.ndis)
            lists.append(items[items >= 0].astype(np.int64))
    return Answers(answers[True], answers[False], np.array(reads), seconds)
