"""`--report DIR`: one HTML page with everything in it, and its plots as PNGs beside it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer.benchmark import plots
from trainer.benchmark.benchmark import METHODS, UNMEASURED, about, filtering, mean, percent
from trainer.benchmark.sensitivity import TITLES, effect
from trainer.errors import TrainerError
from trainer.evaluate.measures import MEASURES
from trainer.progress import counted

PLOTTED = ("deep_retrieval", "brute_force", "two_tower", "ease", "als", "item_cf", "popularity")


def write_benchmark(folder: Path, document: dict[str, Any]) -> Path:
    """index.html, benchmark.json and PNGs in `folder`. Returns the page."""
    sections = []
    whiskers = "; the whiskers are a standard deviation" if document["seeds"] > 1 else ""
    for name, found in document["datasets"].items():
        names = {method: METHODS[method] for method in PLOTTED}
        pictures = {
            "methods": (f"F of every method{whiskers}", plots.methods(found, METHODS)),
            "reads": ("Brute force's answer found, by the items read and the beam width, seed 0", plots.reads(found)),
            "popularity": ("Recall by how often an item is clicked, seed 0", plots.by_popularity(found, names)),
            "learning": ("Loss by epoch, seed 0", plots.learning(found)),
            "occupancy": ("Items a path, seed 0", plots.occupancy(found)),
        }
        if not found["users"]:
            del pictures["popularity"]
        sections.append(
            {
                "title": name,
                "note": f"{about(found)}; {counted(found['k'], 'item')} asked for; {filtering(found)}.",
                "head": ["", "P %", "R %", "F %", "F / brute force", "items read", "fit, s", "answer, ms"],
                "rows": [_row(method, row) for method, row in found["methods"].items()],
                "plots": _save(folder, name, pictures),
            }
        )
    means = f"Means over {document['seeds']} seeds" if document["seeds"] > 1 else "One seed"
    note = f"{means}, on held-out users, percent."
    return _write(folder, "benchmark", document, "Deep Retrieval beside what teams use today", note, sections)


def write_sensitivity(folder: Path, document: dict[str, Any]) -> Path:
    """index.html, sensitivity.json and PNGs in `folder`. Returns the page."""
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
    section = {"title": "Settings", "note": f"Otherwise: {settings}.", "plots": _save(folder, "setting", pictures)}
    note = (
        "After the paper's Figure 3, Table 4 and Table 5: recall by one setting at a time, the others as they are. "
        "All variants share encoder and head, and are searched with the same beam. Each plot has a scale of its own. "
        f"{counted(document['users'], 'held-out user')}; ± is a standard error over them. Within chance: were all "
        "values alike, so large a difference would be seen in 1 of 20 cases or more; the band is as high."
    )
    return _write(folder, "sensitivity", document, "What each setting is worth", note, [section])


def _row(method: str, row: dict[str, Any]) -> dict[str, Any]:
    filtered, unfiltered = row["filtered"], row["unfiltered"]
    cells = [
        METHODS[method],
        *(f"{percent(filtered[measure])} ({mean(unfiltered[measure], 2, 100)})" for measure in MEASURES),
        mean(filtered["ratio_to_brute_force"]["f_measure"], 3),
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
    """Make the folder; better told now than after hours of measuring. Raises TrainerError."""
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
