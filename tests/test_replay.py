"""`dr-trainer replay`: what is asked and measured at each step, and the document."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.planted import GROUPS
from trainer.__main__ import main as dr_trainer
from trainer.config import load_config
from trainer.living import replay as replay_module
from trainer.living.replay import retrained_steps, summary
from trainer.living.stream import Stream, asked, events_of, read_stream

ROWS = [  # user, item, time: not in order of time, as files are
    ("a", "x", 1), ("a", "y", 3), ("b", "x", 2), ("a", "z", 5), ("b", "y", 6),
    ("c", "w", 4), ("c", "z", 7), ("b", "x", 8), ("c", "w", 9), ("c", "x", 10),
]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The rows as a file."""
    columns = dict(zip(("user_id", "item_id", "timestamp"), zip(*ROWS, strict=True), strict=True))
    path = tmp_path / "interactions.parquet"
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path)
    return path


def test_a_request_for_each_user_of_a_step(file: Path) -> None:
    """What the user clicked before the step, and what is new to the user in it."""
    stream = read_stream(file, None, load_config(None, []))
    names = stream.item_ids.tolist()
    assert [names[item] for item in stream.items] == ["x", "x", "y", "w", "z", "y", "z", "x", "w", "x"]
    requests = asked(stream, 4, 10)
    found = [
        ([names[item] for item in history], [names[item] for item in truth])
        for history, truth in zip(requests.histories, requests.truths, strict=True)
    ]
    assert found == [(["x", "y"], ["z"]), (["x"], ["y"]), (["w"], ["x", "z"])]
    # c is new in the second half: the first half of the clicks there is the history.
    (history,), (truth,) = (getattr(asked(stream, 3, 4), part) or [None] for part in ("histories", "truths"))
    assert history is truth is None
    late = asked(stream, 6, 10)
    assert [names[item] for item in late.truths[-1]] == ["x", "z"]


def test_events_have_the_history_of_their_time(file: Path) -> None:
    """At most as many items as the network reads."""
    stream = read_stream(file, None, load_config(None, []))
    events = events_of(stream, 6, 10, 2)
    assert [(event.item_id, list(event.history or ())) for event in events] == [
        ("z", ["w"]),
        ("x", ["x", "y"]),
        ("w", ["w", "z"]),
        ("x", ["z", "w"]),
    ]


@pytest.mark.parametrize(
    ("steps", "count", "expected"), [(6, 2, {2, 5}), (20, 4, {5, 10, 14, 19}), (3, 9, {1, 2}), (1, 4, {0}), (2, 1, {1})]
)
def test_the_steps_at_which_an_index_is_trained_anew(steps: int, count: int, expected: set[int]) -> None:
    """The last one and others, evenly spread, not the first: there the frozen index is as new."""
    assert retrained_steps(steps, count) == expected


def test_the_means_are_of_the_steps_with_all_three() -> None:
    """And so is the share of the gap."""

    def figures(recall: float, new: float | None) -> dict[str, float | None]:
        return {"recall": recall, "f_measure": recall / 2, "recall_new": new}

    rows: list[dict[str, Any]] = [
        {"frozen": figures(0.9, 0.9), "living": figures(0.9, 0.9), "retrained": None},
        {"frozen": figures(0.1, 0.0), "living": figures(0.25, 0.3), "retrained": figures(0.3, 0.2)},
        {"frozen": figures(0.2, None), "living": figures(0.35, None), "retrained": figures(0.4, None)},
    ]
    document = summary(20, rows, 1.5, [10, 20])
    assert document["mean"]["living"] == pytest.approx({"recall": 0.3, "f_measure": 0.15, "recall_new": 0.3})
    assert document["gap_closed"] == pytest.approx(0.75)
    assert document["gap_closed_new"] == pytest.approx(1.5)
    assert document["seconds"] == {"living_per_1000_events": 1.5, "retrained": 15}
    # Nothing to close.
    assert summary(20, rows[:1], None, [])["gap_closed"] is None


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On planted data with an item that appears in the second half: the keys that others rely on, and the report."""
    rng = np.random.default_rng(3)
    rows = []
    for user in range(600):
        group = user % GROUPS
        items = (rng.permutation(10)[:6] * GROUPS + group).tolist()
        if user > 360 and group == 1:
            items = [*items[:3], 1001, *items[3:]]
        rows += [(user, item, 100 * user + place) for place, item in enumerate(items)]
    file = tmp_path / "clicks.csv"
    file.write_text("user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    items = tmp_path / "items.csv"
    items.write_text("item_id,title\n" + "".join(f"{i},group {i % GROUPS}\n" for i in range(40)) + "1001,group 1\n")
    settings = ["depth=2", "width=6", "paths_per_item=2", "embedding=16", "hidden=16", "history=6", "epochs=6"]
    arguments = ["replay", str(file), "--items", str(items), "--steps", "2", "--k", "5", "--json"]
    for setting in [*settings, "learning_rate=0.06", "batch=128"]:
        arguments += ["--set", setting]
    seen: list[int] = []  # how many interactions each training sees

    def trained(stream: Stream, events: int, *more: Any) -> Any:
        seen.append(events)
        return train(stream, events, *more)

    train = replay_module.trained
    monkeypatch.setattr(replay_module, "trained", trained)
    assert dr_trainer([*arguments, "--report", str(tmp_path / "report")]) == 0
    output = capfd.readouterr()
    document = json.loads(output.out)
    assert document.keys() == {"k", "steps", "mean", "gap_closed", "gap_closed_new", "seconds"}
    assert document["k"] == 5
    first, second = document["steps"]
    assert first.keys() == {"events", "users", "new_truths", "frozen", "living", "retrained"}
    assert first["retrained"] is None
    assert seen == [len(rows) // 2, len(rows) // 2 + first["events"]]  # nothing of the step that is asked for
    assert first["living"] == first["frozen"]
    assert second["frozen"]["recall_new"] == 0
    assert second["living"]["recall_new"] > 0.5
    assert second["retrained"].keys() == {"recall", "f_measure", "recall_new"}
    assert document["seconds"].keys() == {"living_per_1000_events", "retrained"}
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert files == {"index.html", "replay.json", "replay-recall.png", "replay-recall_new.png"}
    assert "step 2" in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start", "0"], "between 0 and 1"),
        (["--steps", "0"], "1 or more"),
        (["--steps", "9"], "too few for 9 steps"),
        (["--set", "context=country"], "context: replay does not use it"),
    ],
)
def test_wrong_usage(file: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """Each is told before anything is trained."""
    with contextlib.suppress(SystemExit):  # of argparse
        assert dr_trainer(["replay", str(file), *arguments]) == 1
    assert message in capfd.readouterr().err
