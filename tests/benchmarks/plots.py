"""Plots of the benchmarks' output, one for each benchmark: retrieval.png, scaling.png, service.png and so on.

make bench | tee bench.txt; python -m tests.benchmarks.plots bench.txt [--folder .]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from trainer.benchmark.plots import EXACT, OURS, RIVAL

SHADES = ("#12456f", "#1f6fb4", "#6aa9dd", "#b5d4ee")  # of the steps of a request
NAMES = {
    "deep_retrieval": "Deep Retrieval",
    "exact_scan": "exact scan",
    "hnsw": "HNSW",
    "ivf": "IVF",
    "empty": "answers fixed bytes",
    "folder": "ours, folder",
    "redis_resident": "ours, Redis resident",
    "redis_remote": "ours, Redis remote",
}


def main() -> int:
    """Draw all plots. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a file of what one benchmark or all of them printed")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the plots go; default here")
    options = parser.parse_args()
    try:
        benchmarks = list(read(options.output))
        options.folder.mkdir(parents=True, exist_ok=True)
        for figures in benchmarks:
            file = options.folder / f"{figures['benchmark']}.png"
            draw(figures).savefig(file, dpi=110)
            print(file)
    except (OSError, UnicodeDecodeError) as error:
        print(f"plots: {error}", file=sys.stderr)
        return 1
    if not benchmarks:
        print(f"plots: {options.output} has no line of JSON as the benchmarks print it last", file=sys.stderr)
    return 0 if benchmarks else 1


def read(output: Path) -> Iterator[dict[str, Any]]:
    """The figures of each benchmark in a file of their output, except those that measured nothing."""
    for line in output.read_text().splitlines():
        if line.startswith('{"benchmark"'):
            figures = json.loads(line)
            if figures.get("batches", True):  # empty if there was no GPU
                yield figures


