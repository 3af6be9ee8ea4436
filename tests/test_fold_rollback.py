"""To which version a rollback returns after a fold: to the network before, with the catalogue of now."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import retrieval.fold as fold_module
from index_store.errors import IndexStoreError, LogDamaged, PointerMoved, StoreFull
from index_store.folder.store import FolderStore
from index_store.store import IndexStore, open_store, rollback
from index_store.version import Version
from retrieval.changes import Delete
from retrieval.fold import catalogue, fold, fold_current, publish_folded, with_catalogue
from retrieval.searcher import Searcher
from tests.conftest import Planted
from tests.test_fold import append


@pytest.fixture
def store(every_url: str, planted: Planted) -> IndexStore:
    """A store of each kind, with a current version."""
    store = open_store(every_url)
    store.require_writable()
    store.activate(store.publish(planted.version))
    return store


def names(store: IndexStore) -> list[str]:
    """All versions, the oldest first."""
    return [manifest.version for manifest in store.versions()]


def test_a_rollback_after_folds(store: IndexStore, planted: Planted, other: Planted) -> None:
    """It returns to the network that was current before, with the catalogue of now; a second one undoes it."""
    ids = planted.searcher.vocabulary.names(np.arange(4))
    store.activate(store.publish(other.version))
    for deleted in range(1, 4):  # the first fold, and folds of folded versions
        append(store, [Delete(ids[deleted - 1])])
        folded = fold_current(store)
        assert store.previous() == folded.rollback
        assert store.log_start().seq in (0, deleted - 1)  # a replica may still need the last record
        version, before = rollback(store)
        assert before == folded.version
        searcher = Searcher.open(store.load(version))
        assert searcher.manifest.parts["model.onnx"] == planted.version.manifest.parts["model.onnx"]
        assert searcher.manifest.covers == store.log_end()
        assert [searcher.is_live(each) for each in ids] == [False] * deleted + [True] * (4 - deleted)
        assert rollback(store) == (before, version)
    trained = [manifest.version for manifest in store.versions() if "folded" not in manifest.metrics]
    assert len(trained) == 2
    assert {manifest.version for manifest in store.versions()} == {*trained, store.previous(), store.current()}


def test_a_previous_version_that_cannot_be_read(tmp_path: Path, planted: Planted, other: Planted) -> None:
    """The current one is folded all the same, and is then the one to return to."""
    store = FolderStore(str(tmp_path / "store"))
    first, second = store.publish(planted.version), store.publish(other.version)
    store.activate(first)
    store.activate(second)
    append(store, [Delete(5000)])
    (tmp_path / "store" / "versions" / first / "item_bias.npy").write_bytes(b"nonsense")

    assert fold_current(store).rollback is None
    assert store.previous() == second


def test_a_fold_that_is_not_activated(store: IndexStore, other: Planted) -> None:
    """It publishes the version that it names and no other one."""
    store.activate(store.publish(other.version))
    append(store, [Delete(5)])
    before = names(store)

    folded = fold_current(store, activate=False)
    assert names(store) == [*before, folded.version]


@pytest.mark.parametrize(
    ("failing", "error"),
    [("current", StoreFull("no room")), ("previous", StoreFull("no room")), ("previous", LogDamaged("other ids"))],
)
def test_folds_that_fail_leave_nothing(
    store: IndexStore, other: Planted, monkeypatch: pytest.MonkeyPatch, failing: str, error: IndexStoreError
) -> None:
    """If the previous version cannot be folded, the current one is all the same."""
    store.activate(store.publish(other.version))
    append(store, [Delete(5)])
    before, fails = names(store), {"current": store.current(), "previous": store.previous()}[failing]

    def no_room(version: Version, records: list[object]) -> Version:
        if version.manifest.version == fails:
            raise error
        return fold(version, records)  # type: ignore[arg-type]

    monkeypatch.setattr(fold_module, "fold", no_room)
    if failing == "previous":
        assert fold_current(store).rollback is None
        return
    for _ in range(2):
        with pytest.raises(StoreFull):
            fold_current(store)
    assert names(store) == before


def test_a_fold_that_comes_too_late(store: IndexStore, other: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it made is deleted; the previous version, which it did not make, stays."""
    first = store.current()
    append(store, [Delete(5)])
    second = store.publish(with_catalogue(other.version, *catalogue(store)))
    store.activate(second)
    rollback(store)
    third = store.publish(with_catalogue(other.version, [Delete(6)], store.log_end()))
    before = names(store)
    publish = fold_module.publish_folded

    def swapped_meanwhile(store: IndexStore, *, with_rollback: bool) -> fold_module.Folded:
        folded = publish(store, with_rollback=with_rollback)
        assert folded.rollback == second  # it covers the log already
        store.activate(third)
        return folded

    monkeypatch.setattr(fold_module, "publish_folded", swapped_meanwhile)
    with pytest.raises(PointerMoved):
        fold_current(store)
    assert names(store) == before
    assert (store.current(), store.previous()) == (third, first)


def test_the_version_to_roll_back_to_is_deleted_meanwhile(store: IndexStore, other: Planted) -> None:
    """A rollback then returns to the version that was current before."""
    second = store.publish(other.version)
    store.activate(second)
    append(store, [Delete(5)])
    folded = publish_folded(store)
    store.delete(str(folded.rollback))

    store.activate(str(folded.version), expected=second, previous=folded.rollback)
    assert rollback(store) == (second, folded.version)


def test_versions_of_trainings_stay(store: IndexStore, other: Planted) -> None:
    """Also those that a training has published with a catalogue."""
    append(store, [Delete(5)])
    trained = store.publish(with_catalogue(other.version, *catalogue(store)))
    store.activate(trained)
    for item in (6, 7, 8):
        append(store, [Delete(item)])
        fold_current(store)
    assert trained in names(store)
