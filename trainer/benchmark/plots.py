"""The plots of the reports, as PNG images."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.benchmark.table import CURVES, main_measure
from trainer.data.measures import TITLES

OURS, EXACT, RIVAL = "#1f6fb4", "#222222", "#9aa5b1"


def learning(result: dict[str, Any]) -> bytes:
    """Loss of the head and of the paths by epoch; vertical lines mark reassignments of items."""

    def draw(axes: Axes) -> None:
        for key, label, colour in (("head_loss", "encoder and head", EXACT), ("path_loss", "paths", OURS)):
            epochs = [record for record in result["epochs"] if key in record]
            axes.plot([e["epoch"] for e in epochs], [e[key] for e in epochs], "o-", color=colour, label=label)
        for record in result["epochs"]:
            if "alpha" in record:
                axes.axvline(record["epoch"], color=RIVAL, linestyle=":")
        axes.set(xlabel="epoch", ylabel="loss, nats per click")
        axes.legend()

    return _png(draw)


def occupancy(result: dict[str, Any]) -> bytes:
    """Histogram of the number of items per path."""

    def draw(axes: Axes) -> None:
        sizes = {int(size): count for size, count in result["path_sizes"].items()}
        axes.bar(list(sizes), list(sizes.values()), color=OURS, width=0.9)
        axes.set(xlabel="items on a path", ylabel="paths", xlim=(0, max(sizes) + 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return _png(draw)


def reads(result: dict[str, Any]) -> bytes:
    """Share of brute force's answer by items read: one colour per beam width, and a line of the best share."""

    def draw(axes: Axes) -> None:
        points = sorted((point["reads"], point["share"], point["beam"]) for point in result["frontier"])
        best = np.maximum.accumulate([share for _, share, _ in points])
        axes.plot([read for read, _, _ in points], best, color=RIVAL, zorder=0)
        beams = sorted({beam for _, _, beam in points})
        for beam, colour in zip(beams, mpl.colormaps["viridis_r"](np.linspace(0.1, 1, len(beams))), strict=True):
            x, y = zip(*[(read, share) for read, share, width in points if width == beam], strict=True)
            axes.plot(x, y, "o-", color=colour, label=f"W = {beam}")
        for budget in (2, 5, 10):
            axes.axvline(budget * result["k"], color=RIVAL, linestyle=":")
            axes.annotate(f" {budget} x k", (budget * result["k"], 0.02), color=RIVAL)
        axes.set(xscale="log", xlabel="items read per request", ylabel=f"share of brute force's {result['k']} items")
        axes.set_ylim(0, 1.02)
        axes.legend(loc="upper left")

    return _png(draw)


def curves(result: dict[str, Any]) -> bytes:
    """Shares of brute force's answer and of the true items among the items read, for the tree and for random paths."""

    def draw(axes: Axes) -> None:
        for name, colour in zip(result["curves"], (OURS, RIVAL), strict=False):
            for share, style, label in (("brute_force", "-", "brute force's answer"), ("truths", "--", "true items")):
                points = [(p["reads"], p[share]) for p in result["curves"][name] if p[share]["mean"] is not None]
                axes.errorbar(
                    [reads for reads, _ in points],
                    [figure["mean"] for _, figure in points],
                    yerr=[figure["std"] or 0 for _, figure in points],
                    color=colour, linestyle=style, marker="o", capsize=3, label=f"{CURVES[name]}: {label}",
                )  # fmt: skip
        axes.set(xscale="log", xlabel="items read per request", ylabel="share among the items read", ylim=(0, 1.02))
        axes.legend()

    return _png(draw)


