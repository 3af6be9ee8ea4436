"""Learning from events: what a version has learned afterwards, and that nothing is learned twice or lost."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from index_store.errors import PointerMoved, VersionDamaged
from index_store.folder.store import FolderStore
from index_store.log import Draft
from index_store.version import Version, npy
from retrieval.changes import Delete, Evidence, Put, changes_of, to_json
from retrieval.events import Event
from retrieval.fold import read_all
from retrieval.query import Request
from retrieval.searcher import Searcher
from tests.conftest import SMALL, Planted
from tests.planted import GROUPS, changed
from tests.silent_progress import SilentProgress
from trainer.__main__ import main as dr_trainer
from trainer.data.events import FileEvents, StandardInput, StoreEvents
from trainer.errors import DataError, ExportRefused, ResumeError
from trainer.living import follow as follow_module
from trainer.living import learner as learner_module
from trainer.living.checkpoint import Checkpoint
from trainer.living.follow import Follow
from trainer.living.learner import Learner
from trainer.publish.weights import WEIGHTS, load_model, weights_part

NEW = 1001  # an item that nobody has put


@pytest.fixture
def store(planted: Planted, tmp_path: Path) -> FolderStore:
    """A store whose current version is the planted one."""
    store = FolderStore(str(tmp_path / "store"))
    store.activate(store.publish(planted.version))
    return store


def found(searcher: Searcher, history: list[int | str], k: int = 8) -> list[int | str]:
    """The items that the version answers."""
    (answer,) = searcher.answer([searcher.prepare(Request(history, k=k))[0]])
    return searcher.vocabulary.names(answer.items)


def group(number: int, *places: int) -> list[int | str]:
    """Items of a group; its users click nothing else."""
    return [GROUPS * place + number for place in places]


def pretend(make: Callable[[Version], Version]) -> Callable[..., Version]:
    """A `renewed` that learns nothing, because a network's export takes seconds."""

    def renewed(version: Version, _: Any, sessions: list[Any], base: str, *__: Any) -> Version:
        made = make(version)
        facts = {"folded": base, "learned": len(sessions)}
        return dataclasses.replace(
            made, manifest=dataclasses.replace(made.manifest, metrics={**made.manifest.metrics, **facts})
        )

    return renewed


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning changes one number of the version."""

    def nudged(version: Version) -> Version:
        bias = version.array("item_bias.npy").copy()
        bias[0] = np.nextafter(bias[0], np.float32(np.inf))
        return changed(version, item_bias=npy(bias))

    monkeypatch.setattr(learner_module, "renewed", pretend(nudged))


# -- weights --


def test_the_network_of_a_version_is_the_trained_one(planted: Planted) -> None:
    """All weights; those of the items as they are served, in float16."""
    trained = planted.trained.model.state_dict()
    loaded = load_model(planted.version, SMALL, 1000).state_dict()
    assert loaded.keys() == trained.keys()
    for name, tensor in trained.items():
        half = name == "encoder.item_embedding.weight"
        assert torch.allclose(loaded[name], tensor, atol=1e-2 if half else 0), name


@pytest.mark.parametrize("weights", [b"", b"none", b"\xff" * 100])
def test_weights_that_are_none(planted: Planted, weights: bytes) -> None:
    """The error names version and part."""
    with pytest.raises(VersionDamaged, match=WEIGHTS):
        load_model(changed(planted.version, weights=weights), SMALL, 1000)


def test_weights_of_another_network(planted: Planted) -> None:
    """The shapes do not fit."""
    from trainer.deep_retrieval.layers import PathModel

    schema, clicks = planted.dataset.context.schema, np.ones(40, np.int64)
    wider = weights_part(PathModel(SMALL.replace(hidden=17), 6, clicks, schema))
    with pytest.raises(VersionDamaged, match=WEIGHTS):
        load_model(changed(planted.version, weights=wider), SMALL, 1000)


# -- what is learned --


@pytest.fixture(scope="module")
def learned(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderStore, str]:
    """A store that has learned: users of group 0 now click item 3 of group 3, and many click an item that is new.

    Item 2 was deleted, and is clicked all the same. Also the version before.
    """
    store = FolderStore(str(tmp_path_factory.mktemp("living") / "store"))
    before = store.publish(planted.version)
    store.activate(before)
    store.append([Draft("test", 1, [to_json(Delete(2))])])
    learner = Learner(store, SilentProgress())
    rng = np.random.default_rng(0)
    events = []
    for _ in range(60):
        history = group(0, *rng.permutation(10)[:5].tolist())
        events += [Event(3, history), Event(2, history)]
        events.append(Event(NEW, group(1, *rng.permutation(10)[:5].tolist())))
    learner.take(events)
    learner.learn()
    return store, before


def test_what_users_click_now_is_found(planted: Planted, learned: tuple[FolderStore, str]) -> None:
    """Item 3 comes first for users of group 0, who never clicked it in training; the others get what they got."""
    store, before = learned
    current = store.current()
    assert current is not None
    assert current != before
    old, new = planted.searcher, Searcher.open(store.load(current))
    history = group(0, 1, 2, 3, 4)
    assert 3 not in found(old, history, k=3)
    assert 3 in found(new, history, k=3)
    for number in (1, 2):
        asked = group(number, 1, 2, 3, 4)
        assert {int(item) % GROUPS for item in found(new, asked, k=4) if item != NEW} == {number}


def test_an_item_that_is_new_is_put(learned: tuple[FolderStore, str]) -> None:
    """It is found by the users of those who clicked it, and by the log it was put again as its clicks doubled."""
    store, _ = learned
    searcher = Searcher.open(store.load(str(store.current())))
    assert NEW in found(searcher, group(1, 1, 2, 3, 4), k=3)
    assert NEW not in found(searcher, group(2, 1, 2, 3, 4), k=3)


def test_what_was_deleted_stays_deleted(learned: tuple[FolderStore, str]) -> None:
    """Clicks on it do not bring it back, neither in an answer nor in the catalogue."""
    store, _ = learned
    searcher = Searcher.open(store.load(str(store.current())))
    assert not searcher.is_live(2)
    assert 2 not in found(searcher, group(2, 1, 2, 3), k=40)


def test_the_new_version_continues_the_old_one(planted: Planted, learned: tuple[FolderStore, str]) -> None:
    """It has the records of the log, the same paths, and says what it was made of."""
    store, before = learned
    version = store.load(str(store.current()))
    assert version.manifest.covers == store.log_end()
    assert version.manifest.metrics["folded"] == before
    assert version.array("path_ids.npy").tolist() == planted.version.array("path_ids.npy").tolist()
    old = planted.searcher
    new = Searcher.open(version)
    for item in (5, 17, 30):
        assert new.paths_of(item) == old.paths_of(item)
    assert store.previous() == before
    held_back = 18  # of 180 sessions
    assert version.manifest.metrics["learned"] == 180 - held_back


# -- new items --


def changes_in(store: FolderStore) -> list[Put]:
    """All changes in the log; each is a put."""
    changes = changes_of(read_all(store, store.log_start()))
    assert all(isinstance(change, Put) for change in changes)
    return [change for change in changes if isinstance(change, Put)]


def test_an_item_is_put_again_as_its_histories_double(store: FolderStore) -> None:
    """With 1, 2, 4, 8, 16 and 32 histories; the same event again changes nothing, nor does another learner."""
    rng = np.random.default_rng(2)
    clicks = [Event(NEW, rng.choice(40, 4, replace=False).tolist()) for _ in range(40)]
    learner = Learner(store, SilentProgress())
    for click in clicks[:10]:
        learner.take([click, click])
    learner = Learner(store, SilentProgress())  # it knows from the log the eight histories of the last put
    for click in clicks[:8] + clicks[8:]:
        learner.take([click])
    assert [len(put.evidence.clicked_by) for put in changes_in(store)] == [1, 2, 4, 8, 16, 32]
    assert changes_in(store)[-1].evidence.clicked_by == [list(click.history) for click in clicks[:32]]


def test_an_item_that_was_put_by_what_it_is_like_moves_to_its_users(store: FolderStore) -> None:
    """Its first click places it anew; its attributes and its expiry stay."""
    end = 2_000_000_000_000
    like = Evidence(like=group(1, 1, 2))
    searcher = Searcher.open(store.load(str(store.current())))
    put = Put(NEW, searcher.place([like])[0], Evidence(like.clicked_by, like.like, {"title": "Käse"}), end, 1)
    store.append([Draft("test", 1, [to_json(put)])])
    learner = Learner(store, SilentProgress())
    assert NEW in found(learner.searcher(), group(1, 3, 4, 5, 6), k=7)
    learner.take([Event(NEW, group(2, 1, 2, 3, 4))])
    searcher = learner.searcher()
    assert NEW in found(searcher, group(2, 3, 4, 5, 6), k=7)
    assert NEW not in found(searcher, group(1, 3, 4, 5, 6), k=6)
    assert searcher.descriptions.of(NEW) == {"title": "Käse"}
    again = changes_in(store)[-1]
    assert (again.expires, again.placement and again.placement.placed_by) == (end, "clicks")


def test_an_item_of_the_training_is_not_put(store: FolderStore) -> None:
    """The network knows it."""
    learner = Learner(store, SilentProgress())
    learner.take([Event(5, group(2, 1, 2))])
    assert changes_in(store) == []


# -- the learner --


def test_a_worse_version_is_not_published(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clicks that were kept back decide. The clicks stay to be learned."""
    scrambled = pretend(
        lambda version: changed(version, item_vectors=npy(-version.array("item_vectors.npy").astype(np.float16)))
    )
    monkeypatch.setattr(learner_module, "renewed", scrambled)
    learner = Learner(store, SilentProgress())
    rng = np.random.default_rng(1)
    for _ in range(400):
        *history, clicked = group(1, *rng.permutation(10)[:6].tolist())
        learner.take([Event(clicked, history)])
    versions = store.versions()
    with pytest.raises(ExportRefused, match="kept back"):
        learner.learn()
    assert store.versions() == versions
    assert learner.sessions.fresh == 400


