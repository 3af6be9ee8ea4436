"""A fold: the version and its overlay together, and the version made of them, answer alike."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from random import Random

import numpy as np
import pytest

from index_store.__main__ import main
from index_store.errors import FoldRunning, PointerMoved, VersionIncompatible, VersionNotFound
from index_store.folder.store import FolderStore
from index_store.log import START, Draft, Place, Record
from index_store.manifest import FORMAT
from index_store.store import IndexStore, open_store
from index_store.version import Version
from retrieval.changes import Change, Delete, Evidence, Move, Patch, Put, net, read_changes, to_json
from retrieval.fold import catalogue, fold, fold_current, tidy, with_catalogue
from retrieval.query import ItemId, Request
from retrieval.searcher import Searcher
from tests.conftest import Planted
from tests.test_overlay import FAR, records

EXPIRED = int(1000 * time.time()) - 60_000  # ms since 1970; a minute ago


def put(searcher: Searcher, item: ItemId, evidence: Evidence, expires: int | None = None) -> Put:
    """A put as the service writes it."""
    return Put(item, searcher.place([evidence])[0], evidence, expires)


def random_changes(searcher: Searcher, random: Random, count: int) -> list[list[Change]]:
    """Records about items of the version and new ones: some are changed several times, some are deleted."""
    known = searcher.vocabulary.names(np.arange(searcher.structure.index.items))
    new: list[ItemId] = [f"new {i}" if isinstance(known[0], str) else 5000 + i for i in range(12)]
    network, paths = searcher.network, searcher.structure.index.path_ids.tolist()
    made: list[Change] = []
    for _ in range(count):
        item = random.choice([*random.sample(known, 8), *new])
        match random.choice(["click", "click", "like", "nothing", "delete", "delete", "move", "bias", "expire"]):
            case "click":
                made.append(
                    put(searcher, item, Evidence([random.sample([*known, *new], 3)]), random.choice([None, FAR]))
                )
            case "like":
                made.append(put(searcher, item, Evidence(like=random.sample(known, 2)), random.choice([None, EXPIRED])))
            case "nothing":
                made.append(put(searcher, item, Evidence()))
            case "delete":
                made.append(Delete(item))
            case "move":
                made.append(Move(item, random.sample(paths, 2), network))
            case "bias":
                made.append(Patch(item, bias=random.uniform(-2, 2)))
            case _:
                made.append(Patch(item, expires=random.choice([EXPIRED, FAR, 0])))
    return [made[i : i + 3] for i in range(0, count, 3)]


def same_answers(first: Searcher, second: Searcher, random: Random, count: int = 60) -> None:
    """Both give the same items with the same scores, whatever is asked. Of equal last scores, they may keep others."""
    ids = first.vocabulary.names(np.arange(first.structure.index.items))
    for _ in range(count):
        request = Request(
            history=random.sample(ids, random.randrange(8)),
            k=random.choice([1, 5, 30, len(ids)]),
            beam=random.choice([None, 1, 3, 20]),
            per_path=random.choice([None, 1, 2, 50]),
            exclude=random.sample(ids, random.randrange(4)),
            exclude_history=random.random() < 0.5,
            rerank=random.random() < 0.7,
        )
        (one,), (two,) = (searcher.answer([searcher.prepare(request)[0]]) for searcher in (first, second))
        names = [
            dict(zip(s.vocabulary.names(a.items), a.scores.tolist(), strict=True))
            for s, a in zip((first, second), (one, two), strict=True)
        ]
        assert one.scores == pytest.approx(two.scores, rel=1e-5, abs=1e-5)
        last = one.scores.min(initial=np.inf) + 1e-5
        above = [{name: score for name, score in each.items() if score > last} for each in names]
        assert above[0] == pytest.approx(above[1], rel=1e-5, abs=1e-5)
        assert (one.short, one.read, one.candidates) == (two.short, two.read, two.candidates)


def living(version: Version, changes: Sequence[Sequence[Change]]) -> tuple[Searcher, list[Record]]:
    """The version with an overlay that has the changes, and their records."""
    searcher = Searcher.open(version, 500)
    made = records(changes, version.manifest.covers)
    searcher.apply(made)
    return searcher, made


def with_text_ids(version: Version) -> Version:
    """The same version, but its ids are strings."""

    def text(item: ItemId) -> str:
        return f"item {item:05}"

    parts = {name: bytes(part) for name, part in version.parts.items() if name != "item_ids.npy"}
    parts["item_ids.json"] = json.dumps([text(item) for item in version.item_ids]).encode()
    golden = version.document("golden.json")
    for request in golden["requests"]:
        request["history"] = [text(item) for item in request["history"]]
    for answer in golden["answers"]:
        answer["item_ids"] = [text(item) for item in answer["item_ids"]]
    parts["golden.json"] = json.dumps(golden).encode()
    manifest = version.manifest
    names = {field.name for field in fields(manifest)} - {"parts", "version", "fingerprint", "format"}
    return Version.build(parts, **{name: getattr(manifest, name) for name in names})


@pytest.mark.parametrize("seed", range(6))
def test_the_folded_version_answers_as_before(planted: Planted, seed: int) -> None:
    """Also if it is folded again, and if more records come."""
    random = Random(seed)
    version = with_text_ids(planted.version) if seed % 2 else planted.version
    for _ in range(3):
        searcher, made = living(version, random_changes(Searcher.open(version), random, 40))
        version = fold(version, made)
        folded = Searcher.open(version, 500)
        same_answers(searcher, folded, random)
        more = records(random_changes(folded, random, 20), version.manifest.covers)
        for each in (searcher, folded):
            each.apply(more)
        same_answers(searcher, folded, random)


def test_what_a_folded_version_has(planted: Planted) -> None:
    """Its items are those of the version and the new ones; deleted ones are in no list, but known in histories."""
    first, second = planted.searcher.vocabulary.names(np.arange(2))
    seen = planted.searcher.vocabulary.names(np.arange(3, 6))
    searcher, made = living(
        planted.version,
        [
            [put(planted.searcher, 5000, Evidence([seen]))],
            [Delete(first)],
            [put(planted.searcher, second, Evidence([seen]))],
        ],
    )  # fmt: skip
    version = fold(planted.version, made)

    assert version.manifest.items == planted.version.manifest.items + 1
    assert version.manifest.covers == made[-1].place
    assert version.manifest.parts["model.onnx"] == planted.version.manifest.parts["model.onnx"]
    folded = Searcher.open(version, 10)
    assert folded.paths_of(first) == []
    for item in (second, 5000):
        assert folded.paths_of(item) == searcher.paths_of(item) != []
    assert [folded.is_live(item) for item in (first, second, 5000)] == [False, True, True]
    assert folded.prepare(Request(history=[first, 5000]))[1].history == 0
    assert read_changes(version.parts["changes.json"]) == [
        Put(5000, None, Evidence([seen])),
        Delete(first),
        Put(second, None, Evidence([seen])),
    ]


def test_expired_items(planted: Planted) -> None:
    """An item that expired a moment ago may come back; one that expired long ago is deleted by the fold."""
    old, new, other = planted.searcher.vocabulary.names(np.arange(3))
    _, made = living(
        planted.version, [[Patch(old, expires=1000), Patch(new, expires=EXPIRED), Patch(other, expires=FAR)]]
    )
    folded = Searcher.open(fold(planted.version, made), 10)

    assert [folded.is_live(item) for item in (old, new, other)] == [False, False, True]
    folded.apply(records([[Patch(item, expires=0) for item in (old, new, other)]], made[-1].place))
    assert [folded.is_live(item) for item in (old, new, other)] == [False, True, True]


def test_another_network_gets_the_catalogue(planted: Planted, other: Planted) -> None:
    """A version that is trained anew knows the items that were put, and not those that were deleted."""
    ids = planted.searcher.vocabulary.names(np.arange(12))
    changes: list[list[Change]] = [
        [put(planted.searcher, 5000, Evidence(like=ids[:2])), put(planted.searcher, 5001, Evidence(like=ids[:2]))],
        [Delete(5001), Delete(ids[0]), Patch(ids[1], bias=9.0)],
        [put(planted.searcher, ids[2], Evidence(like=ids[:2]), FAR)],
    ]
    _, made = living(planted.version, changes)
    folded = fold(planted.version, made)
    left = [change for each in changes for change in each]
    version = with_catalogue(other.version, net(left), folded.manifest.covers)
    searcher = Searcher.open(version, 10)

    assert version.manifest.covers == made[-1].place
    assert [searcher.is_live(item) for item in (5000, 5001, ids[0], ids[1], ids[2])] == [True, False, False, True, True]
    (placement,) = other.searcher.place([Evidence(like=ids[:2])])
    assert searcher.paths_of(5000) == sorted(placement.paths) != []
    assert searcher.paths_of(ids[2]) == other.searcher.paths_of(ids[2])  # this network was trained with it


def test_new_items_that_are_like_new_items(planted: Planted, other: Planted) -> None:
    """A version that is trained anew places them one after another."""
    ids = planted.searcher.vocabulary.names(np.arange(2))
    changes = [Put(5000 + i, None, Evidence(like=[ids[0]] if i == 0 else [4999 + i])) for i in range(3)]
    searcher = Searcher.open(with_catalogue(other.version, changes, Place(1, "0" * 16)), 10)

    assert all(searcher.paths_of(5000 + i) for i in range(3))


def test_everything_is_deleted(planted: Planted) -> None:
    """The folded version has no posting, and answers with nothing until items are put again."""
    ids = planted.searcher.vocabulary.names(np.arange(planted.index.items))
    _, made = living(planted.version, [[Delete(item) for item in ids]])
    folded = Searcher.open(fold(planted.version, made), 10)

    assert len(folded.answer([folded.prepare(Request(history=ids[:3]))[0]])[0].items) == 0
    folded.apply(records([[put(planted.searcher, 5000, Evidence(like=ids[:2]))]], made[-1].place))
    assert folded.vocabulary.names(folded.answer([folded.prepare(Request(k=3))[0]])[0].items) == [5000]


def test_an_item_that_has_expired_for_long_stays_deleted(planted: Planted, other: Planted) -> None:
    """Also in a version that is trained later; it comes back with a put that has its place."""
    item, *_ = planted.searcher.vocabulary.names(np.arange(3))
    searcher, made = living(planted.version, [[Patch(item, expires=1000)]])
    version = fold(planted.version, made)
    left = read_changes(version.parts["changes.json"])

    assert left == [Delete(item)]
    assert not Searcher.open(with_catalogue(other.version, left, made[-1].place), 10).is_live(item)
    back = records([[Put(item, searcher.where(item), Evidence(), None, 5)]], made[-1].place)
    for opened in (searcher, Searcher.open(version, 10)):
        opened.apply(back)
        assert opened.is_live(item)
        assert opened.paths_of(item) == planted.searcher.paths_of(item)


def test_a_current_version_that_cannot_be_read(tmp_path: Path, planted: Planted) -> None:
    """A training then reads the whole log; if some of it was removed, it says so instead of forgetting deletes."""
    store = FolderStore(str(tmp_path / "store"))
    store.activate(store.publish(planted.version))
    append(store, [Delete(5000)])
    manifest = tmp_path / "store" / "versions" / str(store.current()) / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format": {FORMAT}', '"format": 2'))

    assert catalogue(store) == ([Delete(5000)], store.log_end())
    store.log_start = store.log_end  # type: ignore[method-assign]
    with pytest.raises(VersionIncompatible):
        catalogue(store)


def test_a_rollback_while_the_log_is_trimmed(tmp_path: Path, planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the version needs that is current again is kept."""
    store = FolderStore(str(tmp_path / "store"))
    first = store.publish(planted.version)
    store.activate(first)
    append(store, [Delete(5000)])
    second = fold_current(store).version
    trimmed: list[int] = []
    monkeypatch.setattr(store, "trim", trimmed.append)
    previous = store.previous

    def roll_back_after() -> str | None:
        found = previous()
        store.activate(first, expected=second)
        return found

    monkeypatch.setattr(store, "previous", roll_back_after)
    tidy(store)
    assert trimmed == [1]


