"""The benchmarks' short form, so that they cannot rot. Their figures are read elsewhere; no time is judged here."""

from __future__ import annotations

import functools
import json

import pytest

from tests.benchmarks import bench_retrieval, bench_scaling
from tests.benchmarks.measure import take_turns


def test_contenders_take_turns() -> None:
    """One round to warm up, then as many as asked for; each contender before any is called again."""
    called: list[tuple[str, int]] = []

    def call(name: str, number: int) -> None:
        called.append((name, number))

    timed = take_turns({name: functools.partial(call, name) for name in "ab"}, 2, 3)

    assert called == [("a", 0), ("a", 1), ("b", 0), ("b", 1)] * 4
    assert all(0 <= one["p50_ms"] <= one["p99_ms"] for one in timed.values())


def test_retrieval(capsys: pytest.CaptureFixture[str]) -> None:
    """Over few items: as many are returned as by the rivals, and the last line is the figures."""
    bench_retrieval.print_figures(bench_retrieval.bench(3000, 3, 1))

    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["returned"] == figures["k"]
    assert set(figures["times_faster_than"]) == {"exact_scan", "hnsw", "ivf"}
    assert set(figures["steps_ms"]) == {"encode", "beam", "fetch", "rerank"}


def test_scaling(capsys: pytest.CaptureFixture[str]) -> None:
    """Two sizes: bytes an item are those of the formats (README, Memory)."""
    bench_scaling.print_figures(bench_scaling.bench([3000, 6000], 3, 1))

    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for row in figures["rows"]:
        assert row["vector_bytes_per_item"] == pytest.approx(2 * 64, abs=0.1)
        # 3 postings of 4 bytes, and a tenth of a path of 16; a header each
        assert row["path_bytes_per_item"] == pytest.approx(12 + 1.6, abs=0.2)
