"""The plots of the reports, each a PNG."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, EXACT, RIVAL = "#1f6fb4", "#222222", "#9aa5b1"


def learning(found: dict[str, Any]) -> bytes:
    """Loss of the head, then of the paths, by epoch; a mark where the items were reassigned."""

    def draw(axes: Axes) -> None:
        for key, label, colour in (("head_loss", "encoder and head", EXACT), ("path_loss", "paths", OURS)):
            epochs = [record for record in found["epochs"] if key in record]
            axes.plot([e["epoch"] for e in epochs], [e[key] for e in epochs], "o-", color=colour, label=label)
        for record in found["epochs"]:
            if "alpha" in record:
                axes.axvline(record["epoch"], color=RIVAL, linestyle=":")
        axes.set(xlabel="epoch", ylabel="loss, nats a click")
        axes.legend()

    return _png(draw)


def occupancy(found: dict[str, Any]) -> bytes:
    """Items a path, from the largest path to the smallest."""

    def draw(axes: Axes) -> None:
        sizes = found["path_sizes"]
        axes.step(np.arange(1, len(sizes) + 1), sizes, where="post", color=OURS)
        axes.set(xscale="log", xlabel="path, from the largest", ylabel="items on it", ylim=(0, None))

    return _png(draw)


def reads(found: dict[str, Any]) -> bytes:
    """The share of brute force's answer among the items read, a line a beam width."""

    def draw(axes: Axes) -> None:
        beams = sorted({point["beam"] for point in found["frontier"]})
        for i, beam in enumerate(beams):
            points = [p for p in found["frontier"] if p["beam"] == beam]
            colour = (0.12, 0.44, 0.71, 0.25 + 0.75 * (i + 1) / len(beams))
            axes.plot(
                [p["reads"] for p in points], [p["share"] for p in points], "o-", color=colour, label=f"B = {beam}"
            )
        for budget in (5, 10):
            axes.axvline(budget * found["k"], color=RIVAL, linestyle=":")
            axes.annotate(f"{budget} k", (budget * found["k"], 0.02), color=RIVAL)
        axes.set(
            xscale="log", xlabel="items read a request", ylabel=f"of brute force's {found['k']} found", ylim=(0, 1.02)
        )
        axes.legend()

    return _png(draw)


def by_popularity(found: dict[str, Any], names: dict[str, str]) -> bytes:
    """Recall of items that are rarely and often clicked."""

    def draw(axes: Axes) -> None:
        for method, label in names.items():
            if method in found["methods"]:
                shares = found["methods"][method]["recall_by_popularity"]
                ours = method == "deep_retrieval"
                axes.plot(
                    range(len(shares)),
                    [np.nan if share is None else share for share in shares],
                    "o-",
                    label=label,
                    linewidth=2.5 if ours else 1,
                    color=OURS if ours else None,
                )
        axes.set(xlabel="items, from rarely to often clicked; each group has as many clicks", ylabel="recall")
        axes.set_xticks(range(len(shares)))
        axes.set_ylim(bottom=0)
        axes.legend()

    return _png(draw)


def methods(found: dict[str, Any], names: dict[str, str]) -> bytes:
    """F of every method with its standard deviation."""

    def draw(axes: Axes) -> None:
        rows = [(names[name], row["filtered"]["f_measure"]) for name, row in found["methods"].items()][::-1]
        labels = [label for label, _ in rows]
        ours = [OURS if "Deep" in label else EXACT if "brute" in label else RIVAL for label in labels]
        axes.barh(labels, [100 * f["mean"] for _, f in rows], xerr=[100 * f["std"] for _, f in rows], color=ours)
        axes.set(xlabel=f"F@{found['k']}, %")

    return _png(draw)


def setting(rows: list[dict[str, Any]], title: str, brute_force: float, k: int) -> bytes:
    """Recall by the values of one setting."""

    def draw(axes: Axes) -> None:
        places = range(len(rows))
        axes.plot(places, [100 * row["recall"] for row in rows], "o-", color=OURS, label="Deep Retrieval")
        axes.axhline(100 * brute_force, color=EXACT, linestyle=":", label="brute force")
        labels = [f"{v:.2g}" if isinstance(v := row["value"], float) else str(v) for row in rows]
        axes.set_xticks(list(places), labels)
        axes.set(xlabel=title, ylabel=f"R@{k}, %")
        axes.legend()

    return _png(draw)


def largest_path(rows: list[dict[str, Any]], slope: float) -> bytes:
    """Table 5: the largest path by alpha, both logarithmic."""

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
