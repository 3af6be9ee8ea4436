"""The user encoder: user vectors from the history and the context features (Sec. 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retrieval.context import ContextSchema
from trainer.config import TrainConfig
from trainer.encoders.gru import GatedRecurrence
from trainer.encoders.lru import LinearRecurrence


class UserEncoder(nn.Module):
    """A user vector: a recurrence over the history's item vectors, plus their sum, plus the context features.

    The recurrence (`config.encoder`) has two methods. `forward` gives the vectors at all positions, for training;
    `last` gives only the vector after the whole history, for requests. The paper has no sum. If the order of a history
    means little, a recurrence alone is worse than item-to-item similarity (docs/decisions.md).
    """

    def __init__(self, config: TrainConfig, items: int, schema: ContextSchema, dropout: float) -> None:
        """items: V. dropout: the dropout rate of all parts."""
        super().__init__()
        size = config.embedding
        self.start = items  # row of the start item in item_embedding, after the V items
        self.item_embedding = nn.Embedding(items + 1, size, sparse=config.steps_are_sparse(items))
        self.recurrence = (GatedRecurrence if config.encoder == "gru" else LinearRecurrence)(config, dropout)
        self.pooled = nn.Linear(size, size, bias=False)
        nn.init.eye_(self.pooled.weight)
        categories = [nn.Embedding(len(category.values) + 1, min(16, size)) for category in schema.categories]
        self.category_embeddings = nn.ModuleList(categories)
        context_size = sum(embedding.embedding_dim for embedding in categories) + len(schema.numbers)
        self.context = nn.Linear(context_size, size, bias=False) if context_size else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, history: Tensor, categories: Tensor, numbers: Tensor) -> Tensor:
        """User vectors (B, T + 1, E); [:, t] is the user vector after the first t items.

        history: (B, T) item indices, -1 after the end. categories: (B, C) codes, numbers: (B, M).
        """
        start = torch.full_like(history[:, :1], self.start)
        # Padding is replaced by item 0. User vectors within the history do not depend on it; later ones are not used.
        items = self.dropout(self.item_embedding(torch.cat([start, history.clamp(min=0)], dim=1)))  # (B, T + 1, E)
        vectors = self.recurrence(items) + self.pooled(_running_sum(items))
        return self._with_context(vectors, categories, numbers)

    def last(self, items: Tensor, length: Tensor, categories: Tensor, numbers: Tensor) -> Tensor:
        """The user vectors after the whole history, (B, E): only the last position of each user in `forward`.

        items: (B, T + 1, E), the vector of the start item, then those of the history, then 0. length: (B,), the number
        of items of each history, without the start item.
        """
        pooled = items[:, 1:].sum(dim=1) / length.clamp(min=1).to(items.dtype).sqrt().unsqueeze(1)
        vectors = self.recurrence.last(items, length + 1) + self.pooled(pooled)
        return self._with_context(vectors, categories, numbers)

    def _with_context(self, vectors: Tensor, categories: Tensor, numbers: Tensor) -> Tensor:
        """The vectors (B, E) or (B, T, E) plus a linear map of the user's context features."""
        if self.context is None:
            return vectors
        embedded = [embed(categories[:, i]) for i, embed in enumerate(self.category_embeddings)]
        context: Tensor = self.context(self.dropout(torch.cat([*embedded, numbers], dim=1)))
        return vectors + (context if vectors.dim() == 2 else context.unsqueeze(1))


def _running_sum(items: Tensor) -> Tensor:
    """At each position, the sum of the item vectors so far, divided by the root of their number: (B, T + 1, E).

    items: (B, T + 1, E), the vectors of the start item and of the history. The start item is left out of the sum.
    """
    total = torch.cat([torch.zeros_like(items[:, :1]), items[:, 1:].cumsum(dim=1)], dim=1)
    count = torch.arange(items.shape[1], device=items.device).clamp(min=1).sqrt()  # (T + 1,)
    return total / count.unsqueeze(1)
