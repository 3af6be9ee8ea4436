"""Vectors and biases for items without clicks, from their attributes and titles.

What the network learns of such an item is only that nobody clicks it. So after the encoder has learned, a ridge
regression from the attributes' features to the vectors of clicked items predicts the vectors of the others.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from trainer.data.attributes import ItemAttributes
from trainer.data.columns import Indices
from trainer.deep_retrieval.layers import PathModel

RIDGE = 1.0  # strength of the penalty, in items
RELIABLE = 5  # an item with so many clicks has half the weight of one with very many


def describe_unclicked(model: PathModel, clicks: Indices, attributes: ItemAttributes) -> int:
    """Set vectors and biases of the items that have features and no clicks. clicks: (V,).

    A bias is the mean log-share of the clicks among all items with similar attributes, those without clicks included:
    a new item counts as an average item of its kind. Does nothing if there is no such item, or no clicked item with
    attributes. The result depends only on the vectors of clicked items, so it is the same when repeated. Returns the
    number of items.
    """
    values = attributes.features()
    described = np.diff(values.indptr) > 0
    new, known = np.flatnonzero(described & (clicks == 0)), np.flatnonzero(described & (clicks > 0))
    if not len(new) or not len(known):
        return 0
    vectors = model.item_vectors.detach().cpu().numpy()
    fit = fit_vectors(values[known], vectors[known], clicks[known])
    share = np.log((clicks + 0.5) / (clicks + 0.5).sum())
    every = np.concatenate([known, new])
    bias = Ridge(RIDGE, solver="sparse_cg").fit(values[every], share[every]).predict(values[new])
    rows, device = torch.from_numpy(new).to(model.item_bias.device), model.item_bias.device
    with torch.no_grad():
        model.encoder.item_embedding.weight[rows] = torch.from_numpy(fit.predict(values[new])).float().to(device)
        model.item_bias[rows] = torch.from_numpy(bias).float().to(device)
    return len(new)


def fit_vectors(features: scipy.sparse.csr_array, vectors: NDArray[np.float32], clicks: Indices) -> Ridge:
    """The regression from features to the vectors of clicked items, which count more the more clicks they have."""
    return Ridge(RIDGE, solver="sparse_cg").fit(features, vectors, sample_weight=clicks / (clicks + RELIABLE))
