"""The item vectors: a vector of each item's own, plus the vectors of its attributes' values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.data.attributes import ItemAttributes
from trainer.data.columns import Indices


class ItemVectors(nn.Module):
    """The vectors of V items and of the start item, which precedes every history.

    An item with attributes has its own vector plus the sum of its values' vectors, divided by the root of their number.
    An item without clicks then has only the attributes' part: its own vector would only learn that nobody clicks it.
    """

    def __init__(self, config: TrainConfig, clicks: Indices, attributes: ItemAttributes | None) -> None:
        """clicks: (V,), the clicks of each item in training."""
        super().__init__()
        items, size, sparse = len(clicks), config.embedding, config.steps_are_sparse(len(clicks))
        self.start = items  # the start item's row, after the V items
        self.own = nn.Embedding(items + 1, size, sparse=sparse)
        self.values = None
        if attributes:
            padding = len(attributes.values)
            self.values = nn.EmbeddingBag(padding + 1, size, mode="sum", padding_idx=padding)
            nn.init.zeros_(self.values.weight)
            codes = nn.functional.pad(torch.from_numpy(attributes.codes), (0, 0, 0, 1), value=-1)
            count = (codes >= 0).sum(dim=1)
            clicked = nn.functional.pad(torch.from_numpy(clicks > 0), (0, 1), value=True)
            self.register_buffer("codes", torch.where(codes < 0, padding, codes))  # (V + 1, S)
            self.register_buffer("scale", count.clamp(min=1).rsqrt())  # (V + 1,)
            self.register_buffer("owned", (clicked | (count == 0)).float())  # (V + 1,)
            self.codes: Tensor
            self.scale: Tensor
            self.owned: Tensor

    def forward(self, items: Tensor) -> Tensor:
        """The vectors (..., E) of items (...). Only the rows that these vectors read get a gradient."""
        own: Tensor = self.own(items)
        if self.values is None:
            return own
        values = self.values(self.codes[items.flatten()]).view(own.shape)
        vectors: Tensor = own * self.owned[items].unsqueeze(-1) + values * self.scale[items].unsqueeze(-1)
        return vectors

    def all(self) -> Tensor:
        """The vectors of the V items, (V, E)."""
        if self.values is None:
            return self.own.weight[: self.start]
        vectors: Tensor = self(torch.arange(self.start, device=self.scale.device))
        return vectors
