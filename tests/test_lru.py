"""The linear recurrence: its sums, its gradients, and its form in the exported network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retrieval.context import ContextSchema
from retrieval.session import open_session
from trainer.config import TrainConfig
from trainer.deep_retrieval.layers import PathModel
from trainer.encoders.lru import FLOAT32_HISTORY, LinearRecurrence, decaying_sums
from trainer.publish.network import Network, to_onnx


def step_by_step(written: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """The definition, h_t = decay h_{t-1} + written_t, with torch's own gradients."""
    states = [written[:, 0]]
    for t in range(1, written.shape[1]):
        states.append(decay * states[-1] + written[:, t])
    return torch.stack(states, dim=1)


@pytest.mark.parametrize("time", [2, 7])
def test_decaying_sums_and_their_gradients(time: int) -> None:
    """Sums and gradients are those of the definition."""
    torch.manual_seed(0)
    written = torch.randn(3, time, 4, dtype=torch.double, requires_grad=True)
    decay = torch.linspace(0.1, 0.9, 4, dtype=torch.double, requires_grad=True)
    weights = torch.randn(3, time, 4, dtype=torch.double)
    found, expected = decaying_sums(written, decay), step_by_step(written, decay)

    assert torch.allclose(found, expected)
    gradients = torch.autograd.grad((found * weights).sum(), (written, decay))
    definition = torch.autograd.grad((expected * weights).sum(), (written, decay))
    assert all(torch.allclose(ours, theirs) for ours, theirs in zip(gradients, definition, strict=True))


def test_two_items_by_hand() -> None:
    """With decay 0.5: 4, then 2 + 3."""
    sums = decaying_sums(torch.tensor([[[4.0], [3.0]]]), torch.tensor([0.5]))

    assert sums.flatten().tolist() == [4.0, 5.0]


@pytest.mark.parametrize("longest", [FLOAT32_HISTORY, 1000])
def test_the_exported_form_holds_for_the_longest_history(longest: int) -> None:
    """With so many items, and the smallest, a middle and the largest decay in its channels, ONNX is as torch."""
    torch.manual_seed(0)
    config = TrainConfig(embedding=4, hidden=4, width=3, depth=2, paths_per_item=1, candidate_paths=1, history=longest)
    model = PathModel(config, 3, np.ones(5, np.int64), ContextSchema()).eval()
    recurrence = model.encoder.recurrence
    assert isinstance(recurrence, LinearRecurrence)
    with torch.no_grad():
        for block in recurrence.blocks:
            block.raw_decay.copy_(torch.tensor([-30.0, 0.0, 30.0, -30.0]))
    vectors, length = torch.randn(5, 4).half(), torch.tensor([longest, 7])
    with torch.no_grad():
        model.encoder.item_embedding.weight[:5] = vectors
    history = torch.randint(5, (2, longest)).where(torch.arange(longest) < length.unsqueeze(1), -1)
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    expected = model.encoder(history, nothing, nothing.float())[torch.arange(2), length].detach().numpy()
    items = vectors[history] * (history >= 0).unsqueeze(2)

    session = open_session(to_onnx(Network(model).eval(), ContextSchema()))
    feeds = {"history": items, "length": length, "beam": torch.tensor(1), "trie": torch.zeros(2, 3, dtype=torch.int32)}
    feeds |= {"categories": nothing, "numbers": nothing.float()}
    (found,) = session.run(["user"], {name: tensor.numpy() for name, tensor in feeds.items()})

    assert np.allclose(found, expected, atol=1e-4)
