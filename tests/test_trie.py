"""The trie of the paths in use, and the facts that a manifest has about the structure of paths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_store.errors import VersionDamaged
from index_store.path_facts import PathFacts
from retrieval.paths.structure import default_search
from retrieval.paths.trie import path_trie
from tests.conftest import Planted


def slow_trie(path_ids: list[int], depth: int, width: int) -> dict[tuple[int, ...], int]:
    """The place of every path, by its nodes."""
    return {
        tuple(path // width ** (depth - 1 - d) % width for d in range(depth)): place
        for place, path in enumerate(path_ids)
    }


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), depth=st.integers(1, 4), width=st.integers(1, 6))
def test_the_trie_leads_to_every_path_and_no_other(seed: int, depth: int, width: int) -> None:
    """Walked node by node from row 0, it ends at each path's place; a prefix that no path has leads to -1."""
    rng = np.random.default_rng(seed)
    path_ids = np.unique(rng.integers(width**depth, size=12))
    trie, paths = path_trie(path_ids, depth, width), slow_trie(path_ids.tolist(), depth, width)
    prefixes = {nodes[:length] for nodes in paths for length in range(depth)}
    assert len(trie) == len(prefixes) + 1
    assert (trie[-1] == -1).all()

    def walk(row: int, nodes: tuple[int, ...]) -> None:
        for node in range(width):
            longer = (*nodes, node)
            if len(longer) == depth:
                assert trie[row, node] == paths.get(longer, -1)
            elif longer in prefixes:
                walk(int(trie[row, node]), longer)
            else:
                assert trie[row, node] == -1

    walk(0, ())


def test_a_masked_trie_restricts_the_beam(planted: Planted) -> None:
    """Half of the first nodes are cut off: the beam has every path below the other half, and no other path."""
    structure, facts = planted.structure, planted.searcher.facts
    first_nodes = structure.index.path_ids // facts.width
    kept = np.isin(first_nodes, np.unique(first_nodes)[::2])
    masked = structure.trie.copy()
    masked[0, ~np.isin(np.arange(facts.width), first_nodes[kept])] = -1
    no_context = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32)

    beams = replace(structure, trie=masked).search([np.array([1, 5])], *no_context, facts.max_beam)

    assert set(beams.paths[beams.paths >= 0].tolist()) == set(np.flatnonzero(kept).tolist())


def test_a_trie_much_larger_than_its_paths_is_refused() -> None:
    """800 paths in 6.4 kB could ask for a table of 6.7 GB: 1,602 rows of a million nodes."""
    path_ids = np.arange(800) * 2**40

    with pytest.raises(VersionDamaged, match=r"1602 rows of 1048576"):
        path_trie(path_ids, 3, 2**20)


def test_the_default_search_grows_with_k() -> None:
    """Twice the k needs twice the paths, or, beyond the widest beam, more items of each path."""
    facts = PathFacts(depth=2, width=4, paths_per_item=1, paths=2, postings=3, beam=2, per_path=5, max_beam=8)

    assert default_search(facts, 5, 10) == (2, 5)
    assert default_search(facts, 10, 10) == (2, 5)
    assert default_search(facts, 20, 10) == (4, 5)
    assert default_search(facts, 80, 10) == (8, 10)


FACTS = {
    "depth": 2,
    "width": 4,
    "paths_per_item": 1,
    "paths": 2,
    "postings": 3,
    "beam": 2,
    "per_path": 5,
    "max_beam": 8,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beam": 9}, "at most max_beam, 8, found 9"),
        ({"depth": 0}, "depth: expected a whole number from 1, found 0"),
        ({"depth": 2.0}, "depth: expected a whole number"),
        ({"depth": True}, "depth: expected a whole number"),
        ({"colour": 1}, "structure: expected depth, width"),
        ({"depth": 40}, "do not fit in int64"),
        ({"depth": 10**12}, "do not fit in int64"),
        ({"width": 1, "depth": 63}, "do not fit in int64"),
        ({"width": 10**30}, "do not fit in int64"),
    ],
)
def test_facts_that_cannot_be_right_are_refused(change: dict[str, Any], message: str) -> None:
    """The error names the fact."""
    with pytest.raises(VersionDamaged, match=message):
        PathFacts.of(FACTS | change)


def test_a_missing_fact_is_refused() -> None:
    """The error lists all facts that are expected."""
    with pytest.raises(VersionDamaged, match=r"structure: expected depth, width, .*max_beam"):
        PathFacts.of({"depth": 2})
