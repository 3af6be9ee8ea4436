"""The path model: user encoder, D path layers, softmax head, and beam search. All path math is here.

What is unusual in this model:
- a path's probability is a product of D softmaxes over K nodes, each given the nodes before it (Sec. 3.1, eq. 1);
- each layer has node embeddings of its own: node 7 of layer 1 is not node 7 of layer 2;
- the first linear map of a path layer is split into a user part and one K x H table a chosen node, so a step
  of the beam is table look-ups, one add, ReLU and one H x K product;
- the softmax head has the encoder's own item vectors, and a bias that is fixed;
- a history starts with a learned "start" item, so an empty history has a user vector too (cold start);
- the beam can be kept to prefixes that lead to an item (`path_trie`).

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

from retrieval.context import ContextSchema
from trainer.config import MAX_BEAM, TrainConfig


class UserEncoder(nn.Module):
    """GRU over the history joined with the context features (Sec. 4.1): one user vector a position.

    Added to it is the sum of the history's item vectors, whatever their order: the GRU alone falls behind item-to-item
    similarity where order says little (README, Decisions).
    """

    def __init__(self, config: TrainConfig, items: int, schema: ContextSchema) -> None:
        super().__init__()
        size = config.embedding
        self.start = items  # the row of item_embedding past the items
        self.item_embedding = nn.Embedding(items + 1, size, sparse=config.steps_are_sparse(items))
        categories = [nn.Embedding(len(category.values) + 1, min(16, size)) for category in schema.categories]
        self.category_embeddings = nn.ModuleList(categories)
        self.gru = nn.GRU(size, size, batch_first=True)
        context_size = sum(embedding.embedding_dim for embedding in categories) + len(schema.numbers)
        self.project = nn.Linear(size + context_size, size)
        self.pooled = nn.Linear(size, size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.eye_(self.pooled.weight)

    def forward(self, history: Tensor, categories: Tensor, numbers: Tensor) -> Tensor:
        """User vectors (B, T + 1, E); [:, t] has seen the first t items. history: (B, T), -1 after its end.

        categories: (B, C) codes, numbers: (B, M).
        """
        start = torch.full_like(history[:, :1], self.start)
        # After a history's end any item will do: no position before it is of it, and none after it is asked for.
        embedded = self.dropout(self.item_embedding(torch.cat([start, history.clamp(min=0)], dim=1)))  # (B, T + 1, E)
        states = self.gru(embedded)[0]  # (B, T + 1, E)
        context = self._context(categories, numbers)
        if context.shape[1]:
            states = torch.cat([states, context.unsqueeze(1).expand(-1, states.shape[1], -1)], dim=2)
        user: Tensor = self.project(self.dropout(states)) + self.pooled(_running_sum(embedded))
        return user

    def last(self, items: Tensor, length: Tensor, categories: Tensor, numbers: Tensor) -> Tensor:
        """The user vectors (B, E) after the whole history, with no step that only other positions need.

        items: (B, T + 1, E), the start item's vector, then the history's, 0 after its end. length: (B,).
        """
        state = torch.cat([last_state(self.gru, items, length + 1), self._context(categories, numbers)], dim=1)
        pooled = items[:, 1:].sum(dim=1) / length.clamp(min=1).to(items.dtype).sqrt().unsqueeze(1)
        user: Tensor = self.project(state) + self.pooled(pooled)
        return user

    def _context(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """What is known of the users beside their history, (B, any)."""
        embedded = [embed(categories[:, i]) for i, embed in enumerate(self.category_embeddings)]
        return torch.cat([*embedded, numbers], dim=1)


def _running_sum(embedded: Tensor) -> Tensor:
    """The sum of the history's item vectors at each position over the root of their number, (B, T + 1, E).

    embedded: (B, T + 1, E), the start item first, which is left out.
    """
    total = torch.cat([torch.zeros_like(embedded[:, :1]), embedded[:, 1:].cumsum(dim=1)], dim=1)
    count = torch.arange(embedded.shape[1]).clamp(min=1).sqrt()  # (T + 1,)
    return total / count.unsqueeze(1)


def last_state(gru: nn.GRU, inputs: Tensor, length: Tensor) -> Tensor:
    """The states (B, E) of `gru` after the first `length` (B,) of the inputs (B, T, E).

    For the exporter as the one ONNX operator that it is: left alone it takes torch's GRU apart into a loop over a fixed
    number of steps, from the second export of a process on. ONNX has the gates in the order z, r, h, torch in r, z, n.
    """
    if not torch.compiler.is_exporting():
        states: Tensor = gru(inputs)[0]
        return states[torch.arange(len(inputs)), length - 1]

    def gates(name: str) -> Tensor:
        values, size = gru.get_parameter(name), gru.hidden_size
        return torch.cat([values[size : 2 * size], values[:size], values[2 * size :]]).unsqueeze(0)

    batch, time = inputs.shape[:2]
    _, state = torch.onnx.ops.symbolic_multi_out(
        "GRU",
        (
            inputs.transpose(0, 1),
            gates("weight_ih_l0"),
            gates("weight_hh_l0"),
            torch.cat([gates("bias_ih_l0"), gates("bias_hh_l0")], dim=1),
            length.to(torch.int32),
        ),
        {"hidden_size": gru.hidden_size, "linear_before_reset": 1},
        dtypes=(inputs.dtype, inputs.dtype),
        shapes=((time, 1, batch, gru.hidden_size), (1, batch, gru.hidden_size)),
    )
    return state.squeeze(0)


def _best(joint: Tensor, children: Tensor | None, beam: int, *, enough: bool = False) -> tuple[Tensor, Tensor]:
    """The `beam` best log-probabilities (N, w) of `joint` (N, n), and where they are; none that leads to no item.

    children: (N, n), -1 where no item lies. enough: n is at least MAX_BEAM.
    """
    if children is not None:
        joint = torch.where(children < 0, -torch.inf, joint)
    width = beam if enough and torch.compiler.is_exporting() else torch.sym_min(beam, joint.shape[1])
    log_prob, place = joint.topk(width, dim=1)
    return log_prob, place


def rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table, (..., columns), -1 being the last. In ONNX the one operator that it is."""
    if not torch.compiler.is_exporting():
        return table[index]
    shape = (*index.shape, table.shape[1])
    found: Tensor = torch.onnx.ops.symbolic("Gather", (table, index), {"axis": 0}, dtype=table.dtype, shape=shape)
    return found


