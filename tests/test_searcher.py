"""Opening a version: what no request could use is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from index_store.errors import VersionDamaged, VersionIncompatible
from retrieval.changes import Evidence
from retrieval.paths.placing import PlacingFacts
from retrieval.searcher import Searcher
from tests.conftest import Planted
from tests.planted import GROUPS


def opened(planted: Planted, structure: dict[str, Any], **head: Any) -> Searcher:
    """The planted version with other facts, opened."""
    facts = {**planted.version.manifest.structure, **structure}
    manifest = dataclasses.replace(planted.version.manifest, structure=facts, **head)
    return Searcher.open(dataclasses.replace(planted.version, manifest=manifest))


@pytest.mark.parametrize(("name", "limit"), [("k", 1000), ("history", 1000)])
def test_a_version_asks_for_no_more_than_a_request_may(planted: Planted, name: str, limit: int) -> None:
    """A default k that no request may name, or a longer history, is refused; the limit itself is allowed."""
    opened(planted, {}, **{name: limit})
    with pytest.raises(VersionDamaged, match=f"{name}: expected at most {limit}, found {limit + 1}"):
        opened(planted, {}, **{name: limit + 1})


def test_the_widest_beam_is_the_widest_that_was_tried(planted: Planted) -> None:
    """A model is tried with 256 paths, so a version that would widen further is refused."""
    opened(planted, {"max_beam": 256})
    with pytest.raises(VersionDamaged, match="max_beam: expected at most 256, found 257"):
        opened(planted, {"max_beam": 257})


def test_another_kind_is_incompatible(planted: Planted) -> None:
    """The error names the kind and says what to do."""
    with pytest.raises(VersionIncompatible, match="kind 'graph', but this release opens paths only; upgrade it"):
        opened(planted, {}, kind="graph")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"users": "x"}, "expected users, matrix, items, length and bias"),
        ({"matrix": [[1.0]]}, "expected vectors of"),
        ({"users": [1.0]}, "expected vectors of"),
        ({"bias": 1e39}, "not finite"),
        ({"length": "long"}, "expected users"),
    ],
)
def test_facts_about_new_items_that_are_wrong(planted: Planted, wrong: dict[str, Any], message: str) -> None:
    """The version is refused, because it could place no item."""
    facts = planted.version.document("placing.json") | wrong
    if wrong == {"bias": 1e39}:
        facts["bias"] = float("inf")
    with pytest.raises(VersionDamaged, match=message):
        PlacingFacts.from_json(facts, planted.version.array("feature_vectors.npy"))


def test_where_a_new_item_is_placed(planted: Planted) -> None:
    """On paths that its users are likely to walk: those of items of their group. Its vector has the usual length."""
    searcher = planted.searcher
    group = [item for item in planted.dataset.item_ids.tolist() if item % GROUPS == 1]
    evidence = [Evidence([group[:3], group[3:6]]), Evidence(like=group[:2]), Evidence([[999]], [998])]
    by_clicks, by_like, by_nothing = searcher.place(evidence)

    assert [p.placed_by for p in (by_clicks, by_like, by_nothing)] == ["clicks", "like", "none"]
    own = {path for item in group for path in searcher.paths_of(item)}
    for placement in (by_clicks, by_like):
        assert 1 <= len(placement.paths) <= searcher.facts.paths_per_item
        assert set(placement.paths) & own
        assert set(placement.neighbours.items) <= set(group)
    lengths = np.linalg.norm(planted.index.item_vectors.astype(float), axis=1)
    assert np.linalg.norm(by_clicks.vector.astype(float)) == pytest.approx(lengths.mean(), rel=0.1)
    assert by_clicks.follows.items[0] in (group[2], group[5])
    assert by_nothing.paths == []


def test_new_items_avoid_each_others_paths(planted: Planted) -> None:
    """Equal items that are put together are spread over paths."""
    group = [item for item in planted.dataset.item_ids.tolist() if item % GROUPS == 1]
    placements = planted.searcher.place([Evidence([group[:4]])] * 6)
    used = [path for placement in placements for path in placement.paths]
    assert len(set(used)) > len(placements[0].paths)
