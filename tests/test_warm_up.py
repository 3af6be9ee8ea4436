"""The warm-up: when it ends, and which weights it keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import SMALL, Planted
from tests.silent_progress import SilentProgress
from trainer.config import TrainConfig
from trainer.data.batches import Batches
from trainer.data.requests import held_out_requests, tuning_requests
from trainer.data.split import click_counts
from trainer.deep_retrieval import warm_up
from trainer.deep_retrieval.layers import PathModel
from trainer.deep_retrieval.losses import SoftmaxHead
from trainer.deep_retrieval.warm_up import Averages, WarmUp, ndcg
from trainer.evaluate.evaluate import MeasuredVersion


def make_warm_up(planted: Planted, config: TrainConfig, *, tuned: bool = True) -> WarmUp:
    """The warm-up of a new network on the planted data."""
    clicks = click_counts(planted.dataset, planted.split)
    torch.manual_seed(0)
    model = PathModel(config, 6, clicks, planted.dataset.context.schema)
    split = planted.split if tuned else dataclasses.replace(planted.split, tuning_users=np.arange(0))
    batches = Batches(planted.dataset, planted.split, config.history, 128)
    return WarmUp(config, model, SoftmaxHead(config, clicks), batches, tuning_requests(planted.dataset, split))


def weights(module: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_it_ends_when_patience_does_and_keeps_the_best_weights(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second epoch is the best. With a patience of 2 the fourth is the last, and the second's average is kept."""
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    monkeypatch.setattr(warm_up, "ndcg", lambda *_: next(scores))
    trained = make_warm_up(planted, SMALL.replace(epochs="auto", warmup_epochs="auto", patience=2))

    averages = [weights(trained.averages.current.module) for _ in trained.epochs([], SilentProgress())]

    assert len(averages) == 4
    kept = weights(trained.model)
    assert all(torch.equal(kept[name], tensor) for name, tensor in averages[1].items())
    assert any(not torch.equal(kept[name], tensor) for name, tensor in averages[3].items())


@pytest.mark.parametrize(
    ("tuned", "changes", "epochs"),
    [(True, {"epochs": 5}, 2), (False, {}, 8), (False, {"warmup_epochs": 3}, 3), (False, {"epochs": 5}, 2)],
)
def test_the_settings_limit_the_epochs(planted: Planted, tuned: bool, changes: dict[str, Any], epochs: int) -> None:
    """Two of five epochs are the encoder's; without tuning users nothing tells when to stop, so eight are enough."""
    config = SMALL.replace(**{"epochs": "auto", "warmup_epochs": "auto", "patience": 99} | changes)

    records = list(make_warm_up(planted, config, tuned=tuned).epochs([], SilentProgress()))

    assert [record["epoch"] for record in records] == list(range(1, epochs + 1))
    assert all((record["ndcg"] is not None) == tuned for record in records)


def test_the_averages_forget_at_the_rate_of_an_epoch() -> None:
    """With 4 updates an epoch, each update moves a quarter of the way from the 14th on, and further before."""
    model = torch.nn.Linear(1, 1, bias=False)
    averages = Averages(model, 4)
    expected = 0.0
    for update in range(40):
        model.weight.data.fill_(update)
        averages.current.update_parameters(model)
        expected = update if not update else expected + max(0.25, 10 / (10 + update)) * (update - expected)

    assert averages.current.module.get_parameter("weight").item() == pytest.approx(expected)


def test_the_score_is_that_of_brute_force(planted: Planted) -> None:
    """NDCG during training equals that of the published version, up to the rounding of its vectors."""
    requests = held_out_requests(planted.dataset, planted.split)
    published = MeasuredVersion(planted.searcher, requests, 5, SilentProgress()).brute_force.figures(requests, 5)

    assert ndcg(planted.trained.model, requests, 5, SMALL.history) == pytest.approx(
        published["filtered"]["ndcg"], abs=0.01
    )
