"""The path model: user encoder, D path layers, softmax head, and beam search. All path math is here.

What is unusual in this model:
- a path's probability is a product of D softmaxes over K nodes, each given the nodes before it (Sec. 3.1, eq. 1);
- each layer has node embeddings of its own: node 7 of layer 1 is not node 7 of layer 2;
- the first linear map of a path layer is split into a user part and one K x H table a chosen node, so a step
  of the beam is table look-ups, one add, ReLU and one H x K product;
- the softmax head has the encoder's own item vectors, and a bias that is fixed;
- a history starts with a learned "start" item, so an empty history has a user vector too (cold start);
- the beam can be kept to prefixes that lead to an item (`prefix_tables`).

Shapes: B batch, T time, D layers, K nodes a layer, J paths an item, W beam, E embedding, H hidden, V items,
C and M categorical and numeric context features. Node and path ids are int64; -1 pads item indices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.config import MAX_BEAM, TrainConfig
from trainer.context import ContextSchema


class UserEncoder(nn.Module):
    """GRU over the history joined with the context features (Sec. 4.1): one user vector a position.

    Added to it is the sum of the history's item vectors, whatever their order: the GRU alone falls behind item-to-item
    similarity where order says little (README, Decisions).
    """

    def __init__(self, config: TrainConfig, items: int, schema: ContextSchema) -> None:
        super().__init__()
        size = config.embedding
        self.start, self.padding = items, items + 1  # rows of item_embedding past the items
        self.item_embedding = nn.Embedding(items + 2, size)
        categories = [nn.Embedding(len(values) + 1, min(16, size)) for values in schema.categorical.values()]
        self.category_embeddings = nn.ModuleList(categories)
        self.gru = nn.GRU(size, size, batch_first=True)
        context_size = sum(embedding.embedding_dim for embedding in categories) + len(schema.numeric)
        self.project = nn.Linear(size + context_size, size)
        self.pooled = nn.Linear(size, size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.eye_(self.pooled.weight)

    def forward(self, history: Tensor, categories: Tensor, numbers: Tensor) -> Tensor:
        """User vectors (B, T + 1, E); [:, t] has seen the first t items. history: (B, T), -1 after its end.

        categories: (B, C) codes, numbers: (B, M).
        """
        start = torch.full_like(history[:, :1], self.start)
        history = torch.where(history < 0, self.padding, history)
        return self.encode(self.item_embedding(torch.cat([start, history], dim=1)), categories, numbers)

    def encode(self, items: Tensor, categories: Tensor, numbers: Tensor) -> Tensor:
        """User vectors (B, T + 1, E) from the vectors of the start item and the history, (B, T + 1, E)."""
        embedded = self.dropout(items)
        exporting = torch.compiler.is_exporting()
        states = onnx_gru(self.gru, embedded) if exporting else self.gru(embedded)[0]  # (B, T + 1, E)
        context = [embed(categories[:, i]) for i, embed in enumerate(self.category_embeddings)]
        if numbers.shape[1]:
            context.append(numbers)
        if context:
            joined = torch.cat(context, dim=1).unsqueeze(1).expand(-1, states.shape[1], -1)
            states = torch.cat([states, joined], dim=2)
        user: Tensor = self.project(self.dropout(states)) + self.pooled(_running_sum(embedded))
        return user


def _running_sum(embedded: Tensor) -> Tensor:
    """The sum of the history's item vectors at each position over the root of their number, (B, T + 1, E).

    embedded: (B, T + 1, E), the start item first, which is left out.
    """
    total = torch.cat([torch.zeros_like(embedded[:, :1]), embedded[:, 1:].cumsum(dim=1)], dim=1)
    count = torch.arange(embedded.shape[1]).clamp(min=1).sqrt()  # (T + 1,)
    return total / count.unsqueeze(1)


def onnx_gru(gru: nn.GRU, inputs: Tensor) -> Tensor:
    """All states (B, T, E) of `gru` over `inputs` (B, T, E), as the one ONNX operator that it is.

    For the exporter only: left alone it takes torch's GRU apart into a loop over a fixed number of steps, from the
    second export of a process on. ONNX has the gates in the order z, r, h, torch in r, z, n.
    """

    def gates(name: str) -> Tensor:
        values, size = gru.get_parameter(name), gru.hidden_size
        return torch.cat([values[size : 2 * size], values[:size], values[2 * size :]]).unsqueeze(0)

    batch, time = inputs.shape[:2]
    states = torch.onnx.ops.symbolic(
        "GRU",
        (
            inputs.transpose(0, 1),
            gates("weight_ih_l0"),
            gates("weight_hh_l0"),
            torch.cat([gates("bias_ih_l0"), gates("bias_hh_l0")], dim=1),
        ),
        {"hidden_size": gru.hidden_size, "linear_before_reset": 1},
        dtype=inputs.dtype,
        shape=(time, 1, batch, gru.hidden_size),
    )
    return states.squeeze(1).transpose(0, 1)


class PathLayer(nn.Module):
    """p(c_d | x, c_1 .. c_{d-1}): an MLP over the user vector and the embeddings of the chosen nodes (Sec. 3.1)."""

    def __init__(self, config: TrainConfig, width: int, chosen: int) -> None:
        super().__init__()
        self.nodes = nn.ParameterList(nn.Parameter(torch.empty(width, config.embedding)) for _ in range(chosen))
        self.user = nn.Linear(config.embedding, config.hidden)
        self.node = nn.ModuleList(nn.Linear(config.embedding, config.hidden, bias=False) for _ in range(chosen))
        self.out = nn.Linear(config.hidden, width)
        for nodes in self.nodes:
            nn.init.normal_(nodes, std=config.embedding**-0.5)

    def tables(self) -> list[Tensor]:
        """What choosing a node adds to the hidden layer: a (K, H) table for each layer before this one."""
        return [linear(nodes) for linear, nodes in zip(self.node, self.nodes, strict=True)]

    def forward(self, user: Tensor, chosen: Sequence[Tensor], tables: list[Tensor]) -> Tensor:
        """Log-probabilities (..., K). user: (..., H), already mapped by `self.user`; chosen: (...) a layer."""
        hidden = user
        for nodes, table in zip(chosen, tables, strict=True):
            hidden = hidden + F.embedding(nodes, table)
        logits: Tensor = self.out(F.relu(hidden))
        return logits.log_softmax(dim=-1)


class PathModel(nn.Module):
    """Everything that is learned by gradient: encoder, path layers, softmax head."""

    def __init__(self, config: TrainConfig, width: int, clicks: NDArray[np.int64], schema: ContextSchema) -> None:
        """width: K. clicks: (V,), of each item in training; the softmax head learns on top of their share."""
        super().__init__()
        items = len(clicks)
        self.depth, self.width = config.depth, width
        self.encoder = UserEncoder(config, items, schema)
        self._layers = nn.ModuleList(PathLayer(config, width, d) for d in range(config.depth))
        # Fixed, not learned: so it orders a path's items by how often they are clicked, and user and item
        # vectors learn what is particular to the user.
        self.register_buffer("item_bias", log_share(clicks))
        self.item_bias: Tensor
        nn.init.normal_(self.encoder.item_embedding.weight, std=config.embedding**-0.5)

    @property
    def layers(self) -> list[PathLayer]:
        return [layer for layer in self._layers if isinstance(layer, PathLayer)]

    @property
    def item_vectors(self) -> Tensor:
        """The softmax head's, (V, E): the very vectors by which the encoder reads the history."""
        return self.encoder.item_embedding.weight[: len(self.item_bias)]

    def start_from(self, vectors: NDArray[np.float32]) -> None:
        """Set the item vectors, (V, E), that training starts from."""
        with torch.no_grad():
            self.item_vectors.copy_(torch.from_numpy(vectors))

    def path_log_probs(self, user: Tensor, paths: Tensor) -> Tensor:
        """Log p(path | x), (N, J), of the paths (N, J) of users (N, E)."""
        nodes = path_nodes(paths, self.depth, self.width)  # D x (N, J)
        total = torch.zeros_like(paths, dtype=user.dtype)
        for d, layer in enumerate(self.layers):
            log_probs = layer(layer.user(user).unsqueeze(1), nodes[:d], layer.tables())  # (N, J or 1, K)
            log_probs = log_probs.expand(-1, paths.shape[1], -1)
            total = total + log_probs.gather(2, nodes[d].unsqueeze(2)).squeeze(2)
        return total

    def beam_search(self, user: Tensor, beam: int, prefixes: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The `beam` most probable paths found for each of N users: (path ids, log-probabilities), both (N, W).

        Algorithm 1: each layer keeps the beam's best prefixes by joint probability. With `prefixes` (see
        `prefix_tables`) only those that lead to an item; places left over have path id -1 and log-probability
        -inf. W is `beam`, or all K^D paths where they are fewer. user: (N, E).
        """
        width = self.width
        log_prob = user.new_zeros(user.shape[0], 1)  # (N, w), of the prefixes kept so far
        path = torch.zeros_like(log_prob, dtype=torch.int64)  # (N, w), their ids
        row = torch.zeros_like(path)  # (N, w), their rows in the next table of `prefixes`
        chosen: list[Tensor] = []  # a (N, w) a layer done
        for d, layer in enumerate(self.layers):
            log_probs = layer(layer.user(user).unsqueeze(1), chosen, layer.tables())  # (N, w, K)
            joint = log_prob.unsqueeze(2) + log_probs  # (N, w, K)
            if prefixes is not None:
                children = F.embedding(row, prefixes[d]).to(torch.int64)  # (N, w, K)
                joint = joint.masked_fill(children < 0, -torch.inf)
            joint = joint.flatten(1)  # (N, w * K)
            log_prob, best = joint.topk(torch.sym_min(beam, joint.shape[1]), dim=1)  # (N, w')
            parent, node = best // width, best % width
            chosen = [nodes.gather(1, parent) for nodes in chosen] + [node]
            path = path.gather(1, parent) * width + node
            if prefixes is not None:
                row = children.flatten(1).gather(1, best).clamp(min=0)
        return torch.where(torch.isinf(log_prob), -1, path), log_prob

    def head_logits(self, user: Tensor) -> Tensor:
        """The softmax head's score of every item, (N, V). user: (N, E)."""
        return user @ self.item_vectors.T + self.item_bias


