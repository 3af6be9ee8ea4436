"""Fits the reranker: logistic regression over the candidates of tuning users (Sec. 3.4).

Tuning users are training users whose later items are withheld from the network. A candidate counts as clicked if it is
among them. The features are retrieval.paths.rerank.FEATURES.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from retrieval.paths.rerank import SOFTMAX, Reranker, candidates
from retrieval.paths.structure import PathStructure
from trainer.data.requests import Requests

PRIOR = 300.0  # clicks: with as many, a weight is about half of what the clicks alone would give
FREE = 100.0  # the logit's L2 penalty is FREE^2 times weaker


def fit_reranker(structure: PathStructure, requests: Requests, beam: int, per_path: int) -> Reranker:
    """Fit on the candidates of `requests`, without the items of their histories.

    Returns SOFTMAX, the head's own score, if nothing was clicked or too little to learn from.
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
        clicks = np.bincount(request, y, len(batch)).astype(float)[request]  # bincount of an empty array has integers
        features.append(_centred(x, request, len(batch)))
        clicked.append(y)
        # All requests have the same weight, however much was clicked; one without a click teaches nothing.
        weights.append(np.divide(1, clicks, out=np.zeros_like(clicks), where=clicks > 0))
    x, y, weight = np.concatenate(features), np.concatenate(clicked), np.concatenate(weights)
    taught = weight > 0
    if not y.any() or y[taught].all():
        return SOFTMAX
    # Standardised for the solver only; the weights are those of the raw features. The logit's weight is nearly free and
    # the others shrink to 0, so with few clicks to learn from the reranker is the softmax head.
    std = (x[taught].std(axis=0) + 1e-9) * [1 / FREE, 1, 1, 1]
    regression = LogisticRegression(C=1 / PRIOR, max_iter=1000).fit(x[taught] / std, y[taught], weight[taught])
    fitted = Reranker("lr", (regression.coef_[0] / std).astype(np.float32), float(regression.intercept_[0]))
    # If a higher logit seems to mean fewer clicks, there were too few clicks to learn from.
    return fitted if fitted.weights[0] > 0 else SOFTMAX


def _centred(features: Any, request: Any, requests: int) -> Any:
    """Features (N, 4) less their mean over the request's candidates.

    Only the order within a request matters, and users differ in how much they click: without this the weights would
    explain which users click instead of which items. Subtracting a request's mean shifts all its scores equally.
    """
    count = np.maximum(np.bincount(request, minlength=requests), 1)
    means = [np.bincount(request, column, requests) / count for column in features.T]
    return features - np.stack(means, axis=1)[request]


def _keys(item_lists: list[Any], items: int) -> Any:
    return np.concatenate([row * items + np.asarray(listed) for row, listed in enumerate(item_lists)])