def draw(figures: dict[str, Any]) -> Figure:
    """The plot of one benchmark."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    DRAWN[figures["benchmark"]](figures, left, right)
    machine = figures["machine"]
    figure.suptitle(f"bench_{figures['benchmark']}: {machine['processor']}, {machine['cores']} cores", fontsize=10)
    return figure


def retrieval(figures: dict[str, Any], left: Axes, right: Axes) -> None:
    """The time of each contender, and the steps of ours beside it."""
    times = figures["milliseconds"]
    names = list(times)[::-1]
    _dots(left, [NAMES[name] for name in names], [times[name]["p50_ms"] for name in names], "{:.2f}", _colours(names))
    left.set_xlabel(f"ms a request, median; {figures['items']:,} items, one thread")
    start = 0.0
    for (name, took), shade in zip(figures["steps_ms"].items(), SHADES, strict=True):
        right.barh(["ours"], [took], left=start, color=shade, label=f"{name} {took:.3f}")
        start += took
    right.barh(["arithmetic floor"], [figures["floor"]["ms"]], color=EXACT, label=f"floor {figures['floor']['ms']:.3f}")
    right.set(xlabel="ms, each step alone")
    right.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.12), frameon=False)


def scaling(figures: dict[str, Any], left: Axes, right: Axes) -> None:
    """Time of a request, and seconds to publish and load, by the number of items."""
    rows = figures["rows"]
    items = [row["items"] for row in rows]
    left.semilogx(items, [row["p50_ms"] for row in rows], "o-", color=OURS)
    left.margins(y=0.1)
    left.set(xlabel="items", ylabel="ms a request, median")
    left.set_ylim(bottom=0)
    for step, colour in (("publish", OURS), ("load", EXACT), ("open", RIVAL)):
        right.loglog(items, [row[f"{step}_seconds"] for row in rows], "o-", color=colour, label=step)
    right.set(xlabel="items", ylabel="seconds")
    right.legend()


def service(figures: dict[str, Any], left: Axes, right: Axes) -> None:
    """Answers a second at the peak; latency at half of it."""
    peak, latency = figures["peak_per_second"], figures["at_half_of_peak"]
    names = list(peak)[::-1]
    labels = [NAMES[name] for name in names]
    left.bar_label(left.barh(labels, [peak[name] for name in names], color=_colours(names)), fmt="%.0f", padding=3)
    left.set(xlabel="answers a second, one worker")
    left.margins(x=0.15)
    for quantile, mark in (("p50_ms", "o"), ("p99_ms", "|")):
        label = f"p{quantile[1:3]}"
        right.plot([latency[name][quantile] for name in names], labels, mark, color=EXACT, markersize=9, label=label)
    right.set(xscale="log", xlabel="ms at half of each one's own peak")
    right.legend()


def training(figures: dict[str, Any], left: Axes, right: Axes) -> None:
    """The rate of each pass, and how the time to a published version is spent."""
    rates = list(figures["per_second"].items())[::-1]
    names = [name.replace("_", " ") for name, _ in rates]
    _dots(left, names, [rate for _, rate in rates], "{:,.0f}", [OURS] * len(rates))
    left.set_xlabel("interactions, or items, a second")
    spent = list(figures["published"].items())[::-1]
    bars = right.barh([name.removesuffix("_seconds") for name, _ in spent], [took for _, took in spent], color=OURS)
    right.bar_label(bars, fmt="%.1f", padding=3)
    right.set(xlabel=f"seconds; {figures['items']:,} items, {figures['interactions']:,} interactions, two epochs")
    right.margins(x=0.1)


def gpu(figures: dict[str, Any], left: Axes, right: Axes) -> None:
    """Time of a batch with either provider, and requests a second on the GPU."""
    rows = figures["batches"]
    batches = [row["batch"] for row in rows]
    for provider, colour in (("gpu", OURS), ("cpu", RIVAL)):
        left.loglog(batches, [row["ms"][provider] for row in rows], "o-", color=colour, label=provider)
    left.set(xlabel="requests in a batch", ylabel="ms a batch, median")
    left.legend()
    right.loglog(batches, [1000 * row["batch"] / row["ms"]["gpu"] for row in rows], "o-", color=OURS)
    right.set(xlabel="requests in a batch", ylabel="requests a second, gpu")


def living(figures: dict[str, Any], left: Axes, right: Axes) -> None:
    """Times over HTTP, and the seconds of a fold."""
    rows = {
        "put": "put, until its answer",
        "same_replica": "then found, same replica",
        "other_replica": "then found, another replica",
        "quiet": "search, no writes",
        "writing": "search, 1,000 writes a second",
    }
    names = list(rows)[::-1]
    for quantile, mark in (("p50_ms", "o"), ("p99_ms", "|")):
        times = [figures[name][quantile] for name in names]
        left.plot(times, [rows[name] for name in names], mark, color=OURS, markersize=9, label=f"p{quantile[1:3]}")
    left.set(xscale="log", xlabel="ms")
    left.legend()
    spent = {name: figures[f"{name}_seconds"] for name in ("publish", "fold")}
    right.bar_label(right.barh(list(spent), list(spent.values()), color=OURS), fmt="%.1f", padding=3)
    right.set(xlabel=f"seconds; {figures['items']:,} items, {figures['records']:,} records")
    right.margins(x=0.1)


#: How each benchmark is drawn.
DRAWN = {
    "retrieval": retrieval,
    "scaling": scaling,
    "service": service,
    "living": living,
    "training": training,
    "gpu": gpu,
}


def _dots(axes: Axes, labels: list[str], values: list[float], form: str, colours: list[str]) -> None:
    """Dots on a logarithmic axis, where the length of a bar would mean nothing."""
    axes.scatter(values, labels, color=colours, s=80, zorder=2)
    for value, label in zip(values, labels, strict=True):
        axes.annotate(form.format(value), (value, label), (0, 9), textcoords="offset points", ha="center")
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15, y=0.15)
    axes.grid(axis="y", color="#e5e9ee", zorder=0)


def _colours(names: list[str]) -> list[str]:
    rivals = {"hnsw", "ivf", "exact_scan"}
    return [EXACT if name == "empty" else RIVAL if name in rivals else OURS for name in names]


if __name__ == "__main__":
    sys.exit(main())