def log_share(clicks: NDArray[np.int64]) -> Tensor:
    """Log of each item's share of the clicks (V,); one without clicks counts as half of one."""
    return torch.from_numpy(np.log((clicks + 0.5) / (clicks + 0.5).sum())).float()


class Retrieval(nn.Module):
    """What is exported: vectors of the history, context and beam width in; user vector and paths out.

    It has nothing of the size of the catalogue but the trie: the vectors of a history's items come from where the
    reranker's do.
    """

    def __init__(self, model: PathModel, prefixes: Sequence[Tensor]) -> None:
        super().__init__()
        self.model = model
        self.start = nn.Parameter(model.encoder.item_embedding.weight[model.encoder.start].detach().clone())
        self.prefixes = nn.ParameterList(nn.Parameter(table, requires_grad=False) for table in prefixes)

    def forward(
        self, history: Tensor, length: Tensor, categories: Tensor, numbers: Tensor, beam: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """User vectors (B, E), path ids (B, W) and their log-probabilities (B, W), best first.

        history: (B, T, E) item vectors, oldest first; length: (B,), how many of them count, the rest is not read.
        beam: int64 scalar, 1 to MAX_BEAM.
        """
        width: int = beam.item()  # type: ignore[assignment]  # int() would fix it at export
        torch._check(width >= 1)  # noqa: SLF001 -- how the exporter learns a bound
        torch._check(width <= MAX_BEAM)  # noqa: SLF001
        items = torch.cat([self.start.expand(history.shape[0], 1, -1), history], dim=1)  # (B, T + 1, E)
        vectors = self.model.encoder.encode(items, categories, numbers)  # (B, T + 1, E)
        user = vectors[torch.arange(vectors.shape[0]), length]  # (B, E)
        path_ids, log_probs = self.model.beam_search(user, width, list(self.prefixes))
        return user, path_ids, log_probs


def path_nodes(paths: Tensor, depth: int, width: int) -> list[Tensor]:
    """The nodes c_1 .. c_D of path ids, each of the ids' shape: path_id = sum of c_d K^(D-1-d)."""
    return [paths // width ** (depth - 1 - d) % width for d in range(depth)]


def random_paths(items: int, count: int, depth: int, width: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`count` different paths for each item, (V, J), drawn uniformly (Sec. 3.2)."""
    total = width**depth
    paths = generator.integers(total, size=(items, count))
    while len(clash := repeating_rows(paths)):
        # Few clash where paths are plentiful; where they are scarce, draw without replacement.
        if total <= 4 * count:
            paths[clash] = np.argsort(generator.random((len(clash), total)), axis=1)[:, :count]
        else:
            paths[clash] = generator.integers(total, size=(len(clash), count))
    return paths


def repeating_rows(paths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows that have a path twice."""
    ordered = np.sort(paths, axis=1)
    return np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))


def prefix_tables(path_ids: NDArray[np.int64], depth: int, width: int) -> list[Tensor]:
    """The trie of the paths in use, for `beam_search`: D tables int32 (rows, K), rows = prefixes one node shorter.

    An entry is the row of the longer prefix in the next table (0 in the last table), or -1 if no item lies there.
    """
    tables = []
    parents = np.zeros(1, np.int64)  # the ids of the prefixes that the table's rows stand for
    for d in range(depth):
        prefixes = np.unique(path_ids // width ** (depth - 1 - d))
        table = np.full((len(parents), width), -1, np.int32)
        table[np.searchsorted(parents, prefixes // width), prefixes % width] = (
            np.arange(len(prefixes)) if d < depth - 1 else 0
        )
        tables.append(torch.from_numpy(table))
        parents = prefixes
    return tables
