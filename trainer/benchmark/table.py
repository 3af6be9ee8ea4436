"""A data set's results as a text table."""

from __future__ import annotations

from typing import Any

from trainer.benchmark.summary import METHODS
from trainer.data.measures import SHOWN, TITLES, no_new_items
from trainer.progress import counted

UNMEASURED = "-"  # shown for a missing figure
CURVES = {"deep_retrieval": "tree", "random_paths": "random"}


def table(name: str, result: dict[str, Any]) -> str:
    """The results of a data set as a text table: percentages, mean and standard deviation over the seeds."""
    lines = [
        f"{name}: {about(result)}",
        f"{filtering(result)}. ms: per request, in batches (HNSW: one request at a time)",
        "",
        f"{'':32}" + "".join(f"{head:>16}" for head in heads(result)),
    ]
    lines[-1] += f"{'/ brute':>9}{'read':>8}{'fit s':>7}{'ms':>7}"
    for method, row in result["methods"].items():
        *figures, ratio = figure_cells(row, result)
        lines.append(
            f"{METHODS[method]:32}" + "".join(f"{cell:>16}" for cell in figures) + f"{ratio:>9}"
            f"{mean(row['reads'], 0):>8}{mean(row['fit_seconds'], 0).replace(UNMEASURED, ''):>7}"
            f"{mean(row['answer_ms'], 2):>7}"
        )
    return "\n".join([*lines, "", *_curves(result)])


def main_measure(result: dict[str, Any]) -> str:
    """The measure that plots show: F, or NDCG with split = last-out."""
    return SHOWN[result["split"]][-1]


def heads(result: dict[str, Any]) -> list[str]:
    """The titles of the columns of figures that `figure_cells` gives, without the ratio."""
    cutoffs = result["methods"]["brute_force"]["at"] or [result["k"]]
    return [f"{TITLES[measure]}@{cutoff} %" for cutoff in cutoffs for measure in SHOWN[result["split"]]]


def figure_cells(row: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """A method's figures as text, last the ratio to brute force. A cell is empty if the method was not measured."""
    filtered, measures = row["filtered"], SHOWN[result["split"]]
    ratio = mean(filtered["ratio_to_brute_force"]["f_measure" if "f_measure" in measures else "recall"], 3)
    if cutoffs := result["methods"]["brute_force"]["at"]:
        at = {str(result["k"]): filtered} | row["at"]
        return [percent(at[cut][m]) if cut in at else "" for cut in cutoffs for m in measures] + [ratio]
    p, r, f = (percent(filtered[m]) for m in measures)
    return [p, r, f"{f} ({mean(row['unfiltered']['f_measure'], 2, 100)})", ratio]


def _curves(result: dict[str, Any]) -> list[str]:
    """Lines with the share of brute force's answer, and of the true items, among the items read."""
    curves = result["curves"]
    lines = [
        f"{'items read per request':32}" + "".join(f"{p['reads']:>15}" for p in curves["deep_retrieval"]),
    ]
    for name, points in curves.items():
        for share, title in (("brute_force", "of brute force's answer"), ("truths", "of the true items")):
            label = f"{CURVES[name]}: % {title}"
            lines.append(f"{label:32}" + "".join(f"{percent(point[share]):>15}" for point in points))
    return lines


def about(result: dict[str, Any]) -> str:
    """The size of a data set, as text."""
    counts = {"users": "held-out user", "items": "item", "interactions": "interaction"}
    return ", ".join(counted(result[key], noun) for key, noun in counts.items())


def filtering(result: dict[str, Any]) -> str:
    """Whether the history is filtered, as text: for the figures, and for the figures in brackets."""
    if result["users"]:
        return "history filtered; in brackets: not filtered"
    return f"{no_new_items()}; in brackets: not filtered"


def mean(figure: dict[str, float | None], digits: int, factor: float = 1) -> str:
    """The mean as text, or a dash if nothing was measured."""
    return UNMEASURED if figure["mean"] is None else f"{factor * figure['mean']:.{digits}f}"


def percent(figure: dict[str, float | None]) -> str:
    """The mean in percent, with the standard deviation if there is one."""
    return mean(figure, 2, 100) + ("" if figure["std"] is None else f" ± {100 * figure['std']:.2f}")
