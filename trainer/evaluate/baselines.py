"""Recommenders without a network that teams use today: popularity, Item-CF, EASE, ALS.

Each is fitted on a click matrix (U, V) and scores all items for a history matrix (R, V). Both matrices contain 0 and 1.
The click matrix has all clicks that are not held out for the test. So it includes the tuning users' later items, which
are also used to fit our reranker and to choose the settings of EASE and ALS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import NDArray

from trainer.data.measures import Answers, Items, mean_figures, new_items, tops
from trainer.data.neighbours import nearest_items
from trainer.data.requests import Requests, history_matrix

#: A function from histories (R, V) to scores (R, V).
Scorer = Callable[[scipy.sparse.csr_array], NDArray[np.floating]]
Setting = TypeVar("Setting")
NEIGHBOURS = 100  # most similar items that Item-CF keeps for an item
EASE_ITEMS = 10_000  # largest V for EASE, which inverts a V x V matrix: with 10,000 items in 2 GB and a minute
EASE_PENALTIES = (100.0, 300.0, 1000.0, 3000.0)
#: Pairs (confidence of a click, penalty). An item without a click has confidence 1.
ALS_SETTINGS = ((1.0, 0.1), (1.0, 10.0), (10.0, 1.0), (10.0, 30.0), (40.0, 10.0), (40.0, 100.0))


def popularity(clicked: scipy.sparse.csr_array) -> Scorer:
    """Score an item by the number of users who clicked the item: the same scores for every history."""
    users = np.asarray(clicked.sum(axis=0), np.float32)
    return lambda histories: np.tile(users, (histories.shape[0], 1))


def item_cf(clicked: scipy.sparse.csr_array) -> Scorer:
    """Score an item by the sum of its cosines with the history; items whose sum is 0 are ordered by popularity."""
    similar = item_similarity(clicked)
    users = np.asarray(clicked.sum(axis=0), np.float32)
    popular = 1e-6 * users / users.max()
    return lambda histories: (histories @ similar).toarray() + popular


def item_similarity(clicked: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """The cosines of each item with its 100 nearest items, sparse (V, V); column v has those of item v."""
    nearest, cosines = nearest_items(clicked, NEIGHBOURS)
    item, place = np.nonzero(nearest >= 0)
    entries = cosines[item, place], (nearest[item, place], item)
    return scipy.sparse.csr_array(entries, shape=(clicked.shape[1], clicked.shape[1]))


def ease(clicked: scipy.sparse.csr_array, penalty: float) -> Scorer:
    """The closed-form linear autoencoder (Steck 2019): each item is predicted from all others, with L2 `penalty`."""
    gram = (clicked.T @ clicked).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += penalty
    inverse = scipy.linalg.inv(gram, overwrite_a=True, check_finite=False)
    weights = (inverse / -np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0)
    return lambda histories: histories @ weights


def als(clicked: scipy.sparse.csr_array, setting: tuple[float, float], factors: int) -> Scorer:
    """Implicit-feedback matrix factorisation (Hu et al. 2008) of the library `implicit`.

    The vector of a new user is computed from the history. setting: confidence and penalty, see ALS_SETTINGS.
    """
    from implicit.cpu.als import AlternatingLeastSquares  # installed only for the benchmark
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # the library runs threads of its own
        model = AlternatingLeastSquares(factors, alpha=setting[0], regularization=setting[1], random_state=0)
        model.fit(scipy.sparse.csr_matrix(clicked), show_progress=False)

    def scores(histories: scipy.sparse.csr_array) -> NDArray[np.floating]:
        with threadpool_limits(1, "blas"):
            users = model.recalculate_user(np.arange(histories.shape[0]), scipy.sparse.csr_matrix(histories))
        logits: NDArray[np.floating] = users @ model.item_factors.T
        return logits

    return scores


def best_setting(
    fit: Callable[[scipy.sparse.csr_array, Setting], Scorer],
    settings: Iterable[Setting],
    clicked: scipy.sparse.csr_array,
    requests: Requests,
    k: int,
) -> Setting:
    """The setting whose fit on `clicked` has the highest F@k on `requests`; the first if no user can be measured."""
    truths = new_items(requests)
    if not any(map(len, truths)):
        return next(iter(settings))

    def f_measure(setting: Setting) -> float:
        answers = answer_all(fit(clicked, setting), requests, k)
        return mean_figures(answers.filtered, truths, k)["f_measure"] or 0.0

    return max(settings, key=f_measure)


def answer_all(score: Scorer, requests: Requests, k: int) -> Answers:
    """The k best of all items for each request."""
    filtered: list[Items] = []
    unfiltered: list[Items] = []
    seconds = 0.0
    for part in requests.parts():
        histories = requests.histories[part]
        started = time.perf_counter()
        scores = score(history_matrix(histories, requests.items))
        filtered += tops(scores, k, histories)
        seconds += time.perf_counter() - started
        unfiltered += tops(scores, k)
    return Answers(filtered, unfiltered, np.full(len(filtered), requests.items), seconds)
