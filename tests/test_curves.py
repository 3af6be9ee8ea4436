"""The shares found at equal reads."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import Planted
from tests.silent_progress import SilentProgress
from trainer.data.measures import new_items
from trainer.data.requests import held_out_requests, training_requests
from trainer.evaluate import curves
from trainer.evaluate.curves import READS, shares_by_reads
from trainer.evaluate.evaluate import MeasuredVersion, Reads
from trainer.publish.frontier import Point


def test_the_shares_of_a_search_counted_one_by_one(planted: Planted) -> None:
    """The slow twin: the sets of items on each searched path, compared with brute force's answer and with the truth."""
    requests = held_out_requests(planted.dataset, planted.split)
    measured = MeasuredVersion(planted.searcher, requests, 5, SilentProgress())
    index, exact, truths = planted.index, measured.brute_force.filtered, new_items(requests)
    read = held = found = 0
    for row, history in enumerate(requests.histories):
        beams = planted.structure.search([history], requests.categories[[row]], requests.numbers[[row]], 3)
        lists = [index.path_items[index.path_offsets[path] :][:2] for path in beams.paths[0]]
        lists = [
            items[: index.sizes[path]].tolist() for items, path in zip(lists, beams.paths[0].tolist(), strict=True)
        ]
        items = {item for listed in lists for item in listed}
        read += sum(map(len, lists))
        held += len(items & set(exact[row].tolist()))
        found += len(items & set(truths[row].tolist()))

    reads = measured.reads(5, 3, 2)

    assert reads.mean == read / len(requests.histories)
    assert reads.exact == pytest.approx(held / sum(map(len, exact)))
    assert reads.truths == pytest.approx(found / sum(map(len, truths)))


def test_shares_are_interpolated_to_the_stated_reads(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches that read 10 and 30 items and find 0.4 and 0.6 find 0.5 at 20 reads, and 0.6 from 30 on."""
    requests = held_out_requests(planted.dataset, planted.split)
    measured = MeasuredVersion(planted.searcher, requests, 5, SilentProgress())
    points = [Point(0.3, 9.0, 1, 1), Point(0.7, 19.0, 2, 1), Point(0.8, 24.0, 3, 1)]
    monkeypatch.setattr(curves, "frontier", lambda *_: points)
    found = {1: Reads(10, 0.4, 0.2), 2: Reads(30, 0.6, None), 3: Reads(30, 0.6, None)}
    monkeypatch.setattr(measured, "reads", lambda _, beam, __: found[beam])

    curve = shares_by_reads(measured, training_requests(planted.dataset, planted.split, 50, 0), planted.config)

    assert [point["reads"] for point in curve] == list(READS)
    assert curve[0]["reads"] == 20
    assert curve[0]["brute_force"] == pytest.approx(0.5)
    assert curve[0]["truths"] is None
    assert curve[-1]["brute_force"] == 0.6


def test_a_curve_never_falls(planted: Planted) -> None:
    """More reads find more, and all shares are fractions."""
    requests = held_out_requests(planted.dataset, planted.split)
    measured = MeasuredVersion(planted.searcher, requests, 5, SilentProgress())

    curve = shares_by_reads(measured, training_requests(planted.dataset, planted.split, 50, 0), planted.config)

    for share in ("brute_force", "truths"):
        known = [point[share] for point in curve if point[share] is not None]
        assert known
        assert (np.diff(known) >= 0).all()
        assert 0 <= known[0] <= known[-1] <= 1
