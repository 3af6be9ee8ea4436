"""The overlay: items that come, change, move and go beside a version, against a slow model of lists."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from random import Random
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from index_store.errors import LogDamaged
from index_store.log import START, Draft, Place, Record, decode, encode
from retrieval.changes import (
    Change,
    Delete,
    Evidence,
    Move,
    Patch,
    Placement,
    Put,
    Similar,
    changes_of,
    read_changes,
    to_json,
    write_changes,
)
from retrieval.paths.index import NO_NEIGHBOURS, Neighbours, PathIndex
from retrieval.paths.overlay import NO_END, NO_LATE, Overlay
from retrieval.paths.rerank import Beams, candidates
from retrieval.query import ItemId, Request
from retrieval.searcher import Searcher
from retrieval.vocabulary import Vocabulary
from tests.conftest import Planted

NETWORK = "0123456789abcdef"
ITEMS, PATHS, SIZE, J = 12, 8, 4, 3
PATH_IDS = [3, 5, 8, 13, 21, 34, 55, 89]
FAR = 4_000_000_000_000  # ms; in 2096
NOW = time.time_ns() // 10**6


def records(changes: Sequence[Sequence[Change]], after: Place = START) -> list[Record]:
    """A record for each list of changes, as a store gives them."""
    made = []
    for each in changes:
        after, text = encode(Draft("p", after.seq, [to_json(change) for change in each]), after, NOW)
        made.append(decode(text))
    return made


def never(_: Sequence[Put]) -> list[Placement]:
    """For records that were all made for this network."""
    raise AssertionError("nothing has to be placed")


def apply(
    overlay: Overlay, made: Sequence[Record], derive: Callable[[Sequence[Put]], Sequence[Placement]] = never
) -> int:
    """Apply records, as a searcher does."""
    return overlay.apply(changes_of(made), made[-1].place if made else overlay.place, derive)


def place(rng: np.random.Generator, paths: Sequence[int] | None = None, network: str = NETWORK) -> Placement:
    """A random vector and bias, on `paths` or on up to three random ones."""
    chosen = rng.choice(PATH_IDS, rng.integers(1, J + 1), replace=False).tolist() if paths is None else list(paths)
    vector = rng.normal(size=SIZE).astype(np.float16)
    return Placement(vector, float(np.float32(rng.normal())), chosen, "clicks", network)


@dataclass
class Living:
    """A small index with an overlay, and the model of what it must contain."""

    index: PathIndex
    vocabulary: Vocabulary
    lists: dict[int, list[ItemId]]  # path -> its items, in the order in which they are read
    vectors: dict[ItemId, NDArray[np.float16]]
    biases: dict[ItemId, float]
    expires: dict[ItemId, int | None]

    @property
    def overlay(self) -> Overlay:
        assert self.index.overlay
        return self.index.overlay

    def apply(self, changes: Sequence[Sequence[Change]]) -> None:
        """Apply records to both."""
        apply(self.overlay, records(changes, self.overlay.place))
        for change in (change for each in changes for change in each):
            self._change(change)

    def _change(self, change: Change) -> None:
        item = change.item_id
        if isinstance(change, Put):
            assert change.placement
            self._take_off(item)
            for path in change.placement.paths:
                self.lists[path].insert(0, item)
            self.vectors[item], self.biases[item] = change.placement.vector, change.placement.bias
            self.expires[item] = change.expires
        elif item not in self.expires:
            return
        elif isinstance(change, Delete):
            self._take_off(item)
            del self.expires[item]
        elif isinstance(change, Move):
            self._take_off(item)
            for path in change.paths:
                self.lists[path].insert(0, item)
        else:
            self.biases[item] = self.biases[item] if change.bias is None else change.bias
            if change.expires is not None:
                self.expires[item] = change.expires or None

    def _take_off(self, item: ItemId) -> None:
        for items in self.lists.values():
            if item in items:
                items.remove(item)

    def live(self, item: ItemId) -> bool:
        """Whether the model has the item."""
        return item in self.expires and (self.expires[item] or FAR) >= FAR

    def check(self) -> None:
        """Every path has the items of the model, in its order, whatever number of them is read; so have all items."""
        for n in (1, 2, 100):
            read = self.index.read(np.tile(np.arange(-1, PATHS), 3), n)  # as three requests that search the same paths
            names = self.vocabulary.names(read.items.astype(np.int64))
            expected = [[item for item in self.lists[path] if self.live(item)][:n] for path in PATH_IDS]
            assert names == 3 * [item for items in expected for item in items]
            assert read.lengths.tolist() == 3 * [0, *map(len, expected)]
            assert read.seq == self.overlay.place.seq
        live = self.vocabulary.names(np.flatnonzero(self.index.live()))
        assert sorted(live) == sorted(item for item in self.expires if self.live(item))
        vectors, new, bias, *_ = self.index.item_arrays
        for item in self.expires:
            at = self.vocabulary.index(item)
            assert at is not None
            row = vectors[at] if at < ITEMS else new[at - ITEMS]
            assert row.tolist() == self.vectors[item].view(np.uint16).tolist()
            assert bias[at] == np.float32(self.biases[item])


def living(rng: np.random.Generator, *, text: bool = False, slots: int = 400, remote: bool = False) -> Living:
    """An index of twelve items, each on one to three of eight paths."""
    ids: list[ItemId] = [f"i{i:02}" for i in range(ITEMS)] if text else [int(i) for i in range(0, 10 * ITEMS, 10)]
    lists: dict[int, list[ItemId]] = {path: [] for path in PATH_IDS}
    for i, item in enumerate(ids):
        for path in {PATH_IDS[i % PATHS], *rng.choice(PATH_IDS, 2).tolist()}:
            lists[path].append(item)
    flat = np.array([ids.index(item) for path in PATH_IDS for item in lists[path]], np.int32)
    offsets = np.cumsum([0, *(len(lists[path]) for path in PATH_IDS)])
    vectors, bias = rng.normal(size=(ITEMS, SIZE)).astype(np.float16), rng.normal(size=ITEMS).astype(np.float32)
    vocabulary = Vocabulary([str(i) for i in ids] if text else np.array(ids))

    def read_paths(paths: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int32]:
        starts = offsets[np.searchsorted(PATH_IDS, paths)]
        return np.concatenate([np.empty(0, np.int32), *(flat[s : s + n] for s, n in zip(starts, lengths, strict=True))])

    path_ids = np.array(PATH_IDS)
    ends = np.full(ITEMS, NO_END, np.uint32)
    overlay = Overlay(
        vocabulary, path_ids, bias, ends, NO_LATE, np.zeros(ITEMS, np.int64),
        embedding=SIZE, paths_per_item=J, network=NETWORK, slots=slots, place=START,
    )  # fmt: skip
    index = PathIndex(
        path_ids, offsets, flat, vectors, bias, NO_NEIGHBOURS, read_paths if remote else None, overlay=overlay
    )
    return Living(
        index, vocabulary, lists, dict(zip(ids, vectors, strict=True)), dict(zip(ids, bias.tolist(), strict=True)),
        dict.fromkeys(ids),
    )  # fmt: skip


def random_change(random: Random, rng: np.random.Generator, ids: Sequence[ItemId]) -> Change:
    """A change of an item of the version, of a new one, or of one that nobody knows."""
    item = random.choice(ids)
    match random.choice(["put", "put", "delete", "move", "bias", "expire", "stay"]):
        case "put":
            return Put(item, place(rng), Evidence(), random.choice([None, None, FAR, 1000]))
        case "delete":
            return Delete(item)
        case "move":
            return Move(item, rng.choice(PATH_IDS, rng.integers(1, J + 1), replace=False).tolist(), NETWORK)
        case "bias":
            return Patch(item, bias=float(np.float32(rng.normal())))
        case "expire":
            return Patch(item, expires=random.choice([1000, FAR]))
        case _:
            return Patch(item, expires=0)


@pytest.mark.parametrize("remote", [False, True], ids=["resident", "remote"])
@pytest.mark.parametrize("text", [False, True], ids=["integers", "strings"])
@pytest.mark.parametrize("seed", range(5))
def test_random_changes(seed: int, text: bool, remote: bool) -> None:
    """After each group of random records, everything that can be read equals the model."""
    random, rng = Random(seed), np.random.default_rng(seed)
    catalogue = living(rng, text=text, remote=remote)
    ids = [*catalogue.expires, *(["new", "i000", "z"] if text else [-5, 5, 10**15])]
    catalogue.check()
    for _ in range(25):
        groups = [
            [random_change(random, rng, ids) for _ in range(random.randrange(4))] for _ in range(random.randrange(1, 4))
        ]
        catalogue.apply(groups)
        catalogue.check()


def test_a_full_overlay_leaves_new_items_out() -> None:
    """Deletes and everything else that needs no room are applied. An item that is put again is gone, not twice."""
    rng = np.random.default_rng(0)
    catalogue = living(rng, slots=3)
    catalogue.apply([[Put(1, place(rng)), Put(2, place(rng))]])
    assert catalogue.overlay.fullness == pytest.approx(2 / 3)

    more: list[list[Change]] = [
        [Delete(0)],
        [Put(3, place(rng)), Put(4, place(rng)), Put(2, place(rng)), Patch(10, bias=0.5)],
    ]
    assert apply(catalogue.overlay, records(more, catalogue.overlay.place)) == 2
    for change in (*more[0], more[1][0], Delete(2), more[1][3]):
        catalogue._change(change)
    catalogue.check()
    assert catalogue.overlay.fullness == 1
    catalogue.apply([[Delete(1)]])
    catalogue.check()


def test_moves_use_up_the_postings() -> None:
    """An item whose move has no room stays where it is."""
    catalogue = living(np.random.default_rng(0), slots=3)
    for _ in range(6):
        catalogue.apply([[Move(0, PATH_IDS[:3], NETWORK)]])
    assert apply(catalogue.overlay, records([[Move(0, PATH_IDS[4:5], NETWORK)]], catalogue.overlay.place)) == 1
    catalogue.check()
    assert catalogue.overlay.place.seq == 7


def test_an_item_that_was_placed_for_another_network() -> None:
    """It is placed again, together with others; moves of paths that mean nothing here, and paths not in use, are left
    out. An item with which this version was trained stays where it is.
    """
    rng = np.random.default_rng(0)
    catalogue = living(rng)
    foreign = Put(7, place(rng, [1, 2], "f" * 16), Evidence([[10, 20]], [30], {"price": 4}), FAR)
    second, trained = replace(foreign, item_id=8), replace(foreign, item_id=10, expires=None)
    own = place(rng, [5, 6, 8])
    asked: list[Put] = []

    def derive(puts: Sequence[Put]) -> list[Placement]:
        asked.extend(puts)
        return [own] * len(puts)

    apply(catalogue.overlay, records([[foreign, trained], [second, Move(0, [3], "f" * 16)]]), derive)
    assert [put.item_id for put in asked] == [7, 10, 8]
    assert (asked[0].evidence, asked[0].expires) == (foreign.evidence, FAR)
    for put in (foreign, second):
        catalogue._change(replace(put, placement=replace(own, paths=[5, 8])))
    catalogue.check()


def test_a_put_without_evidence_keeps_an_item() -> None:
    """It changes only when the item ends; a deleted item is put anew."""
    rng = np.random.default_rng(0)
    catalogue = living(rng)
    nothing = replace(place(rng, []), placed_by="none")
    apply(catalogue.overlay, records([[Put(10, nothing, expires=1000), Put(20, nothing)]]))
    catalogue.expires[10] = 1000
    catalogue.check()
    catalogue.apply([[Delete(30)], [Put(30, nothing)]])
    catalogue.check()


@pytest.mark.parametrize(
    "change",
    [
        Put(7, place(np.random.default_rng(0)), Evidence([[1, 2], []], [3], {"name": "x", "tags": ["a"]}), FAR),
        Put("7", place(np.random.default_rng(1), []), Evidence([], [])),
        Delete("7"),
        Move(7, [1, 2], NETWORK),
        Patch(7, 0.5, 0, {"price": None}),
        Patch(7),
    ],
    ids=lambda change: type(change).__name__,
)
def test_changes_survive_the_log(change: Change) -> None:
    """A change that was written and read is the same, its vector bit by bit."""
    (again,) = changes_of([decode(encode(Draft("p", 1, [to_json(change)]), START, 0)[1])])
    assert write_changes([again]) == write_changes([change])
    assert write_changes(read_changes(write_changes([change]))) == write_changes([change])
    if isinstance(change, Put) and isinstance(again, Put) and change.placement:
        assert again.placement
        assert np.array_equal(again.placement.vector, change.placement.vector)
        again, change = replace(again, placement=None), replace(change, placement=None)
    assert again == change


@pytest.mark.parametrize(
    "wrong",
    [
        {"op": "rename"},
        {"item_id": None},
        {"item_id": True},
        {"item_id": 1.5},
        {"item_id": 2**63},
        {"item_id": "seven"},
        {"expires": "soon"},
        {"evidence": {"clicked_by": [1]}},
        {"evidence": {"like": 5}},
        {"evidence": {"like": [2**70]}},
        {"evidence": {"attributes": []}},
        {"vector": "?"},
        {"vector": "AHwAAAAAAAA="},  # infinity
        {"vector": "AAA="},  # one number
        {"bias": None},
        {"bias": 1e300},
        {"bias": 1e999},
        {"paths": ["1"]},
        {"paths": [-1]},
        {"paths": [2**63]},
        {"placed_by": "chance"},
        {"network": 1},
        {"neighbours": [5]},
        {"neighbours": {"items": [1.5], "similarities": [0.5]}},
        {"neighbours": {"items": [2**70], "similarities": [0.5]}},
        {"neighbours": {"items": [1, 2], "similarities": [0.5]}},
        {"follows": {"items": [1], "similarities": [True]}},
        {"follows": {"items": [1], "similarities": [1e300]}},
        {"follows": 7},
    ],
    ids=str,
)
def test_a_wrong_change_is_refused_with_its_whole_record(wrong: dict[str, object]) -> None:
    """Nothing of the records is applied."""
    rng = np.random.default_rng(0)
    catalogue = living(rng)
    put = to_json(Put(7, place(rng)))
    place_of = {} if wrong.keys() <= {"op", "item_id", "expires", "evidence"} else wrong
    put |= {"placement": put["placement"] | place_of} | ({} if place_of else wrong)
    huge = wrong.get("bias") == 1e999
    if huge:
        put["placement"]["bias"] = 0.0
    _, text = encode(Draft("p", 1, [to_json(Delete(0)), put]), START, 0)
    if huge:
        text = text.replace(b'"bias":0.0', b'"bias":1e999')
    with pytest.raises(LogDamaged):
        apply(catalogue.overlay, [decode(text)])
    catalogue.check()


def like(searcher: Searcher, item: ItemId, new: ItemId) -> Put:
    """A new item with the vector, the bias and the paths of an item."""
    index = searcher.structure.index
    at = searcher.vocabulary.index(item)
    assert at is not None
    rows = np.repeat(np.arange(len(index.path_ids)), index.sizes)[index.path_items == at]
    network = searcher.manifest.parts["model.onnx"].sha256[:16]
    vector, bias = index.item_vectors[at], float(index.item_bias[at])
    return Put(new, Placement(vector, bias, index.path_ids[rows].tolist(), "like", network))


def answer(searcher: Searcher, **fields: Any) -> list[ItemId]:
    """The ids of an answer."""
    query, _ = searcher.prepare(Request(**fields))
    return searcher.vocabulary.names(searcher.answer([query])[0].items)


def test_items_come_and_go_in_answers(planted: Planted) -> None:
    """A deleted item is replaced by the next one. A new item is found with the one that it is like, and has the same
    effect in a history.
    """
    searcher = Searcher.open(planted.version, slots=100)
    assert searcher.overlay
    wide = {"beam": 30, "per_path": 50}
    history = planted.searcher.vocabulary.names(np.arange(3))
    before = answer(searcher, history=history, k=12, **wide)
    searcher.apply(records([[Delete(before[0]), Delete(before[4])]], searcher.overlay.place))
    assert answer(searcher, history=history, k=10, **wide) == [*before[1:4], *before[5:]]

    searcher.apply(records([[like(searcher, before[1], 10**6)]], searcher.overlay.place))
    both = {before[1], 10**6}
    assert set(answer(searcher, history=history, k=2, rerank=False, exclude=before[2:], **wide)) == both
    assert both <= set(answer(searcher, history=history, k=10, **wide))
    assert 10**6 not in answer(searcher, history=history, k=10, exclude=[10**6], **wide)
    after, also = (
        answer(searcher, history=[*history, each], k=10, rerank=False, exclude=list(both), **wide) for each in both
    )
    assert after == also


def test_an_answer_has_k_items_while_k_are_live(planted: Planted) -> None:
    """However many are deleted, and on whichever paths the others are."""
    searcher = Searcher.open(planted.version, slots=10)
    ids = planted.searcher.vocabulary.names(np.arange(planted.index.items))
    for part in np.array_split(np.random.default_rng(0).permutation(len(ids))[3:], 5):
        searcher.apply(records([[Delete(ids[i]) for i in part]], searcher.overlay.place))  # type: ignore[union-attr]
        live = searcher.vocabulary.names(np.flatnonzero(searcher.structure.index.live()))
        for k in (3, len(live)):
            found = answer(searcher, history=ids[:2], k=k, exclude_history=False)
            assert len(found) == len(set(found)) == k
            assert set(found) <= set(live)
    assert len(live) == 3


def test_a_searcher_without_room_has_no_overlay(planted: Planted) -> None:
    """So the trainer measures without its cost."""
    assert planted.searcher.overlay is None
    assert answer(planted.searcher, history=[], k=5) == answer(Searcher.open(planted.version, slots=1), history=[], k=5)


@pytest.mark.parametrize("text", [False, True], ids=["integers", "strings"])
def test_a_new_item_has_its_own_neighbours(text: bool) -> None:
    """The reranker's last four features of a new item: the roots of the sums over the history, all and recent."""
    rng = np.random.default_rng(0)
    catalogue = living(rng, text=text)
    first, second = list(catalogue.expires)[:2]
    none = Neighbours(np.full((2, ITEMS, 1), -1, np.int32), np.zeros((2, ITEMS, 1), np.uint16))
    index = replace_fields(catalogue.index, neighbours=none)
    near_items = Similar([first, second, "new" if text else 7], [0.5, 0.25, 0.125])
    new: list[ItemId] = ["new", "other"] if text else [7, 8]
    puts = [
        Put(item, replace(place(rng, [3]), neighbours=near_items, follows=Similar([second], [1.0]))) for item in new
    ]
    catalogue.apply([[puts[0]], [puts[1]]])

    history = np.array([0, 1, 2, 1, ITEMS])  # first, second, third, second, the new item
    beams = Beams(
        np.zeros((2, SIZE), np.float32),
        np.array([[0], [0]], np.int32),
        np.zeros((2, 1), np.float32),
        history,
        np.array([0, 5]),
    )
    postings = index.read(np.array([0, 0]), 2)
    read = candidates(index, beams, postings._replace(lengths=postings.lengths.reshape(2, 1)))
    near = 0.5 + 2 * 0.25 + 0.125
    recent = 0.5 * 0.8**4 + 0.25 * (0.8**3 + 0.8) + 0.125
    expected = np.sqrt([near, recent, 2, 0.8**3 + 0.8])
    assert read.item.tolist() == [ITEMS, ITEMS + 1] * 2
    assert read.features[:2, 4:].tolist() == [[0] * 4] * 2  # without a history
    assert np.allclose(read.features[2:, 4:], expected, atol=1e-4)


def test_neighbours_of_the_wrong_kind_are_left_out() -> None:
    """An id that no item of this catalogue can have names none; the item itself is put, under its own name."""
    rng = np.random.default_rng(0)
    catalogue = living(rng)
    for item in (7, 8):
        catalogue.apply(
            [
                [
                    Put(
                        item,
                        replace(
                            place(rng), neighbours=Similar(["abc", 10], [0.5, 0.25]), follows=Similar(["x"], [1.0])
                        ),
                    )
                ]
            ]
        )
        catalogue.check()
    assert catalogue.overlay.neighbours[0, :2, 1].tolist() == [1, 1]


def test_an_item_that_is_put_many_times() -> None:
    """What it left on a path is taken off, so that reading the path does not take longer and longer."""
    rng = np.random.default_rng(0)
    catalogue = living(rng, slots=2000)
    catalogue.apply([[Put(5, place(rng, PATH_IDS[:2]))]])
    for item in (7, 9):
        for _ in range(300):
            catalogue.apply([[Put(item, place(rng, PATH_IDS[:3]))]])
    catalogue.check()
    assert catalogue.overlay.crowd[:3].max() < 100
    assert catalogue.overlay.crowd[:2].min() >= 3