def test_net_changes() -> None:
    """One change is left of each item: the last delete, or all that is known of it."""
    clicks = Evidence([[1, 2]])
    changes: list[Change] = [
        Put(7, None, clicks, 5),
        Put(7, None, Evidence(attributes={"a": 1}), 9),
        Patch(7, bias=2.0, attributes={"b": 2}),
        Move(7, [1], "n"),
        Patch(8, expires=4),
        Patch(8, attributes={"a": 1}),
        Patch(9, bias=1.0),
        Put(1, None, clicks),
        Delete(1),
        Delete(2),
        Put(2, None),
        Patch(3, expires=4),
        Delete(3),
        Patch(3, expires=5),
    ]

    assert net(changes) == [
        Put(7, None, Evidence([[1, 2]], [], {"a": 1, "b": 2}), 9),
        Patch(8, None, 4, {"a": 1}),
        Delete(1),
        Put(2, None, Evidence()),
        Delete(3),
    ]
    assert net(net(changes)) == net(changes)


@pytest.fixture
def store(every_url: str) -> IndexStore:
    """An empty store of each kind."""
    store = open_store(every_url)
    store.require_writable()
    return store


def append(store: IndexStore, changes: Sequence[Change]) -> None:
    """A record of the log."""
    store.append([Draft(f"p{time.time_ns()}", 1, [to_json(change) for change in changes])])


