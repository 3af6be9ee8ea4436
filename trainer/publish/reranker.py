"""Fit the reranker: logistic regression over the candidates of tuning users (Sec. 3.4).

Tuning users are training users whose later items are withheld from the network. A candidate counts as clicked if it is
one of the withheld items. If impressions are known, the candidates that were shown and not clicked together weigh as
much as the candidates of the same request of which this is not known. The features are retrieval.paths.rerank.FEATURES.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from retrieval.paths.rerank import SOFTMAX, Reranker, candidates
from retrieval.paths.structure import PathStructure
from trainer.data.requests import Requests

#: Strength of the L2 penalty, in requests with a click: with so many, it about halves a weight whose FREEDOM is 1.
PRIOR = 1000.0
#: The L2 penalty on a feature's weight is weaker by the square of this number. The logit needs almost no penalty, and
#: the similarities have information that the logit lacks.
FREEDOM = np.array([100.0, 1, 1, 1, 3, 3, 3, 3])
SIMILARITIES = np.arange(8) >= 4  # which features are roots of sums of similarities


def fit_reranker(structure: PathStructure, requests: Requests, beam: int, per_path: int) -> Reranker:
    """Fit on the candidates of `requests`, without the items of their histories.

    Returns SOFTMAX, which scores by the head's logit, if there are no clicks or too few clicks.
    """
    if not requests.histories:
        return SOFTMAX
    features, clicked, weights = [], [], []
    done = 0
    items = structure.index.items
    for beams in requests.beams(structure, beam):
        read = candidates(structure.index, beams, structure.read(beams, per_path))
        batch = range(done, done + len(beams.user))
        done = batch.stop
        key = read.request * items + read.item
        new = ~np.isin(key, _keys([requests.histories[r] for r in batch], items))
        request, x = read.request[new], read.features[new].astype(float)
        y = np.isin(key[new], _keys([requests.truths[r] for r in batch], items))
        clicks = np.bincount(request, y, len(batch)).astype(float)[request]  # bincount of an empty array gives integers
        features.append(_centred(x, request, len(batch)))
        clicked.append(y)
        # All requests with clicks have the same total weight of clicks. Requests without a click have weight 0.
        weight = np.divide(1, clicks, out=np.zeros_like(clicks), where=clicks > 0)
        if requests.shown:
            shown = np.isin(key[new], _keys([requests.shown[r] for r in batch], items)) & ~y
            weight *= balanced(request, shown, ~y & ~shown)
        weights.append(weight)
    x, y, weight = np.concatenate(features), np.concatenate(clicked), np.concatenate(weights)
    taught = weight > 0
    if not y.any() or y[taught].all():
        return SOFTMAX
    # Features are standardised only for the solver; the final weights are for the raw features. The logit's weight has
    # almost no penalty. The other weights shrink to 0 if there are few clicks; the reranker is then the softmax head.
    std = (x[taught].std(axis=0) + 1e-9) / FREEDOM
    taught_x, taught_y = x[taught] / std, y[taught]
    fitted_weights, used = np.zeros(len(std)), np.ones(len(std), bool)
    while True:
        regression = LogisticRegression(C=1 / PRIOR, max_iter=1000).fit(taught_x[:, used], taught_y, weight[taught])
        fitted_weights[used] = regression.coef_[0]
        # More similar items are not worse. With few clicks, a negative weight is chance, so the feature is left out.
        if not (negative := SIMILARITIES & (fitted_weights < 0)).any():
            break
        used &= ~negative
        fitted_weights[~used] = 0
    fitted = Reranker("lr", (fitted_weights / std).astype(np.float32), float(regression.intercept_[0]))
    # A logit weight that is not positive is a sign of too few clicks.
    return fitted if fitted.weights[0] > 0 else SOFTMAX


def balanced(request: Any, shown: Any, unknown: Any) -> Any:
    """Factors of the candidates' weights (N,), with which two groups of a request have the same total.

    request: (N,), the request of each candidate. shown: those that were shown and not clicked; unknown: those of which
    this is not known. If a request lacks one of the groups, all its factors are 1.
    """
    size = [np.bincount(request, group)[request] for group in (shown, unknown)]
    return np.where(shown & (size[1] > 0), size[1] / np.maximum(size[0], 1), 1.0)


def _centred(features: Any, request: Any, requests: int) -> Any:
    """Features (N, 8) minus their mean over the candidates of the same request.

    Only the order within a request matters. Some users click more than others; without this step, the weights would
    explain which users click instead of which items are clicked. Subtracting a request's mean changes all its scores
    equally.
    """
    count = np.maximum(np.bincount(request, minlength=requests), 1)
    means = [np.bincount(request, column, requests) / count for column in features.T]
    return features - np.stack(means, axis=1)[request]


def _keys(item_lists: list[Any], items: int) -> Any:
    return np.concatenate([row * items + np.asarray(listed) for row, listed in enumerate(item_lists)])
