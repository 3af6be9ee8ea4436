"""The path model: user encoder, D path layers, softmax head, and beam search.

What is unusual in this model:
- a path's probability is the product of D probabilities, one per layer: a softmax over the layer's K nodes, given the
  nodes of the earlier layers (Sec. 3.1, eq. 1);
- each layer has its own embeddings of the nodes of each earlier layer: no two layers share embeddings;
- in a path layer, the chosen nodes scale the user's part of the hidden units and shift it. In the paper they only shift
  it, because user and nodes are concatenated. With scales, the layer learns more about the items of each prefix;
- scales and shifts are tables with a row for each node, so a step of the beam search needs only table look-ups, sums, a
  product by element, a ReLU and one H x K product;
- the softmax head and the encoder share the item vectors, and the head's bias is fixed;
- a history starts with a learned "start" item, so an empty history has a user vector too (cold start);
- with a trie (`retrieval.paths.trie`), the softmax of a layer is over the nodes that continue to a path in use. So the
  probabilities of the paths in use sum to 1, and the beam search follows no other path.

Shapes: B batch, T time, D layers, K nodes a layer, J paths an item, W beam, E embedding, H hidden, V items,
C and M categorical and numeric context features. Node and path ids are int64; item indices are padded with -1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from retrieval.context import ContextSchema
from retrieval.query import Limits
from trainer.config import TrainConfig
from trainer.deep_retrieval.paths import path_nodes
from trainer.encoders.user import UserEncoder

#: The logit of a node that continues to no path in use. With -inf, a prefix without such a node would have the
#: probabilities 0 / 0.
UNUSED = -1e9


def _best(joint: Tensor, beam: int, *, enough: bool = False) -> tuple[Tensor, Tensor]:
    """The `beam` highest log-probabilities (N, w) of `joint` (N, n), and their positions (N, w).

    enough: n is at least `beam` for every allowed beam, so the exported graph need not compare the two.
    """
    width = beam if enough and torch.compiler.is_exporting() else torch.sym_min(beam, joint.shape[1])
    log_prob, place = joint.topk(width, dim=1)
    return log_prob, place


def rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table, (..., columns); index -1 is the last row. Exported as a single Gather."""
    if not torch.compiler.is_exporting():
        return table[index]
    shape = (*index.shape, table.shape[1])
    gathered: Tensor = torch.onnx.ops.symbolic("Gather", (table, index), {"axis": 0}, dtype=table.dtype, shape=shape)
    return gathered


def quotient(numbers: Tensor, divisor: int) -> Tensor:
    """Integer quotients of numbers that are not negative.

    For such numbers ONNX's Div, which truncates, gives the floor; the exporter's `//` adds nodes that handle signs.
    """
    if not torch.compiler.is_exporting():
        return numbers // divisor
    inputs = numbers, torch.tensor(divisor)
    quotients: Tensor = torch.onnx.ops.symbolic("Div", inputs, dtype=numbers.dtype, shape=numbers.shape)
    return quotients


class PathLayer(nn.Module):
    """p(c_d | x, c_1 .. c_{d-1}): an MLP over the user vector, scaled and shifted by the chosen nodes' embeddings."""

    def __init__(self, config: TrainConfig, width: int, chosen: int) -> None:
        super().__init__()
        self.nodes = nn.ParameterList(nn.Parameter(torch.empty(width, config.embedding)) for _ in range(chosen))
        self.user = nn.Linear(config.embedding, config.hidden)
        # For each earlier layer, from the chosen node to the scales, then to the shifts of the hidden units.
        self.node = nn.ModuleList(nn.Linear(config.embedding, 2 * config.hidden, bias=False) for _ in range(chosen))
        self.out = nn.Linear(config.hidden, width)
        for nodes in self.nodes:
            nn.init.normal_(nodes, std=config.embedding**-0.5)
        with torch.no_grad():
            for parameter in self.node.parameters():
                parameter[: config.hidden] = 0

    def tables(self) -> list[Tensor]:
        """One table (K, 2 H) for each earlier layer. The rows of the chosen nodes are added: scales, then shifts."""
        tables = [linear(nodes) for linear, nodes in zip(self.node, self.nodes, strict=True)]
        # A scale is 1 plus the parts of the chosen nodes. The 1 is in a table, which the runtime computes only once.
        if tables:
            scale, shift = tables[0].chunk(2, dim=1)
            tables[0] = torch.cat([scale + 1, shift], dim=1)
        return tables

    def forward(
        self, user: Tensor, chosen: Sequence[Tensor], tables: list[Tensor], children: Tensor | None = None
    ) -> Tensor:
        """Log-probabilities of the layer's nodes, (..., K).

        user: (..., H), already mapped by `self.user`. chosen: for each earlier layer, the chosen nodes (...). tables:
        the result of `tables()`, computed once for many calls. children: (..., K), the row of the trie for the prefix;
        None: all nodes count as used.
        """
        hidden = user
        if chosen:
            total = F.embedding(chosen[0], tables[0])
            for nodes, table in zip(chosen[1:], tables[1:], strict=True):
                # Add in place to the looked-up rows, because allocating memory takes longer than the addition.
                total = F.embedding(nodes, table).add_(total)
            scale, shift = total.chunk(2, dim=-1)
            hidden = torch.addcmul(shift, user, scale)
        logits: Tensor = self.out(F.relu(hidden, inplace=bool(chosen)))
        if children is not None:
            logits = torch.where(children < 0, UNUSED, logits)
        return logits.log_softmax(dim=-1)


