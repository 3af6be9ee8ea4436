"""What Deep Retrieval is to replace: a two-tower network after YouTube DNN (Covington et al. 2016), with HNSW."""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index_store.retrieval import pad_histories
from trainer.batches import Batches
from trainer.config import TrainConfig
from trainer.context import ContextSchema
from trainer.data import Dataset, Split
from trainer.losses import SoftmaxHead
from trainer.measures import Answers, Items
from trainer.progress import Progress
from trainer.requests import Requests
from trainer.train import click_counts, gradient_epoch

LINKS = 32  # of a node of the HNSW graph
WIDER = 2  # nodes kept while searching, for each that is wanted


class TwoTower(nn.Module):
    """User tower: the mean of the history's embeddings and the context, through two layers. Item tower: a vector."""

    def __init__(self, config: TrainConfig, clicks: NDArray[np.int64], schema: ContextSchema) -> None:
        super().__init__()
        items, size = len(clicks), config.embedding
        self.history_embedding = nn.Embedding(items + 1, size, padding_idx=items)
        self.item_embedding = nn.Embedding(items, size)
        self.category_embeddings = nn.ModuleList(
            nn.Embedding(len(values) + 1, min(16, size)) for values in schema.categorical.values()
        )
        inputs = size + sum(min(16, size) for _ in schema.categorical) + len(schema.numeric)
        self.tower = nn.Sequential(nn.Linear(inputs, 4 * size), nn.ReLU(), nn.Linear(4 * size, size))
        self.register_buffer("item_bias", torch.from_numpy(np.log((clicks + 0.5) / (clicks + 0.5).sum())).float())
        self.item_bias: Tensor
        for embedding in (self.history_embedding, self.item_embedding):
            nn.init.normal_(embedding.weight, std=size**-0.5)

    @property
    def item_vectors(self) -> Tensor:
        return self.item_embedding.weight

    def encoder(self, history: Tensor, categories: Tensor, numbers: Tensor) -> Tensor:
        """User vectors (B, T + 1, E); [:, t] has seen the first t items. history: (B, T), -1 after its end."""
        padding = len(self.item_bias)
        embedded = self.history_embedding(torch.where(history < 0, padding, history))  # (B, T, E)
        total = torch.cat([torch.zeros_like(embedded[:, :1]), embedded.cumsum(dim=1)], dim=1)
        mean = total / torch.arange(total.shape[1]).clamp(min=1).unsqueeze(1)
        context = [embed(categories[:, i]) for i, embed in enumerate(self.category_embeddings)]
        joined = torch.cat([*context, numbers], dim=1).unsqueeze(1).expand(-1, total.shape[1], -1)
        user: Tensor = self.tower(torch.cat([mean, joined], dim=2))
        return user

    def head_logits(self, user: Tensor) -> Tensor:
        """Of every item, (N, V)."""
        return user @ self.item_vectors.T + self.item_bias


def train_two_tower(config: TrainConfig, dataset: Dataset, split: Split, progress: Progress) -> TwoTower:
    """Trained as our own encoder is: as many epochs, the same targets and loss, on what training may see."""
    torch.manual_seed(config.seed)
    clicks = click_counts(dataset, split)
    model, head = TwoTower(config, clicks, dataset.schema), SoftmaxHead(config, clicks)
    config = config.replace(reassignments=0)
    batches = Batches(dataset, split, config.history, config.resolve_batch(int(clicks.sum())), config.later)
    loss_of = functools.partial(head.loss_of, model)
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    for epoch in range(1, config.warmup + 1):
        generator = np.random.default_rng([config.seed, 6, epoch])
        with progress.task(f"two-tower: epoch {epoch}/{config.warmup}", batches.predictions) as advance:
            gradient_epoch(config, loss_of, optimizer, batches, epoch, generator, advance)
    return model.eval()


def encode(model: TwoTower, requests: Requests, history: int) -> NDArray[np.float32]:
    """The user vector of each request, (R, E)."""
    users = []
    with torch.inference_mode():
        for part in requests.parts():
            padded = torch.from_numpy(pad_histories(requests.histories[part], history))
            vectors = model.encoder(
                padded, torch.from_numpy(requests.categories[part]), torch.from_numpy(requests.numbers[part])
            )
            users.append(vectors[torch.arange(len(vectors)), (padded >= 0).sum(dim=1)].numpy())
    return np.concatenate(users)


def answer_hnsw(
    vectors: NDArray[np.float32], bias: NDArray[np.float32], users: NDArray[np.float32], requests: Requests, k: int
) -> tuple[Answers, float]:
    """The k nearest by inner product for each request, and how many seconds the graph took to build.

    vectors: (V, E), bias: (V,), users: (R, E). So many more are searched that the history can be left out. A graph
    of inner products is hard to walk, so nearest is made a matter of distance: one more coordinate gives all items
    the same length (Bachrach et al. 2014).
    """
    import faiss  # only the benchmark has it

    statistics: Any = faiss.cvar
    started = time.perf_counter()
    places = np.concatenate([vectors, bias[:, None] - bias.mean()], axis=1)
    squares = (places**2).sum(axis=1)
    graph = faiss.IndexHNSWFlat(places.shape[1] + 1, LINKS)
    graph.hnsw.efConstruction = 200
    graph.add(np.concatenate([places, np.sqrt(squares.max() - squares)[:, None]], axis=1))
    building = time.perf_counter() - started
    filtered: list[Items] = []
    unfiltered: list[Items] = []
    reads = []
    started = time.perf_counter()
    for user, history in zip(users, requests.histories, strict=True):
        seen = np.unique(history)
        wanted = min(k + len(seen), requests.items)
        graph.hnsw.efSearch = WIDER * wanted
        statistics.hnsw_stats.reset()
        _, (found,) = graph.search(np.append(user, [1, 0]).astype(np.float32)[None], wanted)
        reads.append(statistics.hnsw_stats.ndis)
        found = found[found >= 0].astype(np.int64)
        filtered.append(found[~np.isin(found, seen)][:k])
        unfiltered.append(found[:k])
    seconds = time.perf_counter() - started
    return Answers(filtered, unfiltered, np.array(reads), seconds), building
