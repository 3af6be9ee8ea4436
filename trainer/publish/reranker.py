"""The reranker: logistic regression over the candidates that tuning users' requests retrieve (Sec. 3.4).

Its features are retrieval.paths.rerank.FEATURES; a candidate counts as clicked if the user clicked it later, which the
network has not seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from retrieval.paths.rerank import SOFTMAX, Reranker, candidates
from retrieval.paths.structure import PathStructure
from trainer.data.requests import Requests

PRIOR = 300.0  # clicks: with as many, a weight is about half of what the clicks say
FREE = 100.0  # so much weaker is the logit's penalty, squared


def fit_reranker(structure: PathStructure, requests: Requests, beam: int, per_path: int) -> Reranker:
    """Fit on the candidates of `requests`, history items left out.

    The softmax head's score if nothing was clicked, or too little to learn from.
    """
    if not requests.histories:
        return SOFTMAX
    features, clicked, weights = [], [], []
    done = 0
    items = structure.index.items
    for beams in requests.beams(structure, beam):
        met = candidates(structure.index, beams, structure.read(beams, per_path))
        batch = range(done, done + len(beams.user))
        done = batch.stop
        key = met.request * items + met.item
        new = ~np.isin(key, _keys([requests.histories[r] for r in batch], items))
        request, x = met.request[new], met.features[new].astype(float)
        y = np.isin(key[new], _keys([requests.truths[r] for r in batch], items))
        clicks = np.bincount(request, y, len(batch)).astype(float)[request]  # of an empty array it returns integers
        features.append(_centred(x, request, len(batch)))
        clicked.append(y)
        # Each request counts as one, however much was clicked; where nothing was, there is nothing to learn.
        weights.append(np.divide(1, clicks, out=np.zeros_like(clicks), where=clicks > 0))
    x, y, weight = np.concatenate(features), np.concatenate(clicked), np.concatenate(weights)
    taught = weight > 0
    if not y.any() or y[taught].all():
        return SOFTMAX
    # Standardised for the solver only; the weights are given for the features as they are. The logit's weight is free,
    # the others shrink to 0: with few clicks to learn from, the reranker is the softmax head.
    std = (x[taught].std(axis=0) + 1e-9) * [1 / FREE, 1, 1, 1]
    regression = LogisticRegression(C=1 / PRIOR, max_iter=1000).fit(x[taught] / std, y[taught], weight[taught])
    found = Reranker("lr", (regression.coef_[0] / std).astype(np.float32), float(regression.intercept_[0]))
    # Where a higher logit seems to mean fewer clicks, a handful of clicks has told of itself alone.
    return found if found.weights[0] > 0 else SOFTMAX


def _centred(features: Any, request: Any, requests: int) -> Any:
    """Features (N, 4) less their mean over the request's candidates.

    Only the order within a request matters, and requests differ in how much of anything is clicked: without this
    the weights would explain which users click, not what. A request's means move all its scores alike.
    """
    count = np.maximum(np.bincount(request, minlength=requests), 1)
    means = [np.bincount(request, column, requests) / count for column in features.T]
    return features - np.stack(means, axis=1)[request]


def _keys(item_lists: list[Any], items: int) -> Any:
    return np.concatenate([row * items + np.asarray(found) for row, found in enumerate(item_lists)])
