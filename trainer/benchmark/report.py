"""Write `--report DIR`: a self-contained HTML page, and its plots as PNG files."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer.benchmark import plots
from trainer.benchmark.sensitivity import TITLES, effect
from trainer.benchmark.summary import METHODS
from trainer.benchmark.table import UNMEASURED, about, figure_cells, filtering, heads, main_measure, mean
from trainer.data import measures
from trainer.errors import TrainerError
from trainer.progress import counted

#: The figures of `replay` that the page shows, and their titles.
REPLAYED = {"recall": "recall", "recall_new": "of new items"}
PLOTTED = ("deep_retrieval", "brute_force", "two_tower", "ease", "als", "item_cf", "popularity")


def write_benchmark(folder: Path, document: dict[str, Any]) -> Path:
    """Write index.html, benchmark.json and PNG files to `folder`. Returns the path of the page."""
    sections = []
    whiskers = "; whiskers show the standard deviation" if document["seeds"] > 1 else ""
    for name, result in document["datasets"].items():
        names = {method: METHODS[method] for method in PLOTTED}
        main = measures.TITLES[main_measure(result)]
        pictures = {
            "methods": (f"{main} of every method{whiskers}", plots.methods(result, METHODS)),
            "curves": (
                f"Shares among the items read, for tree and random paths{whiskers}",
                plots.curves(result),
            ),
            "reads": ("Share of brute force's answer by items read and beam width, seed 0", plots.reads(result)),
            "popularity": ("Recall by how often an item is clicked, seed 0", plots.by_popularity(result, names)),
            "learning": ("Loss by epoch, seed 0", plots.learning(result)),
            "occupancy": ("Items per path, seed 0", plots.occupancy(result)),
        }
        if not result["users"]:
            del pictures["popularity"]
        sections.append(
            {
                "title": name,
                "note": f"{about(result)}; {counted(result['k'], 'item')} requested; {filtering(result)}.",
                "head": ["", *heads(result), "/ brute force", "items read", "fit, s", "answer, ms"],
                "rows": [_row(method, row, result) for method, row in result["methods"].items()],
                "plots": _save(folder, name, pictures),
            }
        )
    means = f"Means over {document['seeds']} seeds" if document["seeds"] > 1 else "One seed"
    note = f"{means}, on held-out users, in percent."
    return _write(
        folder, "benchmark", document, "Deep Retrieval compared with methods that teams use today", note, sections
    )


def write_sensitivity(folder: Path, document: dict[str, Any]) -> Path:
    """Write index.html, sensitivity.json and PNG files to `folder`. Returns the path of the page."""
    k, brute_force = document["k"], document["brute_force"]["recall"]
    pictures = {}
    for name, title in TITLES.items():
        worth, by_chance = effect(document, name), document["chance"][name]["by_chance"]
        plot = plots.setting(document[name], title, worth, brute_force, k, by_chance)
        pictures[name] = f"{title}: {worth}", plot
    pictures["largest"] = (
        "The largest path by alpha (the paper's Table 5 has a slope of -0.3)",
        plots.largest_path(document["alpha"], document["largest_path_slope"]),
    )
    settings = ", ".join(f"{key} {value}" for key, value in document["settings"].items())
    section = {
        "title": "Settings",
        "note": f"Settings that do not vary: {settings}.",
        "plots": _save(folder, "setting", pictures),
    }
    note = (
        "After the paper's Figure 3, Table 4 and Table 5: one setting varies at a time, the others stay fixed. "
        "All variants share encoder and head, and are searched with the same beam. Each plot has its own scale. "
        f"{counted(document['users'], 'held-out user')}; ± is the standard error over users. Within chance: if the "
        "setting had no effect, so large a difference would occur in at least 1 of 20 cases; the band shows its size."
    )
    return _write(folder, "sensitivity", document, "What each setting is worth", note, [section])


def write_replay(folder: Path, document: dict[str, Any]) -> Path:
    """Write index.html, replay.json and PNG files to `folder`. Returns the path of the page."""
    k, gap = document["k"], document["gap_closed"]
    pictures = {
        "recall": (f"Recall@{k} by step", plots.replay(document, "recall")),
        "recall_new": (
            f"Recall@{k} of items that are not in the first part, by step",
            plots.replay(document, "recall_new"),
        ),
    }
    indexes = ("frozen", "living", "retrained")
    rows = [
        {
            "cells": [
                step,
                row["events"],
                row["users"],
                *(_share(row[name], figure) for figure in REPLAYED for name in indexes),
            ],
            "ours": False,
        }
        for step, row in enumerate(document["steps"], 1)
    ]
    closed = "" if gap is None else f" The living index closes {gap:.0%} of the gap between frozen and retrained."
    section = {
        "title": "By step",
        "note": f"In percent.{closed}",
        "head": ["step", "events", "users", *(f"{name}: {title}" for title in REPLAYED.values() for name in indexes)],
        "rows": rows,
        "plots": _save(folder, "replay", pictures),
    }
    note = (
        "Three indexes answer the same requests, before the step is learned: frozen, trained on the first part and "
        "never changed; living, which learns from the events of each step; retrained on everything before the step."
    )
    return _write(folder, "replay", document, "What learning from events is worth", note, [section])


def _share(figures: dict[str, Any] | None, figure: str) -> str:
    return UNMEASURED if figures is None or figures[figure] is None else f"{100 * figures[figure]:.2f}"


def _row(method: str, row: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    cells = [
        METHODS[method],
        *figure_cells(row, result),
        mean(row["reads"], 0),
        mean(row["fit_seconds"], 0).replace(UNMEASURED, ""),
        mean(row["answer_ms"], 2),
    ]
    return {"cells": cells, "ours": method.startswith("deep_retrieval")}


def _save(folder: Path, name: str, pictures: dict[str, tuple[str, bytes]]) -> list[dict[str, str]]:
    made = []
    for kind, (caption, png) in pictures.items():
        _put(folder / f"{name}-{kind}.png", png)
        made.append({"caption": caption, "data": base64.b64encode(png).decode()})
    return made


def _write(
    folder: Path, name: str, document: dict[str, Any], title: str, note: str, sections: list[dict[str, Any]]
) -> Path:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html").render(
        title=title, note=note, sections=[{"rows": [], "head": [], **section} for section in sections]
    )
    _put(folder / f"{name}.json", json.dumps(document, indent=1).encode())
    _put(folder / "index.html", page.encode())
    return folder / "index.html"


def require_writable(folder: Path) -> None:
    """Create the folder and check that it is writable, before hours of measuring. Raises TrainerError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise TrainerError(f"--report: {folder} cannot be written to: {error.strerror}") from None


def _put(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise TrainerError(f"--report: {file} cannot be written: {error.strerror}") from None
