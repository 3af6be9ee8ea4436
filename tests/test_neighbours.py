"""The most similar items of each item."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from retrieval.context import ContextSchema
from trainer.data import neighbours as neighbours_module
from trainer.data.context import UserContext
from trainer.data.dataset import Dataset
from trainer.data.neighbours import following_items, nearest_items
from trainer.data.split import Split
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


def sequences(*items: list[int]) -> tuple[Dataset, Split]:
    """Users with these items, all trained on; of the last user only the first two."""
    lengths = np.array(list(map(len, items)))
    count = 1 + max(map(max, items))
    context = UserContext(ContextSchema(), np.zeros((len(items), 0), np.int64), np.zeros((len(items), 0), np.float32))
    flat, offsets = np.concatenate(items).astype(np.int32), np.cumsum([0, *lengths])
    dataset = Dataset(np.arange(count), np.arange(len(items)), flat, offsets, context)
    trained = np.append(lengths[:-1], 2)
    return dataset, Split(np.arange(len(items)), np.arange(0), trained, lengths, np.arange(0), lengths)


def test_the_followers_by_hand() -> None:
    """Item 1 follows 0 at once and twice, 2 follows 0 with one between; what training does not see does not count."""
    dataset, split = sequences([0, 1, 2], [0, 1, 3])

    items, values = following_items(dataset, split, 3)

    largest = 1 + 1 / 2 + 1 / 3  # what a click can give at most
    assert items.tolist() == [[1, 2, -1], [2, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert values[0] == pytest.approx([2 / 7 / largest, 1 / 2 / 42**0.5 / largest, 0])


def test_an_item_does_not_follow_itself_and_none_follows_across_users() -> None:
    """A repeated item has no followers, nor has the last item of a user."""
    items, _ = following_items(*sequences([0, 0, 0], [1, 0]), 2)

    assert items.tolist() == [[-1, -1], [0, -1]]


def test_a_version_stores_them_as_whole_numbers() -> None:
    """A cosine of 1 is 65535. With M = 0 there are no neighbours, but a row for each item."""
    dataset, split = sequences([0, 1], [0, 1, 2])

    items, similarities = neighbours(dataset, split, 1)

    assert items[0].tolist() == [[1], [0], [-1]]
    assert items[1].tolist() == [[1], [-1], [-1]]
    assert similarities[0].ravel().tolist() == [65535, 65535, 0]
    assert similarities[1].ravel().tolist() == [round(65535 * 2 / 7 / (1 + 1 / 2 + 1 / 3)), 0, 0]
    assert neighbours(dataset, split, 0).items.shape == (2, 3, 0)
