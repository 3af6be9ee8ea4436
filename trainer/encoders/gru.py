"""The user encoder: user vectors from the history and the context features (Sec. 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retrieval.context import ContextSchema
from trainer.config import TrainConfig


class UserEncoder(nn.Module):
    """A GRU over the history, joined with the context features (Sec. 4.1), gives a user vector at each position.

    Unlike the paper's encoder, this one also adds the sum of the history's item vectors, over the root of their number
    and through a linear map. If the order of a history means little, the GRU alone is worse than item-to-item
    similarity (docs/decisions.md).
    """

    def __init__(self, config: TrainConfig, items: int, schema: ContextSchema) -> None:
        super().__init__()
        size = config.embedding
        self.start = items  # row of the start item in item_embedding, after the V items
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
        """User vectors (B, T + 1, E); [:, t] is the user vector after the first t items.

        history: (B, T) item indices, -1 after the end. categories: (B, C) codes, numbers: (B, M).
        """
        start = torch.full_like(history[:, :1], self.start)
        # Padding is replaced by item 0. User vectors within the history do not depend on it; later ones are not used.
        embedded = self.dropout(self.item_embedding(torch.cat([start, history.clamp(min=0)], dim=1)))  # (B, T + 1, E)
        states = self.gru(embedded)[0]  # (B, T + 1, E)
        context = self._context(categories, numbers)
        if context.shape[1]:
            states = torch.cat([states, context.unsqueeze(1).expand(-1, states.shape[1], -1)], dim=2)
        user: Tensor = self.project(self.dropout(states)) + self.pooled(_running_sum(embedded))
        return user

    def last(self, items: Tensor, length: Tensor, categories: Tensor, numbers: Tensor) -> Tensor:
        """The user vectors after the whole history, (B, E): only the last position of each user in `forward`.

        items: (B, T + 1, E), the vector of the start item, then those of the history, then 0. length: (B,), the number
        of items of each history, without the start item.
        """
        state = torch.cat([last_state(self.gru, items, length + 1), self._context(categories, numbers)], dim=1)
        pooled = items[:, 1:].sum(dim=1) / length.clamp(min=1).to(items.dtype).sqrt().unsqueeze(1)
        user: Tensor = self.project(state) + self.pooled(pooled)
        return user

    def _context(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """The context features as one vector per user, (B, width of all features)."""
        embedded = [embed(categories[:, i]) for i, embed in enumerate(self.category_embeddings)]
        return torch.cat([*embedded, numbers], dim=1)


def _running_sum(embedded: Tensor) -> Tensor:
    """At each position, the sum of the item vectors so far, divided by the root of their number: (B, T + 1, E).

    embedded: (B, T + 1, E), the vectors of the start item and of the history. The start item is left out of the sum.
    """
    total = torch.cat([torch.zeros_like(embedded[:, :1]), embedded[:, 1:].cumsum(dim=1)], dim=1)
    count = torch.arange(embedded.shape[1], device=embedded.device).clamp(min=1).sqrt()  # (T + 1,)
    return total / count.unsqueeze(1)


def last_state(gru: nn.GRU, inputs: Tensor, length: Tensor) -> Tensor:
    """The states (B, E) of `gru` after the first `length` (B,) of the inputs (B, T, E).

    For the export, the state is computed by ONNX's GRU operator. From the second export in a process on, the exporter
    would convert torch's GRU to a loop over a fixed number of steps. ONNX orders the gates z, r, h; torch r, z, n.
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
