"""A GRU over the history (`encoder = gru`, Sec. 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig


class GatedRecurrence(nn.Module):
    """A GRU, whose state is mapped linearly to a vector."""

    def __init__(self, config: TrainConfig, dropout: float) -> None:
        super().__init__()
        size = config.embedding
        self.gru = nn.GRU(size, size, batch_first=True)
        self.project = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, items: Tensor) -> Tensor:
        """The vector after each item, (B, T, E). items: (B, T, E), the start item's vector, then the history's."""
        vectors: Tensor = self.project(self.dropout(self.gru(items)[0]))
        return vectors

    def last(self, items: Tensor, length: Tensor) -> Tensor:
        """The vectors (B, E) of `forward` after the first `length` (B,) items."""
        vectors: Tensor = self.project(last_state(self.gru, items, length))
        return vectors


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
