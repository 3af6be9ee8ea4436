"""The first paths: like items together, and no path crowded."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.deep_retrieval.matching import SLACK
from trainer.deep_retrieval.tree import tree_paths

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
    # An item for whose last path there is no room draws all of them anew; with seven nodes a layer most items do.
    assert np.unique(paths, return_counts=True)[1].max() <= 1.5 * most + 1


def test_with_room_every_path_has_one_item() -> None:
    """Five times as many paths as postings, as width = auto gives."""
    paths = tree_paths(grouped_vectors(400), 3, 3, 19, 1, np.random.default_rng(0))

    assert len(np.unique(paths)) == paths.size


def test_leaves_have_as_many_items_as_asked_for() -> None:
    """With leaves of four a path has about four items, and these are of one group."""
    paths = tree_paths(grouped_vectors(480), 1, 3, 10, 4, np.random.default_rng(0))[:, 0]

    used, leaf, sizes = np.unique(paths, return_inverse=True, return_counts=True)
    assert sizes.mean() > 2.5
    assert sizes.max() <= math.ceil(SLACK * 4) + 1
    groups = np.zeros((len(used), GROUPS), int)
    np.add.at(groups, (leaf, np.arange(480) % GROUPS), 1)
    assert groups.max(axis=1).sum() > 0.9 * 480


def test_the_same_draw_gives_the_same_paths() -> None:
    """All chance comes from the generator."""
    first, second = (tree_paths(grouped_vectors(50), 2, 3, 5, 1, np.random.default_rng(3)) for _ in range(2))

    assert np.array_equal(first, second)


@pytest.mark.parametrize(("count", "width"), [(5, 3), (3, 3)])
def test_more_paths_than_first_nodes(count: int, width: int) -> None:
    """Then some of an item's paths start alike, and still differ."""
    paths = tree_paths(grouped_vectors(9), count, 3, width, 1, np.random.default_rng(0))

    assert (np.diff(np.sort(paths, axis=1), axis=1) > 0).all()
