"""Pace predicts how long a search takes, and how wide its beam may be to end in time."""

from __future__ import annotations

import time

import pytest

from service.serving.pace import FALL, RISE, Pace


def test_a_prediction_is_the_sum_of_its_parts() -> None:
    """One second a search, two a query, three a path: three queries of four paths take 1 + 3 (2 + 12)."""
    assert Pace(1.0, 2.0, 3.0).seconds(3, 4) == 43.0


def test_the_beam_is_halved_until_the_search_fits() -> None:
    """At 1 s a path, a search may take 0.8 of the time left; the beam is at least 1 and at most what was asked for."""
    pace = Pace(0.0, 0.0, 1.0)

    assert [pace.affordable(1, 50, left) for left in (100.0, 62.5, 62.0, 31.0, 4.0, 0.1)] == [50, 50, 25, 12, 3, 1]
    assert pace.affordable(2, 50, 62.5) == 25


def test_the_factor_settles_where_a_tenth_takes_longer() -> None:
    """When searches take 1 to 100 times the prediction, evenly spread, the factor settles near 90."""
    pace = Pace(1.0, 0.0, 0.0)
    for seconds in [7 * i % 100 + 1 for i in range(2000)]:
        pace.learn(1, 1, float(seconds))

    assert pace.seconds(1, 1) == pytest.approx(90, rel=0.15)
    assert pytest.approx(FALL**9, rel=0.01) == RISE


def test_the_costs_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches that take 3 s each, 2 s a query and 0.5 s a path are measured to cost just that."""
    now = 0.0

    def search(queries: int, beam: int) -> None:
        nonlocal now
        now += 3 + queries * (2 + 0.5 * beam)

    monkeypatch.setattr(time, "perf_counter", lambda: now)

    pace = Pace.measured(search, 50)

    assert pace.seconds(1, 1) == pytest.approx(5.5)
    assert pace.seconds(10, 20) == pytest.approx(123)
