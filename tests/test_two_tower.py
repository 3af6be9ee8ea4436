"""The two-tower network learns, and its graph finds what an exhaustive search finds."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from tests.conftest import Planted
from tests.silent_progress import SilentProgress
from trainer.benchmark.two_tower import TwoTower, answer_hnsw, build_hnsw, encode, train_two_tower
from trainer.data.measures import mean_figures, new_items, tops
from trainer.data.requests import held_out_requests, pad_histories
from trainer.data.split import click_counts


def test_the_network_learns_the_planted_groups(planted: Planted) -> None:
    """Most of the best items for a user are of the user's group."""
    config = planted.config.replace(epochs=20, warmup_epochs=8)
    model = train_two_tower(config, planted.dataset, planted.split, SilentProgress())
    requests = held_out_requests(planted.dataset, planted.split)
    users, seconds = encode(model, requests, config.history)
    graph, _ = build_hnsw(model.item_vectors.detach().numpy(), model.item_bias.numpy())

    answers = answer_hnsw(graph, users, requests, 5, 10)

    assert seconds > 0
    assert mean_figures(answers.filtered, new_items(requests), 5)["precision"] > 0.6


def test_histories_are_cut_to_the_latest_and_padded() -> None:
    """The oldest item comes first and -1 follows the last; there is at least one column."""
    padded = pad_histories([np.array([1, 2, 3]), np.array([], np.int64), np.array([4])], 2)

    assert padded.tolist() == [[2, 3], [-1, -1], [4, -1]]
    assert pad_histories([np.array([], np.int64)], 5).tolist() == [[-1]]


def test_the_graph_finds_what_an_exhaustive_search_finds(planted: Planted) -> None:
    """Lengths and biases of the vectors differ much; filtered answers have no item of the history."""
    generator = np.random.default_rng(0)
    vectors = (generator.normal(size=(500, 8)) * generator.exponential(size=(500, 1))).astype(np.float32)
    bias = (4 * generator.normal(size=500)).astype(np.float32)
    users = generator.normal(size=(20, 8)).astype(np.float32)
    requests = dataclasses.replace(held_out_requests(planted.dataset, planted.split), items=500)
    graph, _ = build_hnsw(vectors, bias)
    scores = users @ vectors.T + bias

    graph_answers = answer_hnsw(graph, users, requests, 10, 10)

    for answers, histories in ((graph_answers.filtered, requests.histories), (graph_answers.unfiltered, None)):
        exact = tops(scores, 10, histories)
        assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(answers, exact, strict=True)]) > 0.9
    for answer, history in zip(graph_answers.filtered, requests.histories, strict=True):
        assert not np.isin(answer, history).any()
    assert 10 < graph_answers.reads.mean() < 500


def test_a_user_is_the_mean_of_the_items_clicked_so_far(planted: Planted) -> None:
    """Their order does not matter, and later clicks change nothing at earlier positions."""
    model = TwoTower(
        planted.config, click_counts(planted.dataset, planted.split), planted.dataset.context.schema
    ).eval()
    no_context = torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0)

    first = model.encoder(torch.tensor([[3, 5, 7]]), *no_context)
    second = model.encoder(torch.tensor([[5, 3, -1]]), *no_context)

    assert torch.allclose(first[:, 2], second[:, 2], atol=1e-6)
    assert torch.allclose(first[:, 0], second[:, 0])
    assert not torch.allclose(first[:, 1], second[:, 1])
