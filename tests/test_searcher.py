"""Opening a version: what no request could use is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from index_store.errors import VersionDamaged, VersionIncompatible
from retrieval.searcher import Searcher
from tests.conftest import Planted


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