def test_folding_a_store(store: IndexStore, planted: Planted) -> None:
    """The result is current; records that the current and the previous version have are removed."""
    with pytest.raises(VersionNotFound):
        fold_current(store)
    first = store.publish(planted.version)
    store.activate(first)
    assert fold_current(store)[:3] == (None, first, 0)

    ids = planted.searcher.vocabulary.names(np.arange(3))
    for item in ids:
        append(store, [Delete(item)])
    second, previous, count = fold_current(store)[:3]
    assert (store.current(), previous, count) == (second, first, 3)
    assert store.log_start() == START  # the previous version needs the records
    assert catalogue(store) == ([Delete(item) for item in ids], store.log_end())

    append(store, [Delete(5000)])
    third = fold_current(store).version
    assert third
    loaded = store.load(third)
    assert loaded.manifest.covers == store.log_end()
    assert not Searcher.open(loaded).is_live(ids[0])
    assert catalogue(store)[0] == [*(Delete(item) for item in ids), Delete(5000)]
    assert store.log_start().seq in (0, 3)  # a folder removes whole files, so it may keep more than it must


def test_an_earlier_network_gets_the_catalogue(store: IndexStore, planted: Planted, other: Planted) -> None:
    """Also after the records that it lacks were removed."""
    ids = planted.searcher.vocabulary.names(np.arange(4))
    first = store.publish(planted.version)
    store.activate(first)
    append(store, [put(planted.searcher, 5000, Evidence(like=ids[2:])), Delete(ids[0])])
    store.activate(store.publish(with_catalogue(other.version, *catalogue(store))))
    append(store, [Delete(ids[1])])
    fold_current(store)
    append(store, [Put(5001, None, Evidence(like=ids[2:]))])
    fold_current(store)

    made, base, *_ = fold_current(store, first)
    assert (store.current(), base) == (made, first)
    version = store.load(str(made))
    assert version.manifest.covers == store.log_end()
    assert version.manifest.parts["model.onnx"] == planted.version.manifest.parts["model.onnx"]
    searcher = Searcher.open(version)
    assert [searcher.is_live(item) for item in (*ids[:3], 5000, 5001)] == [False, False, True, True, True]
    assert searcher.paths_of(5001)


