"""The evaluation of a version on planted data, whose right answers are known."""

from __future__ import annotations

import dataclasses
import json

import pytest

from index_store.version import Version
from retrieval.paths.rerank import SOFTMAX
from retrieval.searcher import Searcher
from tests.conftest import SMALL, Planted
from tests.planted import GROUPS
from tests.silent_progress import SilentProgress
from trainer.errors import DataError
from trainer.evaluate.evaluate import evaluate, require_same_data


def test_planted_groups_are_found(planted: Planted) -> None:
    """Nearly every answer is from the user's group: k = 5 of its 6 new items, and 5 of the 6 are right.

    Which 5 is chance, so with 20 users the ratio to brute force differs from 1 by up to 0.07 on different processors.
    """
    result = evaluate(planted.searcher, planted.dataset, planted.split, 5, SilentProgress())

    assert result["deep_retrieval"]["precision"] > 0.75  # 5/6 from knowing the group alone
    assert result["ratio_to_brute_force"]["f_measure"] > 0.9
    assert result["popularity"]["f_measure"] < result["deep_retrieval"]["f_measure"] / 2
    assert result["item_cf"]["f_measure"] > 0.7
    assert result["deep_retrieval"]["candidates_mean"] <= 10 * 5
    assert result["users"] == 20


def test_the_document_has_exactly_the_documented_keys(planted: Planted) -> None:
    """Other programs read the document."""
    result = evaluate(planted.searcher, planted.dataset, planted.split, 5, SilentProgress())
    ratios = {"precision", "recall", "f_measure"}
    measures = ratios | {"hit_rate", "ndcg"}

    assert set(result) == {
        "k", "users", "version", "deep_retrieval", "brute_force", "item_cf", "popularity", "ratio_to_brute_force",
        "structural_recall", "paths", "unfiltered",
    }  # fmt: skip
    assert set(result["deep_retrieval"]) == measures | {"candidates_mean", "candidates_p99"}
    assert set(result["paths"]) == {"used", "largest", "mean_size", "gini"}
    for document in (result, result["unfiltered"]):
        assert set(document["ratio_to_brute_force"]) == ratios
        for name in ("brute_force", "item_cf", "popularity"):
            assert set(document[name]) == measures


def test_with_every_path_read_it_equals_brute_force(planted: Planted) -> None:
    """Reading the whole index with the softmax score gives brute force's own figures, to the last digit."""
    structure = {**planted.version.manifest.structure, "beam": 36, "per_path": 1000}
    everything = dataclasses.replace(planted.version.manifest, structure=structure)
    softmax = json.dumps(SOFTMAX.to_json()).encode()
    version = Version(everything, {**planted.version.parts, "reranker.json": softmax})

    result = evaluate(Searcher.open(version), planted.dataset, planted.split, 5, SilentProgress())

    assert result["structural_recall"] == 1
    assert set(result["ratio_to_brute_force"].values()) == {1.0}
    assert set(result["unfiltered"]["ratio_to_brute_force"].values()) == {1.0}


def test_files_with_other_items_are_refused(planted: Planted) -> None:
    """Evaluating on other files would silently shift every index."""
    import dataclasses

    fewer = dataclasses.replace(planted.dataset, item_ids=planted.dataset.item_ids[1:])

    with pytest.raises(DataError, match="not the same"):
        require_same_data(planted.version, fewer, SilentProgress())


def test_the_group_is_what_was_planted(planted: Planted) -> None:
    """A user's items all have the user's remainder, which the other tests rely on."""
    for user in range(10):
        items = planted.dataset.item_ids[planted.dataset.sequence(user)]

        assert set((items % GROUPS).tolist()) == {user % GROUPS}
    assert SMALL.k == 5
