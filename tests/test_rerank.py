"""The reranker learns which features of a candidate predict a click."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from retrieval.paths.index import Neighbours, PathIndex
from retrieval.paths.rerank import SOFTMAX
from retrieval.paths.structure import PathStructure
from trainer.data.requests import Requests
from trainer.publish.reranker import balanced, fit_reranker


class FixedSession:
    """A stand-in for the ONNX session. Every user's beam is the one path in use, and the user vectors are `users`."""

    def __init__(self, users: np.ndarray) -> None:
        self.users, self.done = users, 0

    def run(self, _: list[str], feeds: dict[str, np.ndarray]) -> tuple[Any, ...]:
        """The outputs for the next users, because requests are searched in order."""
        rows = range(self.done, self.done + len(feeds["history"]))
        self.done = rows.stop
        return self.users[rows], np.zeros((len(rows), 1), np.int32), np.zeros((len(rows), 1), np.float32)


def requests_of(truths: list[np.ndarray]) -> Requests:
    """Requests with these truths. Request r has the history [r] and no context."""
    count = len(truths)
    histories = [np.array([r]) for r in range(count)]
    return Requests(
        60, histories, truths, np.zeros((count, 0), np.int64), np.zeros((count, 0), np.float32), np.arange(count)
    )


def structure_of(users: np.ndarray, vectors: np.ndarray, bias: np.ndarray) -> PathStructure:
    """A structure with all items on one path. `users` are the user vectors."""
    items = len(bias)
    index = PathIndex(
        np.array([1]),
        np.array([0, items]),
        np.arange(items, dtype=np.int32),
        vectors.astype(np.float16),
        bias.astype(np.float32),
    )
    return PathStructure(FixedSession(users.astype(np.float32)), index, None, SOFTMAX, 5, 1)


def test_the_feature_that_predicts_clicks_gets_the_weight() -> None:
    """If clicks follow the logit, the weight of the logit is large. The bias is noise here, and its weight is small."""
    rng = np.random.default_rng(0)
    users, vectors, bias = rng.normal(size=(60, 4)), rng.normal(size=(60, 4)), rng.normal(size=60) * 0.01
    truths = [np.argsort(-(vectors @ user))[:6] for user in users]

    reranker = fit_reranker(structure_of(users, vectors, bias), requests_of(truths), 1, 60)
    weights = reranker.weights

    assert reranker.kind == "lr"
    assert weights[0] > 1
    assert abs(weights[1] * 0.01) < 0.2 * weights[0]


@pytest.mark.parametrize("helpful", [True, False])
def test_a_similarity_counts_only_in_favour_of_an_item(helpful: bool) -> None:
    """Item 2 r + 1 is the neighbour of request r's history. The weight is positive if it is clicked, and 0 if never."""
    rng = np.random.default_rng(0)
    users, vectors, bias = rng.normal(size=(60, 4)), rng.normal(size=(60, 4)), np.zeros(60)
    structure = structure_of(users[:20], vectors, bias)
    neighbours = np.full((2, 60, 1), -1, np.int32)
    neighbours[0, :20, 0] = 2 * np.arange(20) + 1
    listed = Neighbours(neighbours, np.full(neighbours.shape, 65535, np.uint16))
    structure = replace(structure, index=replace(structure.index, neighbours=listed))
    best = [np.argsort(-(vectors @ user))[:6] for user in users[:20]]
    truths = [
        np.union1d(items, [2 * r + 1]) if helpful else np.setdiff1d(items, [2 * r + 1]) for r, items in enumerate(best)
    ]

    weights = fit_reranker(structure, requests_of(truths), 1, 60).weights

    assert weights[0] > 0
    assert (weights[4] > 0.5) == helpful
    assert (weights[4:] >= 0).all()
    assert (weights[6:] == 0).all()  # nothing has followers


def test_users_with_many_clicks_do_not_distort_the_weights() -> None:
    """Users with high logits click less here, but the clicks of each single user follow the logit.

    A regression over the candidates of all users together would give the logit a negative weight and reverse every
    ranking.
    """
    rng = np.random.default_rng(1)
    offsets = np.linspace(-5, 5, 60)
    users = np.stack([np.ones(60), offsets], axis=1)
    vectors = np.stack([rng.normal(size=60), np.ones(60)], axis=1)
    best = np.argsort(-vectors[:, 0])
    truths = [best[: int(30 - 5 * offset)] for offset in offsets]

    reranker = fit_reranker(structure_of(users, vectors, np.zeros(60)), requests_of(truths), 1, 60)

    assert reranker.weights[0] > 0.5


def test_items_of_the_history_are_not_learned_from() -> None:
    """Items of the history are never answered, so they count as neither clicked nor skipped. No others are clicked."""
    users = np.ones((3, 2), np.float32)

    clicked = [np.array([r]) for r in range(3)]
    reranker = fit_reranker(structure_of(users, np.eye(3, 2), np.zeros(3)), requests_of(clicked), 1, 3)

    assert reranker is SOFTMAX


def test_clicks_against_the_logit_do_not_reverse_the_ranking() -> None:
    """Clicks on the worst items would give the logit a negative weight, so the softmax reranker is used instead."""
    vectors = np.linspace(1, -1, 60)[:, None]
    worst = [np.array([58, 59])] * 3

    reranker = fit_reranker(structure_of(np.ones((3, 1)), vectors, np.zeros(60)), requests_of(worst), 1, 60)

    assert reranker is SOFTMAX


def test_what_was_shown_teaches_the_reranker() -> None:
    """Items 0 to 5 have the highest bias and are shown to everybody, who click one of them.

    With impressions the bias gets less weight, because the items that were shown without a click have it too. A click
    on an item that was shown is a click.
    """
    rng = np.random.default_rng(0)
    users, vectors, bias = rng.normal(size=(60, 4)), rng.normal(size=(60, 4)), np.where(np.arange(60) < 6, 1.0, 0.0)
    truths = [np.array([r % 6]) for r in range(60)]
    requests = requests_of(truths)

    def bias_weight(shown: list[np.ndarray]) -> float:
        structure = structure_of(users, vectors, bias)
        return float(fit_reranker(structure, replace(requests, shown=shown), 1, 60).weights[1])

    told = bias_weight([np.setdiff1d(np.arange(6), truth) for truth in truths])

    assert 0 < told < 0.6 * bias_weight([])
    assert bias_weight([np.arange(6)] * 60) == told


def test_impressions_together_count_as_much_as_unknown_candidates() -> None:
    """Request 0 has two impressions and five unknown candidates; the others lack one of the groups."""
    request = np.array([0] * 8 + [1] * 3 + [2] * 3)
    shown = np.array([1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0], bool)
    unknown = np.array([0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0], bool)

    factors = balanced(request, shown, unknown)

    assert factors.tolist() == [2.5, 2.5, *[1.0] * 12]
