"""Short forms of the benchmarks, which `make bench` runs first to find a broken one in a minute. No time is judged."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from tests.benchmarks import (
    bench_gpu,
    bench_living,
    bench_retrieval,
    bench_scaling,
    bench_service,
    bench_training,
    plots,
)
from tests.benchmarks.measure import take_turns


def test_contenders_take_turns() -> None:
    """A round to warm up, then the rounds asked for; each has new requests and begins with another contender."""
    called: list[tuple[str, int]] = []

    def call(name: str, number: int) -> None:
        called.append((name, number))

    timed = take_turns({name: functools.partial(call, name) for name in "ab"}, 2, 3)

    rounds = [[called[4 * turn + place] for place in range(4)] for turn in range(4)]
    assert rounds[0] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert rounds[1] == [("b", 2), ("b", 3), ("a", 2), ("a", 3)]
    assert rounds[3] == [("b", 6), ("b", 7), ("a", 6), ("a", 7)]
    assert all(0 <= times["p50_ms"] <= times["p99_ms"] for times in timed.values())


def test_retrieval(capsys: pytest.CaptureFixture[str]) -> None:
    """With few items: k are returned, the last line has the figures, and the plot shows all contenders."""
    bench_retrieval.print_figures(bench_retrieval.bench(3000, 3, 1))

    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["returned"] == figures["k"]
    assert set(figures["times_faster_than"]) == {"exact_scan", "hnsw", "ivf"}
    assert set(figures["steps_ms"]) == {"encode", "beam", "fetch", "rerank"}
    contenders, steps = plots.draw(figures).axes
    assert _labels(contenders) == {"Deep Retrieval", "exact scan", "HNSW", "IVF"}
    assert _labels(steps) == {"ours", "arithmetic floor"}


def test_scaling(capsys: pytest.CaptureFixture[str]) -> None:
    """With two sizes: the bytes for each item follow from the formats (docs/sizing.md)."""
    bench_scaling.print_figures(bench_scaling.bench([3000, 6000], 3, 1))

    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    small, large = figures["rows"]
    for row in (small, large):
        assert row["vector_bytes_per_item"] == pytest.approx(2 * 64, abs=0.1)
    more = 6000 * large["path_bytes_per_item"] - 3000 * small["path_bytes_per_item"]
    # 3 postings of 4 bytes and a tenth of a path: 16 bytes, and at most a row of 100 entries in the trie's last table
    assert 12 + 1.6 <= more / 3000 <= 12 + 1.6 + 40 + 1
    times, _ = plots.draw(figures).axes
    assert list(np.asarray(times.lines[0].get_ydata())) == [small["p50_ms"], large["p50_ms"]]


def test_training(capsys: pytest.CaptureFixture[str]) -> None:
    """A small training: every pass has a rate, and the trained version is published."""
    bench_training.print_figures(bench_training.bench(600, 30_000))

    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures["per_second"]) == {"encoder_steps", "path_steps", "scoring", "descended_items"}
    assert min(figures["per_second"].values()) > 0
    assert set(figures["published"]) == {"fit_seconds", "version_seconds", "publish_seconds"}
    assert figures["ml1m_shape"]["per_second"]["scoring"] > 0
    passes, parts = plots.draw(figures).axes
    assert _labels(passes) == {"encoder steps", "path steps", "scoring", "descended items"}
    assert _labels(parts) == {"fit", "version", "publish"}


def test_service(capsys: pytest.CaptureFixture[str]) -> None:
    """All five services answer, at their peak and at half of it."""
    bench_service.print_figures(bench_service.bench(3000, 0.3, 1))

    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures["peak_per_second"]) == {"empty", "hnsw", "folder", "redis_resident", "redis_remote"}
    assert min(figures["peak_per_second"].values()) > 0
    assert all(0 < times["p50_ms"] <= times["p99_ms"] for times in figures["at_half_of_peak"].values())
    peaks, _ = plots.draw(figures).axes
    drawn = [bar.get_window_extent().width for bar in peaks.patches]
    assert np.argsort(drawn[::-1]).tolist() == np.argsort(list(figures["peak_per_second"].values())).tolist()


def test_living(capsys: pytest.CaptureFixture[str]) -> None:
    """Every put is found on both replicas, searches are measured with and without writes, and records are folded."""
    bench_living.print_figures(bench_living.bench(3000, 1500, 3000, 50, 1))

    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("put", "same_replica", "other_replica", "quiet", "writing"):
        assert 0 < figures[name]["p50_ms"] <= figures[name]["p99_ms"]
    assert figures["applied_per_second"] > 0
    assert figures["fold_seconds"] > 0
    times, rest = plots.draw(figures).axes
    assert _labels(times) >= {"search, no writes", "search, 1,000 writes a second"}
    assert _labels(rest) == {"fold", "publish"}


def test_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU the benchmark says so; its measurement works with the processor in place of the GPU."""
    monkeypatch.setattr("sys.argv", ["bench_gpu"])
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    bench_gpu.main()
    assert "no GPU here" in capsys.readouterr().out

    figures = bench_gpu.bench(3000, (1, 4), dict.fromkeys(("gpu", "cpu"), "CPUExecutionProvider"))
    bench_gpu.print_figures(figures)
    assert [row["batch"] for row in figures["batches"]] == [1, 4]
    batches, _ = plots.draw(json.loads(capsys.readouterr().out.splitlines()[-1])).axes
    assert [line.get_label() for line in batches.lines] == ["gpu", "cpu"]


def test_plots_are_drawn_from_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """A file of several benchmarks' output gives a PNG for each, except for one that measured nothing."""
    machine = {"processor": "any", "cores": 2, "python": "3"}
    row = {"items": 10, "p50_ms": 1.0, "publish_seconds": 1.0, "load_seconds": 1.0, "open_seconds": 1.0}
    printed = [{"benchmark": "scaling", "machine": machine, "rows": [row]}, {"benchmark": "gpu", "batches": []}]
    output = tmp_path / "bench.txt"
    output.write_text("\n".join(["a table", *map(json.dumps, printed)]))
    monkeypatch.setattr("sys.argv", ["plots", str(output), "--folder", str(tmp_path / "drawn")])

    assert plots.main() == 0
    assert [file.name for file in (tmp_path / "drawn").iterdir()] == ["scaling.png"]
    assert (tmp_path / "drawn" / "scaling.png").read_bytes().startswith(b"\x89PNG")

    output.write_text("a table\n")
    assert plots.main() == 1
    assert "has no line of JSON" in capsys.readouterr().err
    output.unlink()
    assert plots.main() == 1
    assert "No such file" in capsys.readouterr().err


def _labels(axes: Axes) -> set[str]:
    return {label.get_text() for label in axes.get_yticklabels()}