def test_one_folds_at_a_time(store: IndexStore, every_url: str, planted: Planted) -> None:
    """The second is told so, and may when the first is done."""
    store.activate(store.publish(planted.version))
    append(store, [Delete(5000)])
    with store.lease("fold") as mine, open_store(every_url).lease("other") as different:
        assert (mine, different) == (True, True)
        with pytest.raises(FoldRunning):
            fold_current(open_store(every_url))
    assert fold_current(open_store(every_url)).records == 1


def test_a_fold_does_not_undo_a_swap(
    tmp_path_factory: pytest.TempPathFactory, planted: Planted, other: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another version has become current meanwhile, it stays current."""
    store = FolderStore(str(tmp_path_factory.mktemp("store")))
    store.activate(store.publish(planted.version))
    append(store, [Delete(5000)])
    publish, second = store.publish, store.publish(other.version)

    def publish_and_swap(version: Version) -> str:
        name = publish(version)
        store.activate(second)
        return name

    monkeypatch.setattr(store, "publish", publish_and_swap)
    with pytest.raises(PointerMoved):
        fold_current(store)
    assert store.current() == second


def test_the_command(tmp_path: Path, planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    """`dr-index fold` makes the new version current and says what is in it; `--version V` and `--no-activate` too."""
    url = str(tmp_path / "store")
    store = FolderStore(url)
    first = store.publish(planted.version)
    store.activate(first)
    assert main(["fold", "--store", url]) == 0
    assert capsys.readouterr().out == f"{first} has all records of the log; there is nothing to fold\n"

    append(store, [Delete(5000)])
    assert main(["fold", "--store", url, "--no-activate"]) == 0
    made = capsys.readouterr().out.split()[0]
    assert store.current() == first
    assert main(["fold", "--store", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": made, "previous": first, "records": 1}
    assert store.current() == made
    assert main(["fold", "--store", url, "--version", "v1"]) == 0
    assert capsys.readouterr().out == f"{store.current()} is current: {first} and 1 record\n"
    with store.lease("fold"):
        assert main(["fold", "--store", url]) == 1
    assert "another process folds" in capsys.readouterr().err
