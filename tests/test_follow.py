"""Following events: each is learned once, from a store, a file or standard input, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_store.errors import LogBroken
from index_store.folder.store import FolderStore
from index_store.log import Draft, Place, Record
from index_store.version import Version
from retrieval.changes import Delete, Put, to_json
from retrieval.events import read_event
from retrieval.fold import catalogue, fold_current
from tests.conftest import Planted
from tests.silent_progress import SilentProgress
from tests.test_living import NEW, found, learn_quickly
from trainer.__main__ import main as dr_trainer
from trainer.data import events as events_module
from trainer.data.events import FileEvents, StandardInput, StoreEvents
from trainer.errors import DataError, ExportRefused, ResumeError
from trainer.living import follow as follow_module
from trainer.living import learner as learner_module
from trainer.living.checkpoint import Checkpoint
from trainer.living.follow import Follow
from trainer.living.learner import Learner


@pytest.fixture
def store(planted: Planted, tmp_path: Path) -> FolderStore:
    """A store whose current version is the planted one."""
    store = FolderStore(str(tmp_path / "store"))
    store.activate(store.publish(planted.version))
    return store


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning changes one number of the version."""
    learn_quickly(monkeypatch)


def write_events(file: Path, *events: dict[str, Any] | str) -> None:
    """Append lines to a file."""
    with file.open("a") as lines:
        for event in events:
            lines.write((event if isinstance(event, str) else json.dumps(event)) + "\n")


def follow_file(store: FolderStore, file: Path, folder: Path) -> list[dict[str, Any]]:
    """Follow a file to its end, as the command does. Returns what was reported."""
    reports: list[dict[str, Any]] = []
    with Checkpoint(folder) as checkpoint:
        state = checkpoint.load(str(store), str(file))
        source = FileEvents(file, state.place if state else None)
        Follow(store, source, str(file), checkpoint, state, 300, SilentProgress(), reports.append).run()
    return reports


CLICKS: list[dict[str, Any]] = [
    {"item_id": 5, "history": [1]},
    {"item_id": 9, "history": [1, 5]},
    {"item_id": NEW, "history": [1, 9]},
]


@pytest.mark.usefixtures("quick")
def test_a_file_is_followed_to_its_end_and_further(planted: Planted, store: FolderStore, tmp_path: Path) -> None:
    """Each event is measured before it is learned, and once; a second run goes on where the first has ended."""
    file = tmp_path / "events.jsonl"
    write_events(file, *CLICKS, "no event", "")
    reports = follow_file(store, file, tmp_path / "run")
    assert [report.get("events", report.get("clicks")) for report in reports] == [3, 3]
    hits = sum(event["item_id"] in found(planted.searcher, event["history"], k=5) for event in CLICKS)
    assert reports[0] == {"events": 3, "k": 5, "hit_rate": hits / 3, "new": 1}
    assert reports[1]["version"] == store.current()
    write_events(file, {"item_id": 13, "history": [1, 5, 9]})
    again = follow_file(store, file, tmp_path / "run")
    assert [report.get("events", report.get("clicks")) for report in again] == [1, 1]
    assert len(puts(store)) == 1
    # Nothing has come, so nothing is learned, though the last clicks were kept back or not.
    assert follow_file(store, file, tmp_path / "run") == []


def puts(store: FolderStore) -> list[Any]:
    """All changes that the log ever had."""
    return [change for change in catalogue(store)[0] if isinstance(change, Put)]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("killed", ["published", "pending", "activate", "saved"])
