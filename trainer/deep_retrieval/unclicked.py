"""Vectors and biases for items without clicks, from their attributes.

What the network learns of such an item is only that nobody clicks it. So after the encoder has learned, a ridge
regression from the attributes' values to the vectors of clicked items predicts the vectors of the others.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from sklearn.linear_model import Ridge

from trainer.data.attributes import ItemAttributes
from trainer.data.columns import Indices
from trainer.deep_retrieval.layers import PathModel

RIDGE = 1.0  # strength of the penalty, in items
RELIABLE = 5  # an item with so many clicks has half the weight of one with very many


def describe_unclicked(model: PathModel, clicks: Indices, attributes: ItemAttributes) -> None:
    """Set vectors and biases of the items that have attributes and no clicks. clicks: (V,).

    A bias is the mean log-share of the clicks among all items with similar attributes, those without clicks included:
    a new item counts as an average item of its kind. Does nothing if there is no such item, or no clicked item with
    attributes. The result depends only on the vectors of clicked items, so it is the same when repeated.
    """
    described = (attributes.codes >= 0).any(axis=1)
    new, known = np.flatnonzero(described & (clicks == 0)), np.flatnonzero(described & (clicks > 0))
    if not len(new) or not len(known):
        return
    values = _values(attributes)
    vectors = model.item_vectors.detach().cpu().numpy()
    fit = Ridge(RIDGE, solver="sparse_cg").fit(
        values[known], vectors[known], sample_weight=clicks[known] / (clicks[known] + RELIABLE)
    )
    share = np.log((clicks + 0.5) / (clicks + 0.5).sum())
    every = np.concatenate([known, new])
    bias = Ridge(RIDGE, solver="sparse_cg").fit(values[every], share[every]).predict(values[new])
    rows, device = torch.from_numpy(new).to(model.item_bias.device), model.item_bias.device
    with torch.no_grad():
        model.encoder.item_embedding.weight[rows] = torch.from_numpy(fit.predict(values[new])).float().to(device)
        model.item_bias[rows] = torch.from_numpy(bias).float().to(device)


def _values(attributes: ItemAttributes) -> scipy.sparse.csr_array:
    """A sparse matrix, items x values: 1 over the root of the number of the item's values, where it has the value."""
    items, place = np.nonzero(attributes.codes >= 0)
    count = np.bincount(items, minlength=len(attributes.codes))
    entries = 1 / np.sqrt(count[items])
    shape = len(attributes.codes), len(attributes.values)
    return scipy.sparse.csr_array((entries, (items, attributes.codes[items, place])), shape=shape)
