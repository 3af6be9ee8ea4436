"""The item vectors that training starts from."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from trainer.encoders.spectral import spectral_vectors


def test_spectral_vectors_are_the_singular_vectors() -> None:
    """Compared with numpy's SVD by inner products, which no sign or rotation of the axes changes."""
    clicked = (np.random.default_rng(0).random((30, 12)) < 0.4).astype(np.float32)
    clicked[0, 0] = 1
    users, items = clicked.sum(axis=1, keepdims=True), clicked.sum(axis=0, keepdims=True)
    _, values, axes = np.linalg.svd(clicked / np.sqrt(np.maximum(users, 1) * items))
    expected = axes[1:6].T * values[1:6]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)

    vectors = spectral_vectors(scipy.sparse.csr_array(clicked), 5, 0)

    assert vectors @ vectors.T == pytest.approx(expected @ expected.T, abs=1e-4)
    assert vectors.dtype == np.float32


def test_items_that_are_clicked_together_start_together() -> None:
    """Two groups of users click one group of items each; an item without clicks is at the origin."""
    clicked = np.zeros((20, 9), np.float32)
    clicked[:10, :4] = clicked[10:, 4:8] = 1

    vectors = spectral_vectors(scipy.sparse.csr_array(clicked), 4, 0)

    close = vectors @ vectors.T
    assert (close[:4, :4] > 0.99).all()
    assert (close[:4, 4:8] < -0.99).all()
    assert not vectors[8].any()


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (2, 3)])
def test_fewer_users_or_items_than_dimensions(shape: tuple[int, int]) -> None:
    """The vectors still have all dimensions, and are finite."""
    vectors = spectral_vectors(scipy.sparse.csr_array(np.ones(shape, np.float32)), 8, 0)

    assert vectors.shape == (shape[1], 8)
    assert np.isfinite(vectors).all()