def test_killed_at_any_step_nothing_is_learned_twice(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    """Killed before or after each step of a publication; the next run learns what is left and no more."""
    file = tmp_path / "events.jsonl"
    write_events(file, *CLICKS[:2])
    clicks = list[int]()
    renewed = vars(learner_module)["renewed"]

    def counting(version: Version, config: Any, sessions: list[Any], *rest: Any) -> Version:
        clicks.append(sum(session.fresh for session in sessions))
        made: Version = renewed(version, config, sessions, *rest)
        return made

    monkeypatch.setattr(learner_module, "renewed", counting)

    class Killed(Exception):
        pass

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if killed == "published":
            patch.setattr(Checkpoint, "save", kill)
        elif killed == "pending":
            patch.setattr(FolderStore, "activate", kill)
        else:
            activate, save = FolderStore.activate, Checkpoint.save

            def then_killed(self: FolderStore, *arguments: Any, **named: Any) -> None:
                activate(self, *arguments, **named)
                raise Killed

            def only_pending(self: Checkpoint, state: Any) -> None:
                if state.pending is None:
                    raise Killed
                save(self, state)

            if killed == "activate":
                patch.setattr(FolderStore, "activate", then_killed)
            else:
                patch.setattr(Checkpoint, "save", only_pending)
        with pytest.raises(Killed):
            follow_file(store, file, tmp_path / "run")
    write_events(file, CLICKS[2])
    follow_file(store, file, tmp_path / "run")
    # Only if the checkpoint was not written at all, the first clicks are learned with the last one.
    assert clicks == ([2, 3] if killed == "published" else [2, 1])
    version = store.load(str(store.current()))
    assert NEW in np.asarray(version.item_ids)


@pytest.mark.usefixtures("quick")
def test_what_was_kept_back_waits_for_further_clicks(store: FolderStore, tmp_path: Path) -> None:
    """Of 20 sessions two clicks are kept back; alone they make no version, also after a restart."""
    file = tmp_path / "events.jsonl"
    write_events(file, *[{"item_id": 5, "history": [1, 9, 13, number]} for number in range(14, 34)])
    assert follow_file(store, file, tmp_path / "run")[-1]["clicks"] == 20
    assert follow_file(store, file, tmp_path / "run") == []
    write_events(file, CLICKS[0])
    assert follow_file(store, file, tmp_path / "run")[-1]["clicks"] == 3


@pytest.mark.usefixtures("quick")
def test_clicks_that_were_only_remembered_are_learned_after_a_restart(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command was stopped when it had read everything, and before it learned."""
    file = tmp_path / "events.jsonl"
    write_events(file, *CLICKS)
    monkeypatch.setattr(follow_module, "SAVE_SECONDS", 0)
    monkeypatch.setattr(follow_module, "LOOK_SECONDS", 0)
    with Checkpoint(tmp_path / "run") as checkpoint:
        source = FileEvents(file, waits=True)
        following = Follow(store, source, str(file), checkpoint, None, 300, SilentProgress(), lambda _: None)
        with monkeypatch.context() as patch:
            patch.setattr("time.sleep", _stop)
            with pytest.raises(KeyboardInterrupt):
                following.run()
    assert follow_file(store, file, tmp_path / "run") == [{"version": store.current(), "clicks": 3}]


def _stop(_: float) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("then", ["deleted", "folded"])
def test_what_happens_to_a_pending_version(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """One that is deleted was not learned; one that was folded meanwhile was."""
    file = tmp_path / "events.jsonl"
    write_events(file, *CLICKS[:2])
    activate = FolderStore.activate

    def killed(self: FolderStore, *arguments: Any, **named: Any) -> None:
        if then == "folded":
            activate(self, *arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "activate", killed)
        with pytest.raises(KeyboardInterrupt):
            follow_file(store, file, tmp_path / "run")
    if then == "deleted":
        (pending,) = [manifest.version for manifest in store.versions() if manifest.version != store.current()]
        store.delete(pending)
    else:
        store.append([Draft("test", 1, [to_json(Delete(2))])])
        fold_current(store)
    write_events(file, CLICKS[2])
    reports = follow_file(store, file, tmp_path / "run")
    assert reports[-1]["clicks"] == (3 if then == "deleted" else 1)


def test_a_refusal_is_not_repeated_at_once(store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt has as many further clicks; the clicks are learned then."""
    attempts: list[int] = []

    def learn(self: Learner, *_: Any) -> str:
        attempts.append(self.sessions.fresh)
        raise ExportRefused("worse")

    monkeypatch.setattr(Learner, "learn", learn)
    monkeypatch.setattr(follow_module, "TOGETHER", 1)
    monkeypatch.setattr(follow_module, "ENOUGH", 3)
    monkeypatch.setattr(follow_module, "SHARE", 0)
    file = tmp_path / "events.jsonl"
    write_events(file, *[{"item_id": item, "history": [1]} for item in range(2, 10)])
    follow_file(store, file, tmp_path / "run")
    assert attempts == [3, 6, 8]


@pytest.mark.usefixtures("quick")
def test_the_events_of_a_store(store: FolderStore, tmp_path: Path) -> None:
    """They are removed from the store when the checkpoint has them, and not before."""
    for number, click in enumerate(CLICKS):
        store.append([Draft("p", number, [click])], "events")
    left: list[int] = []

    class Ending(StoreEvents):
        """Ends with the events that are there."""

        def read(self, most: int) -> Any:
            arrived = super().read(most)
            left.append(store.log_start("events").seq)
            self.ended = not arrived.events
            return arrived

    with Checkpoint(tmp_path / "run") as checkpoint:
        Follow(store, Ending(store), "store", checkpoint, None, 0.0, SilentProgress(), lambda _: None).run()
        state = checkpoint.load(str(store), "store")
    assert left == [0, 3]
    assert state is not None
    assert state.place == list(store.log_end("events"))
    assert store.load(str(store.current())).manifest.metrics["learned"] == 3


@pytest.mark.usefixtures("quick")
def test_a_checkpoint_belongs_to_one_store_one_source_and_one_process(store: FolderStore, tmp_path: Path) -> None:
    """Everything else is refused, with the option to change."""
    file = tmp_path / "events.jsonl"
    write_events(file, CLICKS[0])
    follow_file(store, file, tmp_path / "run")
    with Checkpoint(tmp_path / "run") as checkpoint:
        with pytest.raises(ResumeError, match="another dr-trainer follow uses it"):
            Checkpoint(tmp_path / "run")
        with pytest.raises(ResumeError, match="--events"):
            checkpoint.load(str(store), "elsewhere")
        with pytest.raises(ResumeError, match="--store"):
            checkpoint.load("elsewhere", str(file))
        (tmp_path / "run" / "follow.json").write_text('{"format": 1')
        with pytest.raises(ResumeError, match="delete it to start over"):
            checkpoint.load(str(store), str(file))


def test_a_file_that_was_replaced(tmp_path: Path) -> None:
    """It is shorter than what was read of it."""
    file = tmp_path / "events.jsonl"
    write_events(file, *CLICKS)
    place = FileEvents(file).read(10).place
    for other in ("", file.read_text().replace("5", "6") * 2):
        file.write_text(other)
        with pytest.raises(DataError, match="another file"):
            FileEvents(file, place).read(10)
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        FileEvents(tmp_path / "missing.jsonl").read(10)


def test_a_line_that_is_being_written(tmp_path: Path) -> None:
    """It is read when it is whole, if more is expected; else as it is."""
    file = tmp_path / "events.jsonl"
    file.write_text('{"item_id": 1}\n{"item_id"')
    waiting = FileEvents(file, waits=True)
    assert [event.item_id for event in waiting.read(10).events] == [1]
    assert not waiting.ended
    with file.open("a") as lines:
        lines.write(": 2}\n")
    assert [event.item_id for event in waiting.read(10).events] == [2]
    file.write_text('{"item_id": 1}\n{"item_id": 2}')
    source = FileEvents(file)
    assert [event.item_id for event in source.read(10).events] == [1, 2]
    assert source.ended


def test_events_in_the_store(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read in order, from the place of a checkpoint on; a gap is told, and what is left is read."""
    monkeypatch.setattr(events_module, "RECORDS", 1)
    for number in range(1, 4):
        store.append([Draft("p", number, [{"item_id": number}])], "events")
    source = StoreEvents(store)
    first = source.read(2)
    assert [event.item_id for event in first.events] == [1, 2]
    assert [event.item_id for event in StoreEvents(store, first.place).read(10).events] == [3]
    assert source.read(10).lines == []
    lost = StoreEvents(store, [1, "0" * 16]).read(10)
    assert [event.item_id for event in lost.events] == [1, 2, 3]
    assert "events are missing" in lost.lines[0]
    store.append([Draft("p", 4, [{"wrong": 1}])], "events")
    store.append([Draft("p", 5, [{"item_id": 5}])], "events")
    rest = StoreEvents(store, lost.place).read(10)
    assert ([event.item_id for event in rest.events], len(rest.lines)) == ([5], 1)


def test_a_gap_in_the_events_is_passed(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is before the gap can never be read on; learning continues with what comes."""
    for number in range(1, 4):
        store.append([Draft("p", number, [{"item_id": number}])], "events")
    read, end = store.read, store.log_end("events")

    def with_a_gap(after: Place, *more: Any) -> list[Record]:
        if after != end:
            raise LogBroken("records are missing")
        return read(after, *more)

    monkeypatch.setattr(store, "read", with_a_gap)
    source = StoreEvents(store)
    arrived = source.read(10)
    assert (arrived.events, arrived.place) == ([], list(end))
    assert 1 <= len(arrived.lines) <= 2


def test_a_read_has_a_bound(store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of events, and of lines that are none; a line that is too long is left out."""
    for number in range(40):
        store.append([Draft("p", number, [{"item_id": 1}] * 10)], "events")
    assert 50 <= len(StoreEvents(store).read(50)) <= 50 + 10 * events_module.RECORDS
    monkeypatch.setattr(events_module, "LONGEST", 50)
    file = tmp_path / "events.jsonl"
    write_events(file, *["no event"] * 10, "x" * 120, {"item_id": 3})
    source = FileEvents(file)
    assert len(source.read(8)) == 8
    rest = source.read(20)
    assert [event.item_id for event in rest.events] == [3]
    assert any("longer than 50 bytes" in line for line in rest.lines)


@pytest.mark.parametrize(
    "line",
    [
        '{"item_id": 1, "x": ' + "[" * 100_000,
        '{"item_id": ' + "[" * 100_000,
        "[]",
        '{"item_id": 1.5}',
        '{"item_id": 1, "history": [null]}',
        '{"item_id": 1, "context": {"a": NaN}}',
        '{"item_id": 1, "context": {"' + "a" * 129 + '": 1}}',
        '{"item_id": 1, "context": {"a": "' + "b" * 257 + '"}}',
        '{"item_id": "' + "c" * 257 + '"}',
        '{"item_id": 9223372036854775808}',
    ],
)
def test_lines_that_are_no_event(line: str) -> None:
    """Each is a ValueError, whose message does not repeat the line."""
    with pytest.raises(ValueError, match=r"\w") as refused:
        read_event(line)
    assert len(str(refused.value)) < 200


def test_lines_that_are_events(tmp_path: Path) -> None:
    """Null stands for nothing; a first line may have a byte order mark."""
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"item_id": 1, "history": null, "context": null, "user": 7}\r\n')
    (event,) = FileEvents(file).read(10).events
    assert (event.item_id, event.history, event.context) == (1, None, None)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines as they arrive; the last one may lack its end."""
    reading, writing = os.pipe()
    stdin = os.fdopen(reading)
    monkeypatch.setattr("sys.stdin", stdin)
    source = StandardInput()
    assert source.read(10).events == []
    os.write(writing, b'{"item_id": 1}\n{"item')
    assert [event.item_id for event in source.read(10).events] == [1]
    os.write(writing, b'_id": 2}')
    os.close(writing)
    assert [event.item_id for event in source.read(10).events] == [2]
    assert source.ended
    stdin.close()


def test_the_command_without_a_version(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A store that does not exist is not made; one without a current version says what is missing."""
    arguments = ["follow", "--store", str(tmp_path / "store"), "--checkpoint", str(tmp_path / "run"), "--events"]
    assert dr_trainer([*arguments, "-"]) == 1
    assert str(tmp_path / "store") in capfd.readouterr().err
    assert not (tmp_path / "store").exists()
    (tmp_path / "store").mkdir()
    assert dr_trainer([*arguments, "-"]) == 1
    assert "publish one with dr-trainer fit" in capfd.readouterr().err


@pytest.mark.usefixtures("quick")
def test_the_command(store: FolderStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It ends with the file. With --json, each line of its output is a JSON object."""
    file = tmp_path / "events.jsonl"
    write_events(file, *CLICKS)
    arguments = ["follow", "--store", str(store.folder), "--events", str(file), "--checkpoint", str(tmp_path / "run")]
    assert dr_trainer([*arguments, "--json"]) == 0
    output = capfd.readouterr()
    assert [json.loads(line).get("events") for line in output.out.splitlines()] == [3, None]
    assert "hit rate@5" in output.err
    assert follow_module.EVERY == 300
