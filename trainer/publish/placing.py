"""Fit what a version needs to place new items: maps to an item's vector, from its users and from its attributes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from retrieval.context import ContextSchema
from retrieval.paths.index import PathIndex
from retrieval.paths.placing import PlacingFacts
from retrieval.paths.structure import PathStructure
from trainer.data.attributes import ItemAttributes
from trainer.data.requests import Requests
from trainer.deep_retrieval.unclicked import fit_vectors

GROUPS = 2000  # items whose clicks are sampled, with repetition
CLICKS = 5  # of each of these items
FEATURED = 200_000  # items on whose attributes the regression is fitted, at most
RIDGE = 1e-3  # of the regression, relative to the mean square of the user vectors
#: The bias of a new item is this quantile of those of clicked items (docs/log-living.md).
QUANTILE = 0.97


def fit_features(
    index: PathIndex, attributes: ItemAttributes | None, clicks: NDArray[np.int64], seed: int
) -> NDArray[np.float16]:
    """What each feature of the attributes adds to an item vector, (F + 1, E), last the vector without any feature.

    clicks: (V,), the clicks of each item in training.
    """
    known = np.flatnonzero(clicks > 0)
    if len(known) > FEATURED:
        known = np.sort(np.random.default_rng(seed).choice(known, FEATURED, replace=False))
    vectors = index.item_vectors[known].astype(np.float32)
    if attributes is None or not attributes.table.schema.size:
        mean: NDArray[np.float16] = vectors.mean(axis=0, keepdims=True).astype(np.float16)
        return mean
    fit = fit_vectors(attributes.features()[known], vectors, clicks[known])
    features: NDArray[np.float16] = np.concatenate([fit.coef_.T, fit.intercept_[None]]).astype(np.float16)
    return features


def fit_placing(
    structure: PathStructure,
    schema: ContextSchema,
    requests: Requests,
    clicks: NDArray[np.int64],
    features: NDArray[np.float16],
) -> PlacingFacts:
    """Fit on sampled clicks, CLICKS of one item after another (`clicked_requests`).

    clicks: (V,), the clicks of each item in training. features: see `fit_features`.
    """
    categories, numbers, _ = schema.encode({})  # new items are placed without a context
    requests = replace(
        requests,
        categories=np.tile(np.array(categories, np.int64), (len(requests.users), 1)),
        numbers=np.tile(np.array(numbers, np.float32), (len(requests.users), 1)),
    )
    users = np.concatenate([beams.user for beams in requests.beams(structure, 1)])
    items = np.concatenate(requests.truths)[::CLICKS]
    known = clicks > 0
    vectors = structure.index.item_vectors[known].astype(np.float32)
    centre, mean = users.mean(axis=0), vectors.mean(axis=0)
    inputs = users.reshape(len(items), CLICKS, -1).mean(axis=1) - centre
    outputs = structure.index.item_vectors[items].astype(np.float32) - mean
    ridge = RIDGE * (inputs**2).mean() * len(items) + 1e-9
    matrix = np.linalg.solve(inputs.T @ inputs + ridge * np.eye(inputs.shape[1]), inputs.T @ outputs)
    length = float(np.linalg.norm(vectors, axis=1).mean())
    bias = float(np.quantile(structure.index.item_bias[known], QUANTILE))
    return PlacingFacts(centre, matrix.astype(np.float32), mean, length, bias, features)
