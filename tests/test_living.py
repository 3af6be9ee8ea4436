"""Learning from events: what a version has learned afterwards, which items are put, and what is not published."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from index_store.errors import FoldRunning, PointerMoved, VersionDamaged
from index_store.folder.store import FolderStore
from index_store.log import Draft
from index_store.version import Version, npy
from retrieval.changes import Change, Delete, Evidence, Patch, Put, changes_of, to_json
from retrieval.events import Event
from retrieval.fold import LEASE, read_all
from retrieval.query import Request
from retrieval.searcher import Searcher
from tests.conftest import SMALL, Planted
from tests.planted import GROUPS, changed
from tests.silent_progress import SilentProgress
from trainer.errors import ExportRefused
from trainer.living import learner as learner_module
from trainer.living.learner import PUTS, Learner
from trainer.publish.weights import WEIGHTS, load_model, weights_part

NEW, LIKED = 1001, 1002  # items that came after the training


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

    def renewed(version: Version, _: Any, sessions: list[Any], facts: dict[str, Any], *__: Any) -> Version:
        made = make(version)
        learned = version.manifest.metrics.get("learned", 0) + sum(session.fresh for session in sessions)
        facts = {**facts, "learned": learned}
        return dataclasses.replace(
            made, manifest=dataclasses.replace(made.manifest, metrics={**made.manifest.metrics, **facts})
        )

    return renewed


def learn_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, learning changes one number of the version."""

    def nudged(version: Version) -> Version:
        bias = version.array("item_bias.npy").copy()
        bias[0] = np.nextafter(bias[0], np.float32(np.inf))
        return changed(version, item_bias=npy(bias))

    monkeypatch.setattr(learner_module, "renewed", pretend(nudged))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning changes one number of the version."""
    learn_quickly(monkeypatch)


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

    The others click what they clicked. Item 2 was deleted, and is clicked all the same; LIKED was put, and nobody
    clicks it. Also the version before.
    """
    store = FolderStore(str(tmp_path_factory.mktemp("living") / "store"))
    before = store.publish(planted.version)
    store.activate(before)
    like = Evidence(like=group(3, 1, 2))
    put = Put(LIKED, planted.searcher.place([like])[0], like, None, 1)
    store.append([Draft("test", 1, [to_json(Delete(2)), to_json(put)])])
    learner = Learner(store, SilentProgress())
    rng = np.random.default_rng(0)
    events = []
    for _ in range(40):
        history = group(0, *rng.permutation(10)[:5].tolist())
        events += [Event(3, history), Event(2, history)]
        events.append(Event(NEW, group(1, *rng.permutation(10)[:5].tolist())))
        for number in (1, 2, 3):  # as ever
            *history, clicked = group(number, *rng.permutation(np.arange(1, 10))[:5].tolist())
            events.append(Event(clicked, history))
    learner.take(learner.canonical(events))
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
        assert {int(item) % GROUPS for item in found(new, asked, k=4) if int(item) < NEW} == {number}


def test_an_item_that_is_new_is_put(learned: tuple[FolderStore, str]) -> None:
    """It is found by the users of those who clicked it, and by the log it was put again as its clicks doubled."""
    store, _ = learned
    searcher = Searcher.open(store.load(str(store.current())))
    assert NEW in found(searcher, group(1, 1, 2, 3, 4), k=3)
    assert NEW not in found(searcher, group(2, 1, 2, 3, 4), k=3)


def test_an_item_that_nobody_clicks_keeps_its_vector(planted: Planted, learned: tuple[FolderStore, str]) -> None:
    """It was a counterexample for every click; all the same it is found by those whom it was put for."""
    store, _ = learned
    version = store.load(str(store.current()))
    row = np.asarray(version.item_ids).tolist().index(LIKED)
    placed = planted.searcher.place([Evidence(like=group(3, 1, 2))])[0].vector
    assert version.array("item_vectors.npy")[row].tolist() == placed.tolist()
    assert LIKED in found(Searcher.open(version), group(3, 3, 4, 5, 6), k=7)


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
    held_back = 24  # of 240 sessions
    assert version.manifest.metrics["learned"] == 240 - held_back
    # What places new items is fitted to the new network; but for their bias, which is that of an often clicked item.
    old_placing, new_placing = (each.document("placing.json") for each in (planted.version, version))
    assert new_placing["matrix"] != old_placing["matrix"]
    assert new_placing["bias"] == old_placing["bias"]


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
    assert changes_in(store)[-1].evidence.clicked_by == [list(click.history or ()) for click in clicks[:32]]


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


