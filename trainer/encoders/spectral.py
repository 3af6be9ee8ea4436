"""The item vectors that training starts from: the leading singular vectors of the user-item click matrix."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

Vectors = NDArray[np.float32]


def spectral_vectors(clicked: scipy.sparse.csr_array, size: int, seed: int) -> Vectors:
    """Item vectors (V, E): the leading right singular vectors of the click matrix times their singular values.

    clicked: (U, V), 0 or 1. Each click is divided by the roots of its user's and its item's numbers of clicks. The
    direction of popularity is removed, because the bias of the softmax head contains it. Every vector is scaled to
    length 1; without this, vectors of rare items are near 0 and learn slowly. An item without clicks has the vector 0.
    size: E; dimensions beyond the matrix rank are 0. Time: about 20 E passes over the clicks.
    """
    users, items = (np.maximum(clicked.sum(axis=axis), 1) ** -0.5 for axis in (1, 0))
    weighted = scipy.sparse.csr_matrix(
        scipy.sparse.diags_array(users) @ clicked @ scipy.sparse.diags_array(items), dtype=np.float32
    )
    rank = min(size + 1, *clicked.shape)
    _, values, axes = randomized_svd(weighted, rank, n_iter=7, random_state=seed % 2**32)
    places = axes.T * values
    # The root of the click counts is a leading singular vector. If several singular vectors have the largest singular
    # value, the computed vectors can be mixtures of these. So this direction is projected out, and the remaining
    # coordinates are rotated to their principal axes.
    popular = np.sqrt(clicked.sum(axis=0))
    popular /= np.linalg.norm(popular)
    places -= np.outer(popular, popular @ places)
    _, rotation = np.linalg.eigh(places.T @ places)
    vectors = np.zeros((clicked.shape[1], size), np.float32)
    vectors[:, : rank - 1] = places @ rotation[:, :0:-1]  # without the last axis, whose coordinates are 0
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-6 * length.max())
    return scaled
