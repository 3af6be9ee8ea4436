"""The first paths: like items together, and no place crowded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.deep_retrieval.tree import SLACK, _spread, tree_paths
from trainer.encoders.spectral import spectral_vectors

GROUPS = 6


def grouped_vectors(items: int, seed: int = 0) -> np.ndarray:
    """Item i is near the centre of group i % GROUPS, and the centres are far from each other."""
    noise = np.random.default_rng(seed).normal(size=(items, GROUPS)).astype(np.float32)
    return 10 * np.eye(GROUPS, dtype=np.float32)[np.arange(items) % GROUPS] + noise / 10


def test_like_items_share_their_first_nodes() -> None:
    """With a node a group, an item's first path starts where its group's do."""
    paths = tree_paths(grouped_vectors(120), 1, 3, GROUPS, 1, np.random.default_rng(0))
    first = paths[:, 0] // GROUPS**2

    together = first[:, None] == first
    same_group = np.arange(120)[:, None] % GROUPS == np.arange(120) % GROUPS
    assert (together & same_group).sum() > 0.9 * same_group.sum()


@given(
    items=st.integers(1, 300),
    count=st.integers(1, 4),
    depth=st.integers(1, 4),
    width=st.integers(4, 12),
    seed=st.integers(0, 9),
    equal=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_item_has_different_paths_and_no_path_is_crowded(
    items: int, count: int, depth: int, width: int, seed: int, equal: bool
) -> None:
    """Whatever the vectors are, even all the same: no path has much more than its share."""
    vectors = np.zeros((items, 5), np.float32) if equal else grouped_vectors(items, seed)
    paths = tree_paths(vectors, count, depth, width, 1, np.random.default_rng(seed))

    assert paths.shape == (items, count)
    assert paths.min() >= 0
    assert paths.max() < width**depth
    assert (np.diff(np.sort(paths, axis=1), axis=1) > 0).all()
    most = count * math.ceil(SLACK * items / min(width, items))
    for _ in range(depth - 2):
        most = math.ceil(SLACK * most / min(width, most))
    if depth > 1:
        most = math.ceil(most / width)
    # An item that found no room for its last path draws all of them; with a layer of seven nodes that is most items.
    assert np.unique(paths, return_counts=True)[1].max() <= 1.5 * most + 1


def test_with_room_every_path_has_one_item() -> None:
    """Five times as many paths as postings, as width = auto gives."""
    paths = tree_paths(grouped_vectors(400), 3, 3, 19, 1, np.random.default_rng(0))

    assert len(np.unique(paths)) == paths.size


def test_leaves_have_as_many_items_as_asked_for() -> None:
    """And these are alike: with leaves of four, paths of four or so items of one group."""
    paths = tree_paths(grouped_vectors(480), 1, 3, 10, 4, np.random.default_rng(0))[:, 0]

    used, leaf, sizes = np.unique(paths, return_inverse=True, return_counts=True)
    assert sizes.mean() > 2.5
    assert sizes.max() <= math.ceil(SLACK * 4) + 1
    groups = np.zeros((len(used), GROUPS), int)
    np.add.at(groups, (leaf, np.arange(480) % GROUPS), 1)
    assert groups.max(axis=1).sum() > 0.9 * 480


def test_the_same_draw_gives_the_same_paths() -> None:
    """All chance comes from the generator."""
    one, two = (tree_paths(grouped_vectors(50), 2, 3, 5, 1, np.random.default_rng(3)) for _ in range(2))

    assert np.array_equal(one, two)


@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 20),
    count=st.integers(1, 3),
    costs=st.sampled_from([1, 3, 100, 10**6]),
    seed=st.integers(0, 999),
)
@settings(max_examples=100, deadline=None)
def test_spreading_is_what_asking_in_turn_gives(rows: int, columns: int, count: int, costs: int, seed: int) -> None:
    """The slow twin, also where many costs are equal, and many rows are refused again and again."""
    rng = np.random.default_rng(seed)
    cost = rng.integers(costs, size=(rows, columns)).astype(np.float32) + rng.integers(costs, size=columns)

    found = _spread(cost.copy(), min(count, columns))

    for place in range(min(count, columns)):
        assert found[:, place].tolist() == ask_in_turn(cost)
        cost[np.arange(rows), found[:, place]] = 1e30


def ask_in_turn(cost: np.ndarray) -> list[int]:
    """Rows ask the cheapest column that has room; it takes those to whom it is cheapest."""
    rows, columns = cost.shape
    capacity = math.ceil(SLACK * rows / columns)
    holders: list[list[int]] = [[] for _ in range(columns)]
    waiting = list(range(rows))
    while waiting:
        asked: dict[int, list[int]] = {}
        free = [c for c in range(columns) if len(holders[c]) < capacity]
        for row in waiting:
            asked.setdefault(min(free, key=lambda c: cost[row, c]), []).append(row)
        waiting = []
        for column, asking in asked.items():
            asking.sort(key=lambda row: cost[row, column])
            room = capacity - len(holders[column])
            holders[column] += asking[:room]
            waiting += asking[room:]
        waiting.sort()
    return [next(c for c in range(columns) if row in holders[c]) for row in range(rows)]


def test_spreading_gives_each_row_other_columns() -> None:
    """Twice a cheap one, never the same."""
    cost = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2]], np.float32)

    first, second = _spread(cost, 2).T

    assert sorted(np.bincount(first, minlength=3)) == [0, 1, 2]
    assert (first != second).all()


@pytest.mark.parametrize(("count", "width"), [(5, 3), (3, 3)])
def test_more_paths_than_first_nodes(count: int, width: int) -> None:
    """Then some of an item's paths start alike, and still differ."""
    paths = tree_paths(grouped_vectors(9), count, 3, width, 1, np.random.default_rng(0))

    assert (np.diff(np.sort(paths, axis=1), axis=1) > 0).all()


def test_spectral_vectors_are_the_singular_vectors() -> None:
    """By numpy's own decomposition: inner products of items, which no sign or rotation of the axes changes."""
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
    """Two kinds of users, two kinds of items; one item nobody clicked is at the origin."""
    clicked = np.zeros((20, 9), np.float32)
    clicked[:10, :4] = clicked[10:, 4:8] = 1

    vectors = spectral_vectors(scipy.sparse.csr_array(clicked), 4, 0)

    close = vectors @ vectors.T
    assert (close[:4, :4] > 0.99).all()
    assert (close[:4, 4:8] < -0.99).all()
    assert not vectors[8].any()


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (2, 3)])
def test_fewer_users_or_items_than_dimensions(shape: tuple[int, int]) -> None:
    """The dimensions that are left over stay at zero."""
    vectors = spectral_vectors(scipy.sparse.csr_array(np.ones(shape, np.float32)), 8, 0)

    assert vectors.shape == (shape[1], 8)
    assert np.isfinite(vectors).all()