@pytest.mark.usefixtures("quick")
def test_another_version_becomes_current_meanwhile(store: FolderStore, other: Planted) -> None:
    """What was learned on the old one is learned on the new one."""
    learner = Learner(store, SilentProgress())
    learner.take([Event(5, [1])])
    newer = store.publish(other.version)
    seen = []

    def published(name: str, base: str) -> None:
        seen.append((name, base))
        if len(seen) == 1:
            store.activate(newer)

    name = learner.learn(published)
    assert store.current() == name
    assert [base for _, base in seen] == [store.versions()[0].version, newer]
    assert store.previous() == newer
    assert seen[0][0] not in [manifest.version for manifest in store.versions()]


@pytest.mark.usefixtures("quick")
def test_versions_that_keep_changing(store: FolderStore, other: Planted) -> None:
    """After some attempts the learner gives up; the clicks stay to be learned."""
    learner = Learner(store, SilentProgress())
    learner.take([Event(5, [1])])
    names = [store.current(), store.publish(other.version)]

    def swap(*_: str) -> None:
        store.activate(str(names[store.current() == names[0]]))

    with pytest.raises(PointerMoved):
        learner.learn(swap)
    assert learner.sessions.fresh == 1


def test_ids_of_the_wrong_kind_are_left_out(store: FolderStore) -> None:
    """Items that cannot be in this catalogue, and such items in histories."""
    learner = Learner(store, SilentProgress())
    learner.take([Event("abc", [1]), Event("5", ["x", "1", 9])])
    assert learner.sessions.to_json() == [([1, 9, 5], 1, {})]


# -- following --


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
    assert len(read_all(store, store.log_start())) == 1  # the new item was put once


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


def test_a_checkpoint_belongs_to_one_store_one_source_and_one_process(store: FolderStore, tmp_path: Path) -> None:
    """Everything else is refused, with the option to change."""
    file = tmp_path / "events.jsonl"
    write_events(file)
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
    file.write_text("")
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


def test_events_in_the_store(store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read in order, from the place of a checkpoint on; a gap is told, and what is left is read."""
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
    """A store without a current version, and events that do not exist."""
    (tmp_path / "store").mkdir()
    arguments = ["follow", "--store", str(tmp_path / "store"), "--checkpoint", str(tmp_path / "run"), "--events"]
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
