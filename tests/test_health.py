"""Index health by hand, and the gate that refuses what has collapsed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index_store.version import Version
from tests.conftest import SMALL, Planted
from tests.planted import facts_of_version, parts_of_version
from trainer.assignment import Occupancy
from trainer.errors import ExportRefused
from trainer.export import make_version, open_session
from trainer.health import churn, collapse, measure_health
from trainer.progress import SilentProgress
from trainer.requests import history_requests


def version_of(paths: dict[int, list[int]], item_ids: list[int]) -> Version:
    postings = sum(map(len, paths.values()))
    facts = facts_of_version(items=len(item_ids), paths=len(paths), postings=postings)
    return Version.build(parts_of_version(paths, item_ids=item_ids), **facts)


def test_churn_by_hand() -> None:
    """Items 10, 20, 30 were on paths 3, 7, 3; now 10 is on 3, 20 on 5, and 30 is gone: one of two has moved."""
    before = version_of({3: [0, 2], 7: [1]}, [10, 20, 30])

    assert churn(np.array([[3], [5]]), np.array([10, 20]), 4, 2, before) == 0.5
    assert churn(np.array([[7], [3]]), np.array([20, 40]), 4, 2, before) == 0.0  # 40 is new, which is no move
    assert churn(np.array([[3]]), np.array([99]), 4, 2, before) is None
    assert churn(np.array([[3]]), np.array([10]), 8, 2, before) is None  # other nodes, other paths


def test_health_of_the_planted_index(planted: Planted) -> None:
    """Reach by a slow count; the perplexities lie between 1 and K."""
    version, config, split = planted.version, planted.config, planted.split
    health = version.manifest.metrics["paths"]
    session = open_session(bytes(version.parts["model.onnx"]))
    requests = history_requests(planted.dataset, split, 1000, 0)
    read = set()
    for beams in requests.beams(session, config.history, version.manifest.beam):
        for row in beams.path_ids:
            read |= set(version.index.lookup(row, version.manifest.per_path).items.tolist())

    assert health["reach"] == len(read) / 40
    assert health["reach_users"] == len(split.train_users)
    assert len(health["perplexity"]) == 2
    assert all(1 <= perplexity <= 6 for perplexity in health["perplexity"])
    assert health["churn"] is None
    assert health["previous"] is None


def test_churn_against_itself_is_none_at_all(planted: Planted) -> None:
    """The same paths again."""
    session = open_session(bytes(planted.version.parts["model.onnx"]))
    requests = history_requests(planted.dataset, planted.split, 10, 0)
    health = measure_health(
        planted.version.index, session, requests, planted.config, (2, 5), planted.trained.paths, 6, planted.version,
        planted.dataset.item_ids,
    )  # fmt: skip

    assert health.churn == 0
    assert "0% of the postings are new" in health.describe()


def test_a_collapse_is_named() -> None:
    """Nearly all of 1,000 items on one path: too large, and too few bits. Three items a path: nothing to say."""
    collapsed = np.zeros((1000, 1), np.int64)
    collapsed[:50, 0] = np.arange(50)
    config = SMALL.replace(paths_per_item=1, k=10)

    largest, entropy = collapse(Occupancy.of(collapsed), config)

    assert "the largest path holds 951 of 1000 items, expected 100 at most" in largest
    assert "gate_entropy" in entropy
    assert collapse(Occupancy.of(np.arange(1000)[:, None] // 3), config) == []


def test_the_gate_refuses_unless_told_otherwise(planted: Planted, tmp_path: Path) -> None:
    """What every user's request reads is a part of the catalogue; a gate that asks for more refuses."""
    config = planted.config.replace(gate_reach=1.0, beam=1, per_path=1)
    arguments = config, planted.dataset, planted.split, planted.trained, SilentProgress()

    with pytest.raises(ExportRefused, match=r"gate_reach = 100.0% at least.*--allow-collapsed"):
        make_version(*arguments)
    assert make_version(*arguments, allow_collapsed=True).manifest.beam == 1