def test_what_somebody_has_deleted_is_not_put(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither if the delete names an item that no version has, nor if it comes while the item is being put."""
    learner = Learner(store, SilentProgress())
    store.append([Draft("test", 1, [to_json(Delete(NEW))])])
    learner.take([Event(NEW, [1, 5])])
    assert [change for change in changes_of(read_all(store, store.log_start())) if isinstance(change, Put)] == []

    somebody: list[Change] = [Delete(LIKED), Put(NEW + 1, None, Evidence(like=[3]))]
    append = store.append

    def after_somebody(drafts: list[Draft], *log: Any, **more: Any) -> list[int]:
        monkeypatch.setattr(store, "append", append)
        append([Draft("test", 2, [to_json(change) for change in somebody])])
        return append(drafts, *log, **more)

    monkeypatch.setattr(store, "append", after_somebody)
    learner.take([Event(item, [1, 5]) for item in (LIKED, NEW + 1, NEW + 2)])
    *_, theirs, ours = (changes_of([record]) for record in read_all(store, store.log_start()))
    assert [[change.item_id for change in changes] for changes in (theirs, ours)] == [[LIKED, NEW + 1], [NEW + 2]]


def test_somebody_changes_items_while_many_are_put(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more items than a record has, one is deleted and one expires after the first record: both stay so."""
    learner = Learner(store, SilentProgress())
    new = range(2000, 2000 + PUTS + 50)
    learner.take([Event(new[-2], [1, 5])])
    somebody: list[Change] = [Delete(new[-1]), Patch(new[-2], expires=1000)]
    append = store.append

    def then_somebody(drafts: list[Draft], *log: Any, **more: Any) -> list[int]:
        monkeypatch.setattr(store, "append", append)
        stored = append(drafts, *log, **more)
        append([Draft("test", 1, [to_json(change) for change in somebody])])
        return stored

    monkeypatch.setattr(store, "append", then_somebody)
    learner.take([Event(item, [2, 6]) for item in new])
    searcher = learner.searcher()
    assert [searcher.is_live(item) for item in (new[0], new[-3], new[-2])] == [True, True, False]
    written = changes_of(read_all(store, store.log_start()))
    assert [change for change in written if change.item_id == new[-1]] == somebody[:1]


@pytest.mark.parametrize("item", [2, 7777])
def test_clicks_that_teach_nothing(store: FolderStore, item: int) -> None:
    """The only click is one on a deleted item, or on one that no version has: the version learns from no click."""
    store.append([Draft("test", 1, [to_json(Delete(2))])])
    learner = Learner(store, SilentProgress())
    learner.sessions.add(Event(item))
    learner.learn()
    assert not learner.sessions.fresh


def test_one_user_does_not_make_an_item_popular(store: FolderStore) -> None:
    """Clicks on the item itself are in no history; an item without any history is put once."""
    learner = Learner(store, SilentProgress())
    for times in range(5):
        learner.take([Event(NEW, [1, *[NEW] * times])])
        learner.take([Event(LIKED)])
    assert [(put.item_id, put.evidence.clicked_by) for put in changes_in(store)] == [(NEW, [[1]]), (LIKED, [])]


def test_an_item_of_the_training_is_not_put(store: FolderStore) -> None:
    """The network knows it."""
    learner = Learner(store, SilentProgress())
    learner.take([Event(5, group(2, 1, 2))])
    assert changes_in(store) == []


# -- the learner --


@pytest.mark.parametrize("count", [90, 400])
def test_a_worse_version_is_not_published(store: FolderStore, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Clicks that were kept back decide. The clicks stay to be learned."""
    scrambled = pretend(
        lambda version: changed(version, item_vectors=npy(-version.array("item_vectors.npy").astype(np.float16)))
    )
    monkeypatch.setattr(learner_module, "renewed", scrambled)
    learner = Learner(store, SilentProgress())
    rng = np.random.default_rng(1)
    for _ in range(count):
        *history, clicked = group(1, *rng.permutation(10)[:6].tolist())
        learner.take([Event(clicked, history)])
    versions = store.versions()
    with pytest.raises(ExportRefused, match="worse"):
        learner.learn()
    assert store.versions() == versions
    assert learner.sessions.fresh == count


def test_old_clicks_decide_too(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of one click is checked with the last clicks of sessions that it does not learn."""
    learner = Learner(store, SilentProgress())
    rng = np.random.default_rng(1)
    for _ in range(100):
        *history, clicked = group(1, *rng.permutation(10)[:6].tolist())
        learner.take([Event(clicked, history)])
    learner.sessions.learned([])
    learner.take([Event(5, group(1, 3, 4))])
    scrambled = pretend(lambda version: changed(version, item_vectors=npy(-version.array("item_vectors.npy"))))
    monkeypatch.setattr(learner_module, "renewed", scrambled)
    with pytest.raises(ExportRefused, match="of 99 clicks"):
        learner.learn()


@pytest.mark.usefixtures("quick")
def test_another_version_becomes_current_meanwhile(store: FolderStore, other: Planted) -> None:
    """What was learned on the old one is given up, and the clicks are learned on the new one."""
    learner = Learner(store, SilentProgress())
    learner.take([Event(5, [1])])
    newer = store.publish(other.version)
    with pytest.raises(PointerMoved):
        learner.learn(lambda *_: store.activate(newer))
    assert {manifest.version for manifest in store.versions()} == {store.previous(), newer}
    assert learner.sessions.fresh == 1
    seen: list[str] = []
    assert learner.learn(lambda *published: seen.extend(published)) == store.current()
    assert seen[:2] == [store.current(), newer]
    assert learner.sessions.fresh == 0


@pytest.mark.usefixtures("quick")
def test_a_fold_comes_first(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process folds, nothing is learned."""
    monkeypatch.setattr(learner_module, "LEASE_SECONDS", 0)
    learner = Learner(store, SilentProgress())
    learner.take([Event(5, [1])])
    with FolderStore(str(store.folder)).lease(LEASE) as mine:
        assert mine
        with pytest.raises(FoldRunning):
            learner.learn()
    learner.learn()


def test_ids_of_the_wrong_kind_are_left_out(store: FolderStore) -> None:
    """Items that cannot be in this catalogue, and such items in histories."""
    learner = Learner(store, SilentProgress())
    learner.take(learner.canonical([Event("abc", [1]), Event("5", ["x", "1", 9]), Event("7.0")]))
    assert learner.sessions.to_json() == [([1, 9, 5], 1, {}), ([7], 1, {})]
