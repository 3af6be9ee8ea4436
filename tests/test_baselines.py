"""The baselines, each compared with a slow and obvious computation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse

from tests.conftest import Planted
from trainer.data.context import UserContext
from trainer.data.dataset import Dataset
from trainer.data.measures import mean_figures, new_items
from trainer.data.requests import held_out_requests
from trainer.data.split import clicked_items
from trainer.evaluate.baselines import (
    Scorer,
    als,
    answer_all,
    best_setting,
    ease,
    item_cf,
    item_similarity,
    popularity,
)

DATASET = Dataset(
    np.arange(3),
    np.arange(4),
    np.array([0, 1, 0, 1, 2, 0, 2], np.int32),
    np.array([0, 2, 3, 5, 7]),
    UserContext.none(4),
)


def test_clicked_items_by_hand() -> None:
    """Only the users asked for have rows, each with the first items of its sequence up to the given length."""
    clicked = clicked_items(DATASET, np.array([0, 2, 3]), np.array([2, 1, 1, 2]))

    assert clicked.toarray().tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]


def test_item_similarity_by_hand() -> None:
    """Cosine over users 0, 1 and 2: items 0 and 1 share one of two users each, items 1 and 2 share user 2."""
    clicked = clicked_items(DATASET, np.array([0, 1, 2]), np.diff(DATASET.offsets))

    assert item_similarity(clicked).toarray() == pytest.approx(
        np.array([[0, 0.5, 0], [0.5, 0, 1 / np.sqrt(2)], [0, 1 / np.sqrt(2), 0]]), abs=1e-6
    )


def test_popularity_is_the_number_of_users() -> None:
    """The scores are the same for every history."""
    clicked = clicked_items(DATASET, np.arange(4), np.diff(DATASET.offsets))

    assert popularity(clicked)(clicked[:2]).tolist() == [[3, 2, 2], [3, 2, 2]]


def test_item_cf_goes_by_popularity_where_nothing_is_similar() -> None:
    """Of items without a click in common with the history, the one with more users comes first."""
    clicked = scipy.sparse.csr_array(np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]], np.float32))

    (scores,) = item_cf(clicked)(scipy.sparse.csr_array(np.array([[1, 0, 0, 0]], np.float32)))

    assert np.argsort(-scores)[0] == 1
    assert scores[3] > scores[2] > 0


def test_ease_is_the_constrained_ridge_regression() -> None:
    """Each column of the weights solves the ridge regression of that item on all other items."""
    clicked = scipy.sparse.csr_array((np.random.default_rng(0).random((40, 6)) < 0.4).astype(np.float32))
    x, penalty = clicked.toarray().astype(float), 3.0
    weights = np.zeros((6, 6))
    for item in range(6):
        others = [other for other in range(6) if other != item]
        a = x[:, others]
        weights[others, item] = np.linalg.solve(a.T @ a + penalty * np.eye(5), a.T @ x[:, item])

    fitted = ease(clicked, penalty)(scipy.sparse.csr_array(np.eye(6, dtype=np.float32)))

    assert np.asarray(fitted) == pytest.approx(weights, abs=1e-5)


@pytest.mark.parametrize("name", ["item_cf", "ease", "als"])
def test_planted_groups_are_found(planted: Planted, name: str) -> None:
    """Answers from the user's group alone have a precision of 5/6: k = 5 of 6 new items, and 5 of the 6 are right."""
    users, split = planted.split.train_users, planted.split
    clicked = clicked_items(planted.dataset, users, split.visible_length)
    fits: dict[str, Callable[..., Scorer]] = {
        "item_cf": item_cf,
        "ease": lambda c: ease(c, 10.0),
        "als": lambda c: als(c, (1.0, 0.1), 8),
    }
    requests = held_out_requests(planted.dataset, split)

    answers = answer_all(fits[name](clicked), requests, 5)

    assert mean_figures(answers.filtered, new_items(requests), 5)["precision"] > 0.75
    assert (answers.reads == 40).all()


def test_the_better_setting_is_chosen(planted: Planted) -> None:
    """A setting that puts the worst items first loses; without requests the first setting is taken."""
    clicked = clicked_items(planted.dataset, planted.split.train_users, planted.split.visible_length)
    requests = held_out_requests(planted.dataset, planted.split)

    def fit(clicked: scipy.sparse.csr_array, setting: float) -> Scorer:
        score = item_cf(clicked)
        return lambda histories: setting * score(histories)

    assert best_setting(fit, (-1.0, 1.0), clicked, requests, 5) == 1.0
    assert best_setting(fit, (-1.0, 1.0), clicked, requests.first(0), 5) == -1.0
