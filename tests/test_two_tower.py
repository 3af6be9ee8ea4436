"""The rival network learns, and its graph finds what a scan finds."""

from __future__ import annotations

import numpy as np
import torch

from tests.conftest import Planted
from trainer.measures import both_tops, new_items, precision_recall_f
from trainer.progress import SilentProgress
from trainer.requests import held_out_requests
from trainer.train import click_counts
from trainer.two_tower import TwoTower, answer_hnsw, encode, train_two_tower


def test_it_learns_the_planted_groups(planted: Planted) -> None:
    """Its nearest items are those of the user's group, and the graph reads no more than there are."""
    config = planted.config.replace(epochs=16, warmup_epochs=8)
    model = train_two_tower(config, planted.dataset, planted.split, SilentProgress())
    requests = held_out_requests(planted.dataset, planted.split)
    users = encode(model, requests, config.history)
    vectors, bias = model.item_vectors.detach().numpy(), model.item_bias.numpy()

    found, building = answer_hnsw(vectors, bias, users, requests, 5)

    assert building >= 0
    assert precision_recall_f(found.filtered, new_items(requests), 5)["precision"] > 0.6
    exact = both_tops(users @ vectors.T + bias, requests.histories, 5)
    share = np.mean([len(np.intersect1d(a, b)) / 5 for a, (b, _) in zip(found.filtered, exact, strict=True)])
    assert share > 0.95
    for answer, history in zip(found.filtered, requests.histories, strict=True):
        assert not np.isin(answer, history).any()


def test_a_user_is_the_mean_of_what_was_clicked_so_far(planted: Planted) -> None:
    """In whatever order; what comes later changes nothing before it."""
    model = TwoTower(planted.config, click_counts(planted.dataset, planted.split), planted.dataset.schema).eval()
    nothing = torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0)

    one = model.encoder(torch.tensor([[3, 5, 7]]), *nothing)
    two = model.encoder(torch.tensor([[5, 3, -1]]), *nothing)

    assert torch.allclose(one[:, 2], two[:, 2], atol=1e-6)
    assert torch.allclose(one[:, 0], two[:, 0])
    assert not torch.allclose(one[:, 1], two[:, 1])
