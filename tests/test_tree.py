"""The first paths: similar items are on neighbouring paths, and no path is crowded."""

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


def test_similar_items_share_their_first_nodes() -> None:
    """With one node for each group, the items of a group have the same first node."""
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
    """No path has much more than its share of the items, whatever the vectors are, even if all are equal."""
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
    # An item that finds no room for its last path draws all its paths anew; with seven nodes a layer most items do.
    assert np.unique(paths, return_counts=True)[1].max() <= 1.5 * most + 1


def test_with_room_every_path_has_one_item() -> None:
    """There are five times as many paths as postings, as with width = auto."""
    paths = tree_paths(grouped_vectors(400), 3, 3, 19, 1, np.random.default_rng(0))

    assert len(np.unique(paths)) == paths.size


def test_leaves_have_as_many_items_as_asked_for() -> None:
    """With leaves of four, a path has about four items, nearly all of one group."""
    paths = tree_paths(grouped_vectors(480), 1, 3, 10, 4, np.random.default_rng(0))[:, 0]

    used, leaf, sizes = np.unique(paths, return_inverse=True, return_counts=True)
    assert sizes.mean() > 2.5
    assert sizes.max() <= math.ceil(SLACK * 4) + 1
    groups = np.zeros((len(used), GROUPS), int)
    np.add.at(groups, (leaf, np.arange(480) % GROUPS), 1)
    assert groups.max(axis=1).sum() > 0.9 * 480


def test_the_same_seed_gives_the_same_paths() -> None:
    """All randomness comes from the generator."""
    first, second = (tree_paths(grouped_vectors(50), 2, 3, 5, 1, np.random.default_rng(3)) for _ in range(2))

    assert np.array_equal(first, second)


@pytest.mark.parametrize(("count", "width"), [(5, 3), (3, 3)])
def test_as_many_paths_as_first_nodes_or_more(count: int, width: int) -> None:
    """Some of an item's paths may then share their first node, but no two are the same."""
    paths = tree_paths(grouped_vectors(9), count, 3, width, 1, np.random.default_rng(0))

    assert (np.diff(np.sort(paths, axis=1), axis=1) > 0).all()
