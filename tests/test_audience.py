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

    def sample(self, model: Any, user: Tensor, count: int = 1) -> Tensor:
        return torch.full((len(user), count), DRAWN)


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
            for user, item in zip(*predictions(model, batch)[:2], strict=True):
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
    model.train()  # no dropout all the same
    advanced: list[int] = []

    placed = placing_vectors(*parts, advanced.append)

    model.eval()
    wanted = _audiences(model, batches)
    everybody = np.mean([user for users in wanted.values() for user in users], axis=0)
    means = np.stack([np.mean(wanted[item], axis=0) - everybody for item in range(ITEMS)])
    vectors = model.item_vectors.detach().double().numpy()
    assert placed.shape == (ITEMS, 2 * vectors.shape[1])
    assert placed[:, : vectors.shape[1]] == pytest.approx(_unit(vectors - vectors.mean(axis=0)), abs=1e-5)
    assert placed[:, vectors.shape[1] :] == pytest.approx(_unit(means), abs=1e-5)
    assert sum(advanced) == batches.predictions


def test_without_an_audience_the_prediction_from_the_vector_counts() -> None:
    """It is the ridge regression of the other items' means on their vectors, weighted by the size of the audience."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 4)).astype(np.float32)
    count = rng.integers(1, 50, 30).astype(float)
    count[3] = 0
    users = rng.normal(size=(30, 4))
    total = count[:, None] * users

    means = audience.audience_means(vectors, total.copy(), count)

    centred = users - (total.sum(axis=0) / count.sum())
    ridge = audience.RIDGE * (count[:, None] * vectors**2).sum() / 4
    rows = np.concatenate([np.sqrt(count)[:, None] * vectors, np.sqrt(ridge) * np.eye(4)])
    values = np.concatenate([np.sqrt(count)[:, None] * centred, np.zeros((4, 4))])
    prediction = vectors @ np.linalg.lstsq(rows, values, rcond=None)[0]
    assert means[3] == pytest.approx(prediction[3], abs=1e-5)
    share = count[5] / (count[5] + audience.PRIOR)
    assert means[5] == pytest.approx(share * centred[5] + (1 - share) * prediction[5], abs=1e-5)


def test_a_single_item_has_a_place() -> None:
    """Centred, its vector is 0, so there is nothing to regress on."""
    assert audience.audience_means(np.zeros((1, 4), np.float32), np.ones((1, 4)), np.array([7.0])).tolist() == [
        [0.0] * 4
    ]
