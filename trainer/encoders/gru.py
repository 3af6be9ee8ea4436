"""The user encoder: a GRU over the history's item vectors, their sum, and the context features (Sec. 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retrieval.context import ContextSchema
from trainer.config import TrainConfig


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
    count = torch.arange(embedded.shape[1], device=embedded.device).clamp(min=1).sqrt()  # (T + 1,)
    return total / count.unsqueeze(1)


def last_state(gru: nn.GRU, inputs: Tensor, length: Tensor) -> Tensor:
    """The states (B, E) of `gru` after the first `length` (B,) of the inputs (B, T, E).

    For the exporter as the one ONNX operator that it is: left alone it takes torch's GRU apart into a loop over a fixed
    number of steps, from the second export of a process on. ONNX has the gates in the order z, r, h, torch in r, z, n.
    """
    if not torch.compiler.is_exporting():
        states: Tensor = gru(inputs)[0]
        return states[torch.arange(len(inputs), device=states.device), length - 1]

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
