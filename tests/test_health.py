"""The health of an index computed by hand, and the gate that refuses a collapsed index."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from index_store.version import Version
from tests.conftest import SMALL, Planted
from tests.planted import facts_of_version, parts_of_version
from tests.silent_progress import SilentProgress
from trainer.data.requests import history_requests
from trainer.deep_retrieval.occupancy import Occupancy, collapse
from trainer.errors import ExportRefused
from trainer.publish.health import Health, churn
from trainer.publish.version import make_version


def version_of(paths: dict[int, list[int]], item_ids: list[int]) -> Version:
    postings = sum(map(len, paths.values()))
    facts = facts_of_version(items=len(item_ids), paths=len(paths), postings=postings)
    return Version.build(parts_of_version(paths, item_ids=item_ids), **facts)


def test_churn_by_hand() -> None:
    """Items 10 and 20 shared the first node 0 (paths 0 to 3 of 16), 30 and 40 the first node 2."""
    before = version_of({0: [0], 3: [1], 9: [2], 11: [3]}, [10, 20, 30, 40])
    ids = np.array([10, 20, 30, 40])

    # The same pairs under other numbers; then 10 and 20 apart; then all apart; then one known item; then none.
    assert churn(np.array([[12], [15], [4], [5]]), ids, 4, before) == 0
    assert churn(np.array([[12], [0], [4], [5]]), ids, 4, before) == pytest.approx(0.5, abs=0.01)
    assert churn(np.array([[0], [4], [8], [12]]), ids, 4, before) == 1
    assert churn(np.array([[0], [4]]), np.array([10, 99]), 4, before) is None
    assert churn(np.array([[0]]), np.array([99]), 4, before) is None


def test_one_common_first_node_is_enough() -> None:
    """Two items with two paths each are still neighbours if they share one first node."""
    before = version_of({0: [0, 1]}, [10, 20])

    assert churn(np.array([[0, 4], [8, 5]]), np.array([10, 20]), 4, before) == 0


def test_health_of_the_planted_index(planted: Planted) -> None:
    """Reach equals a slow count, and the perplexities lie between 1 and K."""
    version, split = planted.version, planted.split
    health = version.manifest.metrics["paths"]
    requests = history_requests(planted.dataset, split, 1000, 0)
    read = set()
    for beams in requests.beams(planted.structure, planted.searcher.facts.beam):
        for row in beams.paths:
            read |= set(planted.index.read(row, planted.searcher.facts.per_path).items.tolist())

    assert health["reach"] == len(read) / 40
    assert health["reach_users"] == len(split.train_users)
    assert len(health["perplexity"]) == 2
    assert all(1 <= perplexity <= 6 for perplexity in health["perplexity"])
    assert health["churn"] is None
    assert health["previous"] is None


def test_a_retrained_index_is_compared_with_the_one_before(planted: Planted, other: Planted) -> None:
    """Compared with itself an index has no churn; another seed gives other neighbours."""
    version = make_version(
        planted.config, planted.dataset, planted.split, planted.trained, SilentProgress(), planted.version
    )

    assert version.manifest.metrics["paths"]["churn"] == 0
    assert version.manifest.fingerprint == planted.version.manifest.fingerprint  # measurements are no part of it
    from_another_seed = churn(planted.trained.paths, np.asarray(planted.version.item_ids), 6, other.version)
    assert from_another_seed is not None
    assert 0 < from_another_seed < 1


def test_few_users_cannot_reach_much() -> None:
    """The gate compares reach with the most that as many reads could find."""
    occupancy = Occupancy.of(np.arange(1000)[:, None])
    few = Health(occupancy, [10.0], 0.02, 1, 20, 1000)  # 20 reads find 2 % at most
    many = dataclasses.replace(few, reads=100_000)

    assert few.faults(SMALL.replace(paths_per_item=1)) == []
    (fault,) = many.faults(SMALL.replace(paths_per_item=1))
    assert "2.0% of the clicked items are in reach of 1 training users" in fault


def test_a_collapse_is_named() -> None:
    """With 951 of 1,000 items on one path, size and entropy are faults; with three items a path there is no fault."""
    collapsed = np.zeros((1000, 1), np.int64)
    collapsed[:50, 0] = np.arange(50)
    config = SMALL.replace(paths_per_item=1, k=10)

    largest, entropy = collapse(Occupancy.of(collapsed), config)

    assert "the largest path holds 951 of 1000 items, expected at most 100" in largest
    assert "gate_entropy" in entropy
    assert collapse(Occupancy.of(np.arange(1000)[:, None] // 3), config) == []


def test_the_gate_refuses(planted: Planted) -> None:
    """Requests that read one item of one path do not reach the whole catalogue, which the gate asks for here."""
    config = planted.config.replace(gate_reach=1.0, beam=1, per_path=1)

    with pytest.raises(ExportRefused, match=r"gate_reach = 100.0% of .*--allow-collapsed"):
        make_version(config, planted.dataset, planted.split, planted.trained, SilentProgress())