def quotient(numbers: Tensor, divisor: int) -> Tensor:
    """Whole quotients of numbers that are not negative.

    ONNX's Div truncates, which for those is the floor; the exporter's `//` adds nodes for signs.
    """
    if not torch.compiler.is_exporting():
        return numbers // divisor
    inputs = numbers, torch.tensor(divisor)
    found: Tensor = torch.onnx.ops.symbolic("Div", inputs, dtype=numbers.dtype, shape=numbers.shape)
    return found


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
            # Into what the table look-up has made: to fill new memory would take longer than the sum.
            hidden = F.embedding(nodes, table).add_(hidden)
        logits: Tensor = self.out(F.relu(hidden, inplace=bool(chosen)))
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

    def vectors_of(self, items: Tensor) -> Tensor:
        """Of `items`, (..., E); its gradient is of these alone."""
        vectors: Tensor = self.encoder.item_embedding(items)
        return vectors

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

    def beam_search(self, user: Tensor, beam: int, trie: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The `beam` most probable paths found for each of N users, and their log-probabilities: both (N, W).

        Algorithm 1: each layer keeps the beam's best prefixes by joint probability. Paths are ids; with the `trie` of
        the paths in use (see `path_trie`) they are rows of those, and only prefixes that lead to an item are
        kept: places left over have row -1 and log-probability -inf. W is `beam`, or all K^D paths where they are fewer.
        user: (N, E).
        """
        width, (first, *others) = self.width, self.layers
        joint = first(first.user(user), [], [])  # (N, K)
        children = None if trie is None else trie[0][:1].expand_as(joint)  # rows in the next table
        log_prob, node = _best(joint, children, beam)  # (N, w), of the prefixes kept
        path = node if children is None else children.gather(1, node)  # ids, or rows in the next table
        chosen = [node]  # a (N, w) a layer done
        for d, layer in enumerate(others, 1):
            log_probs = layer(layer.user(user).unsqueeze(1), chosen, layer.tables())  # (N, w, K)
            joint = (log_prob.unsqueeze(2) + log_probs).reshape(user.shape[0], -1)  # (N, w * K)
            children = None if trie is None else rows(trie[d], path).reshape(user.shape[0], -1)
            # All but a tiny K have enough prefixes now for the widest beam: the exported graph need not ask.
            log_prob, best = _best(joint, children, beam, enough=width * width >= MAX_BEAM)
            parent = quotient(best, width)
            node = best - parent * width
            path = path.gather(1, parent) * width + node if children is None else children.gather(1, best)
            chosen = [nodes.gather(1, parent) for nodes in chosen] + [node]
        return path, log_prob

    def head_logits(self, user: Tensor) -> Tensor:
        """The softmax head's score of every item, (N, V). user: (N, E)."""
        return user @ self.item_vectors.T + self.item_bias


def log_share(clicks: NDArray[np.int64]) -> Tensor:
    """Log of each item's share of the clicks (V,); one without clicks counts as half of one."""
    return torch.from_numpy(np.log((clicks + 0.5) / (clicks + 0.5).sum())).float()


class Retrieval(nn.Module):
    """What is exported: vectors of the history, context and beam width in; user vector and rows of paths out.

    It has nothing of the size of the catalogue but the trie: the vectors of a history's items come from where the
    reranker's do.
    """

    def __init__(self, model: PathModel, trie: Sequence[Tensor]) -> None:
        super().__init__()
        self.model = model
        self.start = nn.Parameter(model.encoder.item_embedding.weight[model.encoder.start].detach().clone())
        self.trie = nn.ParameterList(nn.Parameter(table, requires_grad=False) for table in trie)

    def forward(
        self, history: Tensor, length: Tensor, categories: Tensor, numbers: Tensor, beam: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """User vectors (B, E), the paths' rows among those in use (B, W) and their log-probabilities, best first.

        history: float16 (B, T, E) item vectors, oldest first, 0 after its end; length: (B,), how many there are.
        beam: int64 scalar, 1 to MAX_BEAM.
        """
        width: int = beam.item()  # type: ignore[assignment]  # int() would fix it at export
        torch._check(width >= 1)  # noqa: SLF001 -- how the exporter learns a bound
        torch._check(width <= MAX_BEAM)  # noqa: SLF001
        items = torch.cat([self.start.expand(history.shape[0], 1, -1), history.float()], dim=1)  # (B, T + 1, E)
        user = self.model.encoder.last(items, length, categories, numbers)  # (B, E)
        return user, *self.model.beam_search(user, width, list(self.trie))


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


def path_trie(path_ids: NDArray[np.int64], depth: int, width: int) -> list[Tensor]:
    """The trie of the paths in use, for `beam_search`: D tables int32 (rows + 1, K), rows = prefixes one node shorter.

    An entry is the row of the longer prefix in the next table, or in the last table that of the path in `path_ids`,
    which ascend; -1 where no item lies. The last row of a table, -1, is of no prefix and leads nowhere.
    """
    tables = []
    parents = np.zeros(1, np.int64)  # the ids of the prefixes that the table's rows stand for
    for d in range(depth):
        prefixes = np.unique(path_ids // width ** (depth - 1 - d))
        table = np.full((len(parents) + 1, width), -1, np.int32)
        table[np.searchsorted(parents, prefixes // width), prefixes % width] = np.arange(len(prefixes))
        tables.append(torch.from_numpy(table))
        parents = prefixes
    return tables
