"""The overlay: what a process holds beyond its version, so that items come and go while it answers.

It has the items that are new since the version was made, in slots, and says which items are live. Item indices go on
after those of the version: the item in slot i has the index V + i. All arrays are allocated once, and slots are used
once: an item that is put again gets a new slot. Before the slots are used up, the version and its overlay are folded
into a new version (fold.py).

One thread applies the records of the log, and any number of threads search. The two compiled loops of paths/lists.py
hold the interpreter's lock, so a search sees all of the records that were applied together, or nothing of them.

Shapes: V items of the version, L of them late, C slots, P paths in use, J paths of an item, Q postings, E numbers in an
item vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index_store.errors import LogDamaged
from index_store.log import Place
from retrieval.changes import Change, Delete, Move, Patch, Placement, Put
from retrieval.paths import lists
from retrieval.query import ItemId
from retrieval.vocabulary import Vocabulary

#: Postings for each slot, relative to J: those of the items in the slots, and those of items that move.
POSTINGS = 2
NO_END = 2**32 - 1  # of an item that does not end, in item_ends.npy
#: The items that have a new item among their neighbours, at most so many of them, and as many that it follows.
NEIGHBOURS = 8


class Late(NamedTuple):
    """The L items of a version that came after the training: their indices, (L,) ascending, and their similar items.

    neighbours: int32 (2, L, NEIGHBOURS), the items that they are neighbours of, and those that they follow.
    similarities: uint16 of the same shape, in units of 1 / 65535.
    """

    items: NDArray[np.int32]
    neighbours: NDArray[np.int32]
    similarities: NDArray[np.uint16]


NO_LATE = Late(np.empty(0, np.int32), np.empty((2, 0, NEIGHBOURS), np.int32), np.empty((2, 0, NEIGHBOURS), np.uint16))


@dataclass
class _Batch:
    """The arguments of `lists.apply`, as lists: what happens to which item. paths: ids, of PUT and MOVE."""

    kinds: list[int] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    biases: list[float] = field(default_factory=list)
    paths: list[Sequence[int]] = field(default_factory=list)
    postings: int = 0

    def add(self, kind: int, item: int, end: int = 0, bias: float = 0.0, paths: Sequence[int] = ()) -> None:
        self.kinds.append(kind)
        self.items.append(item)
        self.ends.append(end)
        self.biases.append(bias)
        self.paths.append(paths)
        self.postings += len(paths)


class Overlay:
    """The changes since a version, up to the record `place`."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        path_ids: NDArray[np.int64],
        item_bias: NDArray[np.float32],
        item_ends: NDArray[np.uint32],
        late: Late,
        item_since: NDArray[np.int64],
        *,
        embedding: int,
        paths_per_item: int,
        network: str,
        slots: int,
        place: Place,
    ) -> None:
        """vocabulary: gets the ids of new items. path_ids: (P,) ascending. item_bias, item_ends and item_since: those
        of the version, (V,).

        network: see `Placement`. slots: C. place: the last record that the version covers.
        """
        self.place = place
        self._vocabulary, self._path_ids, self._network = vocabulary, path_ids, network
        self._first = len(item_bias)  # V
        self._paths_per_item = paths_per_item
        self.vectors = np.zeros((slots, embedding), np.uint16)
        # The rows of the version's late items, and then those of the slots.
        self._late, self._late_items = len(late.items), frozenset(late.items.tolist())
        self.neighbours = np.concatenate([late.neighbours, np.zeros((2, slots, NEIGHBOURS), np.int32)], axis=1)
        self.similarities = np.concatenate([late.similarities, np.zeros((2, slots, NEIGHBOURS), np.uint16)], axis=1)
        self.bias = np.concatenate([item_bias, np.zeros(slots, np.float32)])
        self._state = np.zeros(self._first + slots, np.int64)
        ends = item_ends.astype(np.int64)
        self._state[: self._first] = np.where(ends == NO_END, lists.NEVER, ends) << 16
        self._item_since, self._new_since = item_since, np.zeros(slots, np.int64)
        self._heads = np.full(len(path_ids), -1, np.int32)
        self.crowd = np.zeros(len(path_ids), np.int32)  # postings of each chain, and late items in each list
        self._limits = np.full(len(path_ids), lists.SWEPT, np.int32)  # of `crowd`, see `lists.apply`
        self._chain = np.zeros((POSTINGS * slots * paths_per_item, 4), np.int32)
        self._used = np.zeros(4, np.int64)
        self._used[lists.SEQ], self._used[lists.LIVE] = place.seq, np.count_nonzero(ends)
        self._successors: dict[int, int] = {}  # from an item that was put again to its new index

    def add_late(self, sizes: NDArray[np.int32]) -> None:
        """Count the late items that are in the lists of the version as crowding their paths, (P,)."""
        self.crowd += sizes
        self._limits += 2 * sizes

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What `lists.read_lists` needs: state, heads, chain and used."""
        return self._state, self._heads, self._chain, self._used

    @property
    def slots(self) -> int:
        """The number of slots in use."""
        return int(self._used[lists.SLOTS])

    @property
    def room(self) -> int:
        """C, how many items can be put in all."""
        return len(self.vectors)

    @property
    def live_items(self) -> int:
        """The number of items that were not deleted, those that have expired included."""
        return int(self._used[lists.LIVE])

    @property
    def fullness(self) -> float:
        """The share of the slots, or of the postings, that is in use; the larger of the two. 1 if there are none."""
        slots, postings = len(self.vectors), len(self._chain)
        return max(self._used[lists.SLOTS] / slots, self._used[lists.POSTINGS] / postings) if slots else 1.0

    def end_of(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """The second since 1970 at which each item ends; 0 for an item that was deleted."""
        return self._state[items] >> 16

    def since(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """When each item was put, ms since 1970; 0 for one that the version was trained with."""
        new = items >= self._first
        found = self._item_since[np.where(new, 0, items)]
        found[new] = self._new_since[items[new] - self._first]
        return found

    def postings(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The items of the chains that were not deleted, (N,), and the path of each; the newest of a path first."""
        chain = self._chain[: self._used[lists.POSTINGS]][::-1].astype(np.int64)
        items, rows = chain[:, 1], chain[:, 3]
        valid = (self._state[items] & lists.GENERATIONS == chain[:, 2]) & (self._state[items] >> 16 > 0)
        order = np.argsort(rows[valid], kind="stable")
        return items[valid][order], rows[valid][order]

    def listed(self, items: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Which items of the version's lists were neither deleted nor moved to other paths."""
        state = self._state[items]
        listed: NDArray[np.bool_] = (state & lists.GENERATIONS == 0) & (state >> 16 > 0)
        return listed

    def rows_of(self, item: int) -> NDArray[np.int64] | None:
        """The paths whose chains have a valid posting of the item, ascending; None if the version's lists have it."""
        generation = int(self._state[item] & lists.GENERATIONS)
        if generation == 0:
            return None
        chain = self._chain[: self._used[lists.POSTINGS]]
        return np.sort(chain[(chain[:, 1] == item) & (chain[:, 2] == generation), 3]).astype(np.int64)

    def apply(
        self, changes: Sequence[Change], place: Place, derive: Callable[[Sequence[Put]], Sequence[Placement]]
    ) -> int:
        """Apply changes, together, and return how many puts and moves were left out because there is no room.

        They are those of the records after `self.place` up to `place`. An item whose put is left out is in no answer
        until a version has room for it. derive: places items that were put for another network. Raises LogDamaged if
        a change does not fit this catalogue; then nothing has changed.
        """
        foreign = [change for change in changes if isinstance(change, Put) and self._is_foreign(change)]
        derived = iter(derive(foreign) if foreign else [])
        batch = _Batch()
        names: list[ItemId] = []
        placed: list[Placement] = []
        since: list[int] = []
        new: dict[ItemId, int] = {}  # the items that these records put
        replaced: dict[int, int] = {}  # the old index of an item that is put again, and the new one
        gone: set[int] = set()  # those that they delete
        left_out = 0
        for change, item_id, known_item in zip(changes, *self._named(changes), strict=True):
            item = new.get(item_id, known_item if known_item >= 0 else None)
            if not isinstance(change, Put):
                if item is not None:
                    left_out += not self._add(batch, item, change)
                if item is not None and isinstance(change, Delete):
                    gone.add(item)
                continue
            is_foreign = self._is_foreign(change)
            placement = next(derived) if is_foreign or change.placement is None else change.placement
            if len(placement.vector) != self.vectors.shape[1]:
                raise LogDamaged(f"the log has a vector of {len(placement.vector)} numbers")
            known = item is not None and item_id not in new and item not in gone
            if item is not None and known and self._keeps(item, placement, is_foreign=is_foreign):
                batch.add(lists.END, item, _end(change.expires))
                continue
            if item is not None:
                batch.add(lists.DELETE, item)
            if not self._has_room(batch, len(names) + 1, len(placement.paths)):
                left_out += 1
                continue
            new[item_id] = self._first + self.slots + len(names)
            since.append(self._since_of(item, gone, change, since))
            if item is not None:
                replaced[item] = new[item_id]
            names.append(item_id)
            placed.append(placement)
            batch.add(lists.PUT, new[item_id], _end(change.expires), placement.bias, placement.paths)
        # What may fail comes first, and writes only to slots that are not in use. Then the items get names, then they
        # are live, and last their ids are known to requests.
        rows = self._rows(batch.paths)
        if placed:
            self._store(placed, new)
            self._new_since[self.slots : self.slots + len(since)] = since
        self._successors |= replaced
        self._vocabulary.add(names)
        lists.apply(
            np.array(batch.kinds, np.int64),
            np.array(batch.items, np.int64),
            np.array(batch.ends, np.int64),
            np.array(batch.biases, np.float32),
            rows,
            self._state,
            self.bias,
            self._first,
            self._heads,
            self._chain,
            self.crowd,
            self._limits,
            self._used,
            place.seq,
        )
        self._vocabulary.publish()
        self.place = place
        return left_out

    def _named(self, changes: Sequence[Change]) -> tuple[list[ItemId], list[int]]:
        """The canonical id and the index of each change's item, -1 for an unknown one."""
        ids = []
        for change in changes:
            item_id = self._vocabulary.canonical(change.item_id)
            if item_id is None:
                raise LogDamaged(f"the log has an item id that is not of kind {self._vocabulary.kind}")
            ids.append(item_id)
        return ids, self._vocabulary.places(ids).tolist()

    def _since_of(self, item: int | None, gone: set[int], put: Put, since: Sequence[int]) -> int:
        """Since when an item is there that is put now. since: of the items that were put with it, in order."""
        first = self._first + self.slots
        if item is None or item in gone:
            return put.since
        if item >= first:
            return since[item - first]
        return int(self.since(np.array([item]))[0]) if self._state[item] >> 16 > 0 else put.since

    def _is_foreign(self, put: Put) -> bool:
        """Whether the item has to be placed for this network."""
        return put.placement is None or put.placement.network != self._network

    def _keeps(self, item: int, placement: Placement, *, is_foreign: bool) -> bool:
        """Whether an item stays where it is though it is put: nothing is known about it, or this version's network was
        trained with it. An item that was deleted does not stay.
        """
        trained = item < self._first and item not in self._late_items and not self._state[item] & lists.GENERATIONS
        stays = placement.placed_by in ("none", "kept")
        return bool(self._state[item] >> 16 > 0 and (stays or (is_foreign and trained)))

    def with_successors(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """`items`, and the indices that these items have now if they were put again."""
        later: list[int] = []
        for item in items.tolist() if self._successors else ():
            while (item := self._successors.get(item, -1)) >= 0:
                later.append(item)
        return np.concatenate([items, np.array(later, np.int64)]) if later else items

    def _store(self, placed: Sequence[Placement], new: Mapping[ItemId, int]) -> None:
        """Write the vectors and similar items of the next slots."""
        slots = slice(self.slots, self.slots + len(placed))
        vectors = np.array([placement.vector for placement in placed])
        if not np.isfinite(vectors).all():
            raise LogDamaged("the log has a vector with a number that is not finite")
        self.vectors[slots] = vectors.view(np.uint16)
        for kind, lists_ in enumerate(([p.neighbours for p in placed], [p.follows for p in placed])):
            ids = list(chain.from_iterable(similar.items for similar in lists_))
            similarities = np.array(list(chain.from_iterable(similar.similarities for similar in lists_)))
            counts = np.array([len(similar.items) for similar in lists_])
            if counts.tolist() != [len(similar.similarities) for similar in lists_]:
                raise LogDamaged("the log has similar items and similarities of different number")
            items = self._vocabulary.lookup(ids)
            if len(new) > 1:  # the ids of the new items are not published yet
                items = np.array([new.get(i, item) for i, item in zip(ids, items.tolist(), strict=True)], np.int64)
            starts = np.cumsum(counts) - counts
            places = np.arange(len(ids)) - np.repeat(starts, counts)
            kept = (items >= 0) & (places < NEIGHBOURS)
            rows = np.repeat(self._late + self.slots + np.arange(len(placed)), counts)
            where = kind, rows[kept], places[kept]
            self.neighbours[where] = items[kept]
            self.similarities[where] = np.rint(65535 * np.clip(similarities[kept], 0, 1))

    def _add(self, batch: _Batch, item: int, change: Change) -> bool:
        """Add a change of a known item. False if there is no room for it."""
        if isinstance(change, Delete):
            batch.add(lists.DELETE, item)
        elif isinstance(change, Move) and change.network == self._network:  # else the paths mean nothing here
            generation = (self._state[item] & lists.GENERATIONS) + batch.items.count(item)
            if generation >= lists.GENERATIONS or not self._has_room(batch, 0, len(change.paths)):
                return False
            batch.add(lists.MOVE, item, paths=change.paths)
        elif isinstance(change, Patch):
            if change.bias is not None:
                batch.add(lists.BIAS, item, bias=change.bias)
            if change.expires is not None:
                batch.add(lists.END, item, _end(change.expires or None))
        return True

    def _has_room(self, batch: _Batch, slots: int, postings: int) -> bool:
        postings += batch.postings + int(self._used[lists.POSTINGS])
        return self.slots + slots <= len(self.vectors) and postings <= len(self._chain)

    def _rows(self, paths: Sequence[Sequence[int]]) -> NDArray[np.int32]:
        """The places in `heads` of the first J of each item's paths, (N, J).

        -1 stands for no path, for a path that the version does not have, and for one that is named twice.
        """
        count = self._paths_per_item
        wanted = np.array([[*each[:count], *[-1] * (count - len(each))] for each in paths], np.int64).reshape(-1, count)
        wanted.sort(axis=1)
        wanted[:, 1:][wanted[:, 1:] == wanted[:, :-1]] = -1
        rows = np.minimum(np.searchsorted(self._path_ids, wanted), len(self._path_ids) - 1)
        return np.where(self._path_ids[rows] == wanted, rows, -1).astype(np.int32)


def _end(expires: int | None) -> int:
    """The second at which an item ends. expires: ms since 1970, or None."""
    return lists.NEVER if expires is None else min(max(expires // 1000, 0), lists.NEVER)