class PathModel(nn.Module):
    """The parts that are learned by gradient: encoder, path layers, and the softmax head over the item vectors."""

    def __init__(self, config: TrainConfig, width: int, clicks: NDArray[np.int64], schema: ContextSchema) -> None:
        """width: K. clicks: (V,), each item's clicks in training; the head's bias is the log of the item's share."""
        super().__init__()
        items = len(clicks)
        self.depth, self.width = config.depth, width
        self.encoder = UserEncoder(config, items, schema, config.resolve_dropout(int(clicks.sum()), items))
        self._layers = nn.ModuleList(PathLayer(config, width, d) for d in range(config.depth))
        # The bias is fixed, so that it orders a path's items by their clicks. The vectors of users and items then learn
        # only how a user differs from other users.
        self.register_buffer("item_bias", log_share(clicks))
        self.item_bias: Tensor
        nn.init.normal_(self.encoder.item_embedding.weight, std=config.embedding**-0.5)

    @property
    def layers(self) -> list[PathLayer]:
        """The D path layers."""
        return [layer for layer in self._layers if isinstance(layer, PathLayer)]

    @property
    def item_vectors(self) -> Tensor:
        """The item vectors, (V, E), which the softmax head and the encoder share."""
        return self.encoder.item_embedding.weight[: len(self.item_bias)]

    def vectors_of(self, items: Tensor) -> Tensor:
        """The vectors of `items`, (..., E). Only these vectors get a gradient."""
        vectors: Tensor = self.encoder.item_embedding(items)
        return vectors

    def start_from(self, vectors: NDArray[np.float32]) -> None:
        """Set the item vectors, (V, E), that training starts from."""
        with torch.no_grad():
            self.item_vectors.copy_(torch.from_numpy(vectors))

    def path_log_probs(self, user: Tensor, paths: Tensor, trie: Tensor | None = None) -> Tensor:
        """Log p(path | x), (N, J). user: (N, E). paths: (N, J) path ids, J for each user.

        trie: (R, K), of the paths in use, which include `paths`; None: all K^D paths count as used.
        """
        nodes = path_nodes(paths, self.depth, self.width)  # D x (N, J)
        total = torch.zeros_like(paths, dtype=user.dtype)
        row = torch.zeros_like(paths)  # of the trie
        for d, layer in enumerate(self.layers):
            children = None if trie is None else trie[row]
            log_probs = layer(layer.user(user).unsqueeze(1), nodes[:d], layer.tables(), children)  # (N, J or 1, K)
            log_probs = log_probs.expand(-1, paths.shape[1], -1)
            total = total + log_probs.gather(2, nodes[d].unsqueeze(2)).squeeze(2)
            if children is not None:
                row = children.gather(2, nodes[d].unsqueeze(2)).squeeze(2).long()
        return total

    def beam_search(self, user: Tensor, beam: int, trie: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The most probable paths found for each of N users, and their log-probabilities: both (N, W).

        Algorithm 1: each layer keeps the W prefixes with the highest joint probability. W is `beam`, or K^D if that is
        less. user: (N, E). Without `trie`, paths are given by their ids. trie: (R, K), see `retrieval.paths.trie`; the
        search then finds only paths in use, and a path is given by its position among these. If fewer than W are found,
        the last entries are -1 with log-probability -inf.
        """
        width, (first, *others) = self.width, self.layers
        children = None if trie is None else trie[:1].expand(user.shape[0], -1)  # rows of the trie, (N, K)
        joint = first(first.user(user), [], [], children)  # (N, K)
        log_prob, node = _best(joint, beam)  # (N, w), for the w prefixes that are kept
        path = node if children is None else children.gather(1, node)  # prefix ids, or rows of the trie
        chosen = [node]  # one tensor (N, w) for each layer searched
        for layer in others:
            below = None if trie is None else rows(trie, path)  # (N, w, K)
            log_probs = layer(layer.user(user).unsqueeze(1), chosen, layer.tables(), below)  # (N, w, K)
            joint = (log_prob.unsqueeze(2) + log_probs).reshape(user.shape[0], -1)  # (N, w * K)
            children = None if below is None else below.reshape(user.shape[0], -1)
            # If K^2 is at least Limits.BEAM, there are enough prefixes for every beam from the second layer on.
            log_prob, best = _best(joint, beam, enough=width * width >= Limits.BEAM)
            parent = quotient(best, width)
            node = best - parent * width
            path = path.gather(1, parent) * width + node if children is None else children.gather(1, best)
            chosen = [nodes.gather(1, parent) for nodes in chosen] + [node]
        return path, log_prob if trie is None else torch.where(path < 0, -torch.inf, log_prob)

    def head_logits(self, user: Tensor) -> Tensor:
        """The softmax head's logit of every item, (N, V). user: (N, E)."""
        return user @ self.item_vectors.T + self.item_bias


def log_share(clicks: NDArray[np.int64]) -> Tensor:
    """The log of each item's share of the clicks, (V,). Half a click is added to each item, to avoid log 0."""
    return torch.from_numpy(np.log((clicks + 0.5) / (clicks + 0.5).sum())).float()
