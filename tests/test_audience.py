"""The vectors by which the tree places items, compared with sums over the clicks one after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import Planted
from trainer.data.batches import Batches
from trainer.deep_retrieval import audience
from trainer.deep_retrieval.audience import placing_vectors
from trainer.deep_retrieval.losses import SoftmaxHead, predictions

ITEMS, DRAWN = 40, 7


class _OneItem(SoftmaxHead):
    """A head that draws the same item for every user."""

    def sample(self, model: Any, user: Tensor) -> Tensor:
        return torch.full((len(user),), DRAWN)


@pytest.fixture
def parts(planted: Planted) -> tuple[Any, SoftmaxHead, Batches]:
    config, data, split = planted.config, planted.dataset, planted.split
    clicks = np.ones(ITEMS, np.int64)
    return planted.trained.model, _OneItem(config, clicks), Batches(data, split, config.history, 64)


def _audiences(model: Any, batches: Batches) -> dict[int, list[np.ndarray]]:
    """Each item's user vectors: of the clicks on it, and of every user two draws of the item DRAWN."""
    wanted: dict[int, list[np.ndarray]] = {item: [] for item in range(ITEMS)}
    with torch.no_grad():
        for batch in batches.epoch(None):
            for user, item in zip(*predictions(model, batch), strict=True):
                for one in (int(item), DRAWN, DRAWN):
                    wanted[one].append(user.double().numpy())
    return wanted


def _unit(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.sqrt((vectors**2).sum(axis=1).mean())
    return unit


def test_an_item_is_placed_by_its_vector_and_the_mean_vector_of_its_audience(
    parts: tuple[Any, SoftmaxHead, Batches], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a prior, the second half is the plain mean over the audience, minus the mean over all audiences."""
    monkeypatch.setattr(audience, "PRIOR", 1e-9)
    model, _, batches = parts
    advanced: list[int] = []

    placed = placing_vectors(*parts, advanced.append)

    wanted = _audiences(model, batches)
    everybody = np.mean([user for users in wanted.values() for user in users], axis=0)
    means = np.stack([np.mean(wanted[item], axis=0) - everybody for item in range(ITEMS)])
    vectors = model.item_vectors.detach().double().numpy()
    assert placed.shape == (ITEMS, 2 * vectors.shape[1])
    assert placed[:, : vectors.shape[1]] == pytest.approx(_unit(vectors - vectors.mean(axis=0)), abs=1e-5)
    assert placed[:, vectors.shape[1] :] == pytest.approx(_unit(means), abs=1e-5)
    assert sum(advanced) == batches.predictions


def test_without_an_audience_an_item_is_placed_like_items_with_its_vector(
    parts: tuple[Any, SoftmaxHead, Batches], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a very strong prior the second half is a linear map of the first, so equal vectors have equal places."""
    monkeypatch.setattr(audience, "PRIOR", 1e9)
    model, _, _ = parts
    kept = model.item_vectors.detach().clone()
    with torch.no_grad():
        model.item_vectors[3] = model.item_vectors[30]  # of different groups, so of different audiences
        try:
            placed = placing_vectors(*parts, lambda _: None)
        finally:
            model.item_vectors.copy_(kept)
    assert placed[3] == pytest.approx(placed[30], abs=1e-5)
    assert not np.allclose(placed[3], placed[2], atol=1e-2)
