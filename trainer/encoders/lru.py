"""Gated linear recurrences over the history (`encoder = lru`), after LRURec (Yue et al., WSDM 2024).

Each of N channels keeps a decaying sum of what the items write to it: h_t = a h_{t-1} + sqrt(1 - a^2) v_t. The decay a
is learned for each channel and does not depend on the items. So the states are a cumulative sum of weighted inputs.
LRURec has complex decays and no gates; real decays with gates were as good here (docs/log.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.config import TrainConfig

BLOCKS = 2
#: No decay is smaller than this, so that its powers over a history of 1,000 items are above 0 in float64, and over a
#: history of FLOAT32_HISTORY items in float32.
LEAST = 0.5
FLOAT32_HISTORY = 100
SLOWEST = 0.99  # before training, the decays are spread evenly from LEAST to this


class LinearRecurrence(nn.Module):
    """Two blocks; each is a gated recurrence and a position-wise network, with residuals and layer normalisation."""

    def __init__(self, config: TrainConfig, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.embedding)
        self._blocks = nn.ModuleList(_Block(config, dropout) for _ in range(BLOCKS))

    @property
    def blocks(self) -> list[_Block]:
        """The blocks, in the order in which they are applied."""
        return [block for block in self._blocks if isinstance(block, _Block)]

    def forward(self, items: Tensor) -> Tensor:
        """The vector after each item, (B, T, E). items: (B, T, E), the start item's vector, then the history's."""
        vectors: Tensor = self.norm(items)
        for block in self.blocks:
            vectors = block(vectors)
        return vectors

    def last(self, items: Tensor, length: Tensor) -> Tensor:
        """The vectors (B, E) of `forward` after the first `length` (B,) items.

        In the last block, what follows the recurrence runs only there.
        """
        vectors: Tensor = self.norm(items)
        *others, last = self.blocks
        for block in others:
            vectors = block(vectors)
        return last.last(vectors, length)


class _Block(nn.Module):
    def __init__(self, config: TrainConfig, dropout: float) -> None:
        super().__init__()
        size = config.embedding
        # Positions: the start item and the history. A buffer, because the exported graph depends on their number.
        self.register_buffer("positions", torch.arange(config.history + 1, dtype=torch.float64), persistent=False)
        self.positions: Tensor
        # Without biases: the layer normalisation before or after a map has one, and each costs a request an addition.
        self.write = nn.Linear(size, size, bias=False)
        self.gate = nn.Linear(size, size, bias=False)
        self.read = nn.Linear(size, size, bias=False)
        decays = torch.linspace(LEAST, SLOWEST, size + 1)[1:]
        self.raw_decay = nn.Parameter(torch.logit((decays - LEAST) / (1 - LEAST)))
        self.widen = nn.Linear(size, 2 * size, bias=False)
        self.narrow = nn.Linear(2 * size, size, bias=False)
        self.mixed, self.out = nn.LayerNorm(size), nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        """The block's outputs at all positions, (B, T, E). inputs: (B, T, E)."""
        return self._rest(inputs, self._states(inputs))

    def last(self, inputs: Tensor, length: Tensor) -> Tensor:
        """The output of `forward` at position `length` - 1 of each row, (B, E). length: (B,)."""
        last = torch.arange(inputs.shape[0], device=inputs.device), length - 1
        return self._rest(inputs[last], self._states(inputs)[last])

    def _states(self, inputs: Tensor) -> Tensor:
        """The states at all positions, (B, T, E)."""
        decay = LEAST + (1 - LEAST) * torch.sigmoid(self.raw_decay)
        written = F.linear(inputs, self.write.weight * torch.sqrt(1 - decay**2).unsqueeze(1))
        if not torch.compiler.is_exporting():
            return decaying_sums(written, decay)
        # h_t = decay^t times the sum of written_s / decay^s. The runtime computes the powers when it loads a version.
        powers = torch.exp(decay.double().log() * self.positions.unsqueeze(1))  # (history + 1, E)
        kind = torch.float32 if len(self.positions) <= FLOAT32_HISTORY + 1 else torch.float64
        rising, falling = (table.to(kind)[: inputs.shape[1]] for table in (1 / powers, powers))
        return ((written.to(kind) * rising).cumsum(dim=1) * falling).float()

    def _rest(self, inputs: Tensor, states: Tensor) -> Tensor:
        """What follows the recurrence: the gate, the residuals and the position-wise network."""
        gated = self.read(states * torch.sigmoid(self.gate(inputs)))
        mixed = self.mixed(inputs + self.dropout(gated))
        widened = F.relu(self.widen(mixed))
        outputs: Tensor = self.out(mixed + self.dropout(self.narrow(widened)))
        return outputs


def decaying_sums(written: Tensor, decay: Tensor) -> Tensor:
    """h_t = decay h_{t-1} + written_t for all t, (B, T, N). written: (B, T, N), decay: (N,), between 0 and 1."""
    sums: Tensor = _Scan.apply(written.transpose(0, 1).contiguous(), decay)  # type: ignore[no-untyped-call]
    return sums.transpose(0, 1)


class _Scan(torch.autograd.Function):
    """The recurrence step by step, over the first dimension: a step is one operation on all rows and channels."""

    @staticmethod
    def forward(ctx: Any, written: Tensor, decay: Tensor) -> Tensor:
        states = torch.empty_like(written)
        states[0] = written[0]
        for t in range(1, len(written)):
            torch.addcmul(written[t], states[t - 1], decay, out=states[t])
        ctx.save_for_backward(states, decay)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        states, decay = ctx.saved_tensors
        written = torch.empty_like(gradient)
        written[-1] = gradient[-1]
        for t in range(len(gradient) - 2, -1, -1):
            torch.addcmul(gradient[t], written[t + 1], decay, out=written[t])
        return written, (states[:-1] * written[1:]).sum(dim=(0, 1))
