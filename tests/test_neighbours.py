"""The most similar items of each item."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from trainer.data import neighbours as neighbours_module
from trainer.data.neighbours import nearest_items
from trainer.publish.index import neighbours


def clicks(rows: list[list[int]]) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(np.array(rows, np.float32))


def test_the_nearest_items_by_hand() -> None:
    """Items 0 and 1 share two of their two and three users, items 1 and 2 one of three and one."""
    nearest, cosines = nearest_items(clicks([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]]), 2)

    assert nearest.tolist() == [[1, -1], [0, 2], [1, -1], [-1, -1]]
    assert cosines[:2] == pytest.approx(np.array([[2 / 6**0.5, 0], [2 / 6**0.5, 1 / 3**0.5]]))


@pytest.mark.parametrize("block", [1, 3, 100])
def test_blocks_equal_all_items_at_once(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """The slow twin: all cosines as a dense matrix."""
    monkeypatch.setattr(neighbours_module, "BLOCK", block)
    rng = np.random.default_rng(0)
    dense = (rng.random((30, 7)) < 0.3).astype(np.float64)
    length = np.maximum(np.linalg.norm(dense, axis=0), 1)
    expected = (dense.T @ dense) / np.outer(length, length)
    np.fill_diagonal(expected, 0)

    nearest, cosines = nearest_items(clicks(dense.tolist()), 4)

    for item in range(7):
        order = [v for v in np.lexsort((np.arange(7), -expected[item].round(6))) if expected[item, v] > 0][:4]
        assert sorted(nearest[item][nearest[item] >= 0].tolist()) == sorted(order)
        assert cosines[item] == pytest.approx(np.pad(expected[item, order], (0, 4 - len(order))), abs=1e-6)


def test_a_version_stores_them_as_whole_numbers() -> None:
    """A cosine of 1 is 65535. With M = 0 there are no neighbours, but a row for each item."""
    items, similarities = neighbours(clicks([[1, 1, 0], [1, 1, 1]]), 1)

    assert items.tolist() == [[1], [0], [0]]
    assert similarities.ravel().tolist() == [65535, 65535, round(65535 / 2**0.5)]
    assert neighbours(clicks([[1, 1, 0]]), 0).items.shape == (3, 0)