def by_popularity(result: dict[str, Any], names: dict[str, str]) -> bytes:
    """Recall by popularity of the items, for several methods."""

    def draw(axes: Axes) -> None:
        colours = {"deep_retrieval": OURS, "brute_force": EXACT}
        for i, (method, label) in enumerate(names.items()):
            if method in result["methods"]:
                shares = [np.nan if s is None else s for s in result["methods"][method]["recall_by_popularity"]]
                axes.plot(
                    range(len(shares)),
                    shares,
                    ":o" if method == "brute_force" else "-o",
                    color=colours.get(method, f"C{i}"),
                    linewidth=2.5 if method == "deep_retrieval" else 1.5,
                    label=label,
                )
        last = len(result["methods"]["deep_retrieval"]["recall_by_popularity"]) - 1
        axes.set_xticks([0, last], ["rarely clicked", "often clicked"])
        axes.set(xlabel="groups of items with equal numbers of clicks", ylabel="recall")
        axes.set_ylim(bottom=0)
        axes.legend()

    return _png(draw)


def methods(result: dict[str, Any], names: dict[str, str]) -> bytes:
    """The main measure of every method, with its standard deviation if there are several seeds."""

    def draw(axes: Axes) -> None:
        kind = "filtered" if result["users"] else "unfiltered"  # users: the number of users with new items to find
        measure = main_measure(result)
        rows = [(name, row[kind][measure]) for name, row in result["methods"].items()][::-1]
        deviations = [f["std"] for _, f in rows]
        axes.barh(
            [names[name] for name, _ in rows],
            [100 * f["mean"] for _, f in rows],
            xerr=None if None in deviations else [100 * std for std in deviations],
            color=[
                OURS if name.startswith("deep_retrieval") else EXACT if name == "brute_force" else RIVAL
                for name, _ in rows
            ],
        )
        filtered = "" if result["users"] else ", history not filtered"
        axes.set(xlabel=f"{TITLES[measure]}@{result['k']}, %{filtered}")

    return _png(draw)


def setting(rows: list[dict[str, Any]], name: str, title: str, brute_force: float, k: int, by_chance: float) -> bytes:
    """Recall for the values of a setting. by_chance: the difference between best and worst that can be chance."""

    def draw(axes: Axes) -> None:
        places = range(len(rows))
        recalls = [100 * row["recall"] for row in rows]
        middle = (max(recalls) + min(recalls)) / 2
        axes.axhspan(middle - 50 * by_chance, middle + 50 * by_chance, color=RIVAL, alpha=0.2, label="chance", zorder=0)
        axes.plot(places, recalls, "o-", color=OURS, label="Deep Retrieval")
        axes.axhline(100 * brute_force, color=EXACT, linestyle=":", label="brute force")
        labels = [f"{v:.2g}" if isinstance(v := row["value"], float) else str(v) for row in rows]
        axes.set_xticks(list(places), labels)
        axes.set(xlabel=name, ylabel=f"R@{k}, %", title=title)
        axes.legend()

    return _png(draw)


def largest_path(rows: list[dict[str, Any]], slope: float) -> bytes:
    """Size of the largest path by alpha, on logarithmic axes (Table 5)."""

    def draw(axes: Axes) -> None:
        axes.loglog([row["value"] for row in rows], [row["largest"] for row in rows], "o-", color=OURS)
        axes.set(xlabel="alpha", ylabel="items on the largest path", title=f"slope {slope:.2f}")

    return _png(draw)


def _png(draw: Callable[[Axes], None]) -> bytes:
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def replay(document: dict[str, Any], figure: str) -> bytes:
    """A figure of the frozen, the living and the retrained index by step, in percent."""

    def draw(axes: Axes) -> None:
        for name, colour, style in (("retrained", EXACT, "D"), ("living", OURS, "o-"), ("frozen", RIVAL, "s-")):
            points = [
                (step, 100 * row[name][figure])
                for step, row in enumerate(document["steps"], 1)
                if row[name] and row[name][figure] is not None
            ]
            axes.plot(*zip(*points, strict=True) if points else ([], []), style, color=colour, label=name)
        axes.set(xlabel="step", ylabel="%", ylim=(0, 1.05 * axes.get_ylim()[1]))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()

    return _png(draw)
