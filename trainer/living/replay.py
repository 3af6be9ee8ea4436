"""`dr-trainer replay`: would an index that learns from events have found more, on a user's own data?

Train on the first part of the interactions. Then, step by step in order of time: ask for the users of the step, look at
what they click, learn. Three indexes answer the same requests: the one that was trained first and never changes
(frozen), one that learns from the events of each step as `dr-trainer follow` does (living), and one that is trained
anew on everything before the step (retrained).

Shapes: N interactions, V items.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.store import open_store
from index_store.version import Version
from retrieval.query import Limits, Request
from retrieval.searcher import Searcher
from trainer.config import TrainConfig
from trainer.data.dataset import load_dataset
from trainer.data.measures import by_user
from trainer.data.split import split_users
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.fit import fit
from trainer.errors import ConfigError, DataError, ExportRefused
from trainer.living.learner import Learner, answers
from trainer.living.stream import Asked, Stream, asked, descriptions, events_of, read_stream, write_files
from trainer.progress import Progress, counted
from trainer.publish.version import make_version

TOGETHER = 1000  # events that the learner takes at once
INDEXES = ("frozen", "living", "retrained")
FIGURES = ("recall", "f_measure", "recall_new")


def replay(
    interactions: Path,
    items: Path | None,
    config: TrainConfig,
    progress: Progress,
    *,
    start: float,
    steps: int,
    retrained: int,
) -> dict[str, Any]:
    """The document of `dr-trainer replay --json`.

    start: the share of the interactions that is trained on first. retrained: the number of steps at which an index is
    trained anew. Raises ConfigError for settings that cannot be replayed, DataError for too few interactions.
    """
    for name in ("context", "clicked", "strength"):
        if getattr(config, name):
            raise ConfigError(f"{name}: replay does not use it; leave it out")
    stream = read_stream(interactions, items, config)
    config = config.replace(
        test_users=0, min_rating=None, item_id="string" if stream.item_ids.dtype == object else "integer"
    )
    first = int(start * len(stream.items))
    if not 0 < first <= len(stream.items) - steps:
        raise DataError(f"{interactions}: {len(stream.items)} interactions are too few for {steps} steps after {start}")
    bounds = np.linspace(first, len(stream.items), steps + 1).astype(int).tolist()
    anew = retrained_steps(steps, retrained)
    new = np.ones(len(stream.item_ids), bool)
    new[stream.items[:first]] = False
    described = descriptions(stream, config.attributes)
    rows: list[dict[str, Any]] = []
    living_seconds, retrained_seconds = 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(str(Path(folder, "store")))
        store.require_writable()
        progress.say(f"training on the first {first} of {len(stream.items)} interactions")
        version, _ = trained(stream, first, config, progress, Path(folder, "first"))
        store.activate(store.publish(version))
        frozen, learner = Searcher.open(version), Learner(store, progress)
        for step, (begin, end) in enumerate(itertools.pairwise(bounds)):
            requests = asked(stream, begin, end)
            row: dict[str, Any] = {
                "events": end - begin,
                "users": len(requests.histories),
                "new_truths": sum(int(new[truth].sum()) for truth in requests.truths),
                "frozen": measure(frozen, stream, requests, new, config.k),
                "living": measure(learner.searcher(), stream, requests, new, config.k),
                "retrained": None,
            }
            if step in anew:
                progress.say(f"step {step + 1}: training anew on {begin} interactions")
                version, seconds = trained(stream, begin, config, progress, Path(folder, f"step-{step + 1}"))
                retrained_seconds.append(seconds)
                row["retrained"] = measure(Searcher.open(version), stream, requests, new, config.k)
            rows.append(row)
            progress.say(line(step, row))
            if step + 1 < steps:
                started = time.monotonic()
                events = events_of(stream, begin, end, config.history)
                for place in range(0, len(events), TOGETHER):
                    learner.take(learner.canonical(events[place : place + TOGETHER]), described)
                try:
                    learner.learn()
                except ExportRefused as error:
                    progress.say(f"warning: {error}")
                living_seconds += time.monotonic() - started
    learned = bounds[-2] - first
    return summary(config.k, rows, 1000 * living_seconds / learned if learned else None, retrained_seconds)


def retrained_steps(steps: int, count: int) -> set[int]:
    """`count` of the steps 0 to steps - 1, evenly spread, with the last one and, if possible, without the first."""
    return set(np.linspace(0, steps - 1, min(count, max(1, steps - 1)) + 1).round().astype(int).tolist()[1:])


def measure(
    searcher: Searcher, stream: Stream, requests: Asked, new: NDArray[np.bool_], k: int
) -> dict[str, float | None]:
    """Means over users of recall and F, and the share of the true items that are `new` (V,) and were found."""
    names = stream.item_ids.tolist()
    found = answers(
        searcher, [Request([names[item] for item in history[-Limits.HISTORY :]], k=k) for history in requests.histories]
    )
    code = {name: item for item, name in enumerate(names)}
    codes = [np.array([code[item] for item in items], np.int64) for items in found]
    figures = by_user(codes, requests.truths, k)
    wanted = sum(int(new[truth].sum()) for truth in requests.truths)
    hits = sum(int(new[np.intersect1d(each, truth)].sum()) for each, truth in zip(codes, requests.truths, strict=True))
    return {
        "recall": float(figures[:, 1].mean()) if len(figures) else None,
        "f_measure": float(figures[:, 2].mean()) if len(figures) else None,
        "recall_new": hits / wanted if wanted else None,
    }


def trained(
    stream: Stream, events: int, config: TrainConfig, progress: Progress, folder: Path
) -> tuple[Version, float]:
    """A version that is trained on the first interactions, and the seconds that it took."""
    folder.mkdir()
    interactions, items = write_files(stream, events, folder)
    dataset = load_dataset(interactions, config, items)
    started = time.monotonic()
    split = split_users(dataset, config)
    result = fit(config, dataset, split, Run(folder / "run", config, dataset), progress)
    version = make_version(config, dataset, split, result, progress, allow_collapsed=True)
    return version, time.monotonic() - started


def summary(k: int, rows: Sequence[dict[str, Any]], living: float | None, retrained: Sequence[float]) -> dict[str, Any]:
    """The document, with means over the steps at which all three indexes were measured."""
    measured = [row for row in rows if row["retrained"]]
    mean = {name: {figure: _mean([row[name][figure] for row in measured]) for figure in FIGURES} for name in INDEXES}

    def closed(figure: str) -> float | None:
        frozen, living, anew = (mean[name][figure] for name in INDEXES)
        if frozen is None or living is None or anew is None or anew <= frozen:
            return None
        return (living - frozen) / (anew - frozen)

    return {
        "k": k,
        "steps": list(rows),
        "mean": mean,
        "gap_closed": closed("recall"),
        "gap_closed_new": closed("recall_new"),
        "seconds": {"living_per_1000_events": living, "retrained": _mean(list(retrained))},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def line(step: int, row: dict[str, Any]) -> str:
    """A step as a line of text."""
    parts = (f"{name} {_cell(row[name])}" for name in INDEXES if row[name])
    return f"step {step + 1}: {counted(row['users'], 'user')}; recall % (of new items): {', '.join(parts)}"


def table(document: dict[str, Any]) -> str:
    """The document as a text table, in percent."""
    k, mean, seconds = document["k"], document["mean"], document["seconds"]
    lines = [f"{'step':>4}{'events':>8}{'users':>7}" + "".join(f"{name:>18}" for name in INDEXES)]
    for step, row in enumerate(document["steps"], 1):
        cells = "".join(f"{_cell(row[name]):>18}" for name in INDEXES)
        lines.append(f"{step:>4}{row['events']:>8}{row['users']:>7}{cells}")
    lines.append(f"mean{'':15}" + "".join(f"{_cell(mean[name]):>18}" for name in INDEXES))
    explained = f"recall@{k} in percent, in brackets that of items that are not in the first part; the means are of the"
    lines += ["", f"{explained} steps at which all three were measured"]
    gap, gap_new = document["gap_closed"], document["gap_closed_new"]
    if gap is not None:
        of_new = "" if gap_new is None else f", and {gap_new:.0%} of that on new items"
        lines.append(f"the living index closes {gap:.0%} of the gap between frozen and retrained{of_new}")
    if None not in seconds.values():
        living, anew = seconds["living_per_1000_events"], seconds["retrained"]
        lines.append(f"learning from 1,000 events took {living:.1f} s, training anew {anew:.0f} s")
    return "\n".join(lines)


def _cell(figures: dict[str, Any] | None) -> str:
    return "-" if figures is None else f"{_percent(figures['recall'])} ({_percent(figures['recall_new'])})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
