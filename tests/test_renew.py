"""The parts of a version that has learned, each against its obvious form."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from typing import Any

import numpy as np

from retrieval.context import ContextSchema
from retrieval.paths.index import Neighbours, PathIndex
from retrieval.paths.overlay import Late
from retrieval.vocabulary import Vocabulary
from trainer.data.neighbours import following_items, nearest_items
from trainer.data.split import clicked_items
from trainer.living.neighbours import joined_neighbours
from trainer.living.renew import path_lists, paths_of_items, popularity
from trainer.living.sessions import Clicks, Session, as_training_data

ITEMS, LISTED = 30, 4


def an_index(seed: int, late: tuple[int, ...] = ()) -> PathIndex:
    """An index of random paths: most items are on two of them, some on one or none."""
    rng = np.random.default_rng(seed)
    lists: dict[int, set[int]] = defaultdict(set)
    for item in range(ITEMS):
        for path in rng.choice(40, rng.integers(0, 3), replace=False).tolist():
            lists[path].add(item)
    paths = sorted(lists)
    known = rng.integers(-1, ITEMS, (2, ITEMS, LISTED)).astype(np.int32)
    similar = rng.integers(1, 65535, (2, ITEMS, LISTED)).astype(np.uint16)
    for kind in range(2):
        for row in range(ITEMS):  # without repetitions, most similar first, -1 at the end
            chosen = list(dict.fromkeys(i for i in known[kind, row].tolist() if i >= 0 and i != row and i not in late))
            values = sorted(similar[kind, row].tolist(), reverse=True)
            known[kind, row] = [*chosen, *[-1] * (LISTED - len(chosen))]
            similar[kind, row] = [*values[: len(chosen)], *[0] * (LISTED - len(chosen))]
    return PathIndex(
        np.array(paths),
        np.cumsum([0, *(len(lists[path]) for path in paths)]),
        np.concatenate([sorted(lists[path]) for path in paths]).astype(np.int32),
        np.zeros((ITEMS, 2), np.float16),
        rng.normal(size=ITEMS).astype(np.float32),
        Neighbours(known, similar),
        late=Late(
            np.array(late, np.int32), np.zeros((2, len(late), 8), np.int32), np.zeros((2, len(late), 8), np.uint16)
        ),
    )


def some_clicks(seed: int) -> Clicks:
    """Sessions, of which some have new clicks."""
    rng = np.random.default_rng(seed)
    sessions = []
    for _ in range(25):
        items: list[int | str] = rng.choice(ITEMS, rng.integers(2, 9)).tolist()
        sessions.append(Session(items, int(rng.integers(0, len(items))), {}))
    return as_training_data(sessions, Vocabulary(np.arange(ITEMS)), ContextSchema(), np.ones(ITEMS, bool))


def test_popularity_is_of_the_last_clicks() -> None:
    """Of 100 clicks before and 25 new ones, the new ones are a fifth. No item has less than half a click."""
    data = as_training_data(
        [Session([*[0] * 20, *[1] * 5], 25, {})], Vocabulary(np.arange(3)), ContextSchema(), np.ones(3, bool)
    )
    share = popularity(np.array([0.5, 0.499, 0.001]), 100, data)
    assert np.allclose(share, [0.8 * 0.5 + 0.2 * 0.8, 0.8 * 0.499 + 0.2 * 0.2, 0.005])


def test_paths_of_items() -> None:
    """One path repeatedly, if an item has only one; an item without a path has none to be learned."""
    index = an_index(1)
    paths, placed = paths_of_items(index, 3)
    for item in range(ITEMS):
        expected = index.paths_of(item)
        assert placed[item] == bool(expected)
        if expected:
            assert set(paths[item].tolist()) == set(expected)
    assert not placed.all()


def test_lists_are_ordered_by_the_new_bias_but_for_late_items() -> None:
    """Every path keeps its items."""
    index = an_index(2, late=(3, 8, 20))
    bias = np.random.default_rng(9).normal(size=ITEMS).astype(np.float32)
    offsets, items = path_lists(index, bias)
    assert np.array_equal(offsets, index.path_offsets)
    for begin, end in itertools.pairwise(offsets):
        before = index.path_items[begin:end].tolist()
        assert items[begin:end].tolist() == sorted(before, key=lambda i: (i not in {3, 8, 20}, -bias[i], i))


def clicks_of(sessions: list[list[int]], counted: list[int]) -> Clicks:
    """Sessions with the first clicks of each; the rest is new."""
    return as_training_data(
        [
            Session(list[int | str](items), len(items) - first, {})
            for items, first in zip(sessions, counted, strict=True)
        ],
        Vocabulary(np.arange(ITEMS)),
        ContextSchema(),
        np.ones(ITEMS, bool),
    )


def neighbours_of(data: Clicks, listed: int) -> Neighbours:
    """The lists that a training makes."""
    clicked = clicked_items(data.dataset, data.split.train_users, data.split.train_length)
    kinds = nearest_items(clicked, listed), following_items(data.dataset, data.split, listed)
    return Neighbours(
        np.stack([items for items, _ in kinds]), np.stack([np.rint(65535 * v).astype(np.uint16) for _, v in kinds])
    )


def similarities(lists: Neighbours) -> list[list[dict[int, float]]]:
    """Of both kinds, and of each item: how similar which items are."""
    return [
        [
            {item: value / 65535 for item, value in zip(items, values, strict=True) if item >= 0}
            for items, values in zip(lists.items[kind].tolist(), lists.similarities[kind].tolist(), strict=True)
        ]
        for kind in range(2)
    ]


def test_joined_neighbours_are_those_of_all_clicks() -> None:
    """Lists of the first clicks, joined with the new ones, are as a training makes them of all, without late items."""
    rng = np.random.default_rng(4)
    sessions = [rng.choice(ITEMS, rng.integers(2, 9), replace=False).tolist() for _ in range(25)]
    first = [int(rng.integers(0, len(items) + 1)) for items in sessions]
    late = (5, 6)
    before = [items[:count] for items, count in zip(sessions, first, strict=True) if count]
    known = neighbours_of(clicks_of(before, list(map(len, before))), ITEMS)
    index = dataclasses.replace(an_index(4, late), neighbours=known)
    old, data = (
        np.bincount([i for items in before for i in items], minlength=ITEMS).astype(float),
        clicks_of(sessions, first),
    )
    new = np.bincount(data.dataset.items[data.fresh], minlength=ITEMS)

    joined = similarities(joined_neighbours(index, data, old, old + new))
    for kind, rows in enumerate(similarities(neighbours_of(clicks_of(sessions, list(map(len, sessions))), ITEMS))):
        for item, expected in enumerate(rows):
            found = joined[kind][item]
            assert set(found) == set(expected) - set(late)
            assert np.allclose([found[i] for i in found], [expected[i] for i in found], atol=1e-4)


def test_the_oldest_clicks_fade() -> None:
    """If the clicks of all items stay as many, what was known before counts less; a list has the largest values."""
    index, data = an_index(4), some_clicks(4)
    before = np.random.default_rng(4).uniform(5, 20, ITEMS)
    after = (before + np.bincount(data.dataset.items[data.fresh], minlength=ITEMS)) / 2
    ((items, _), (values, _)) = joined_neighbours(index, data, before, after)
    together = defaultdict(set)
    for user in range(len(data.dataset.user_ids)):
        own = slice(*data.dataset.offsets[user : user + 2])
        clicked, old = set(data.dataset.items[own].tolist()), set(data.dataset.items[own][~data.fresh[own]].tolist())
        for a, b in itertools.permutations(clicked, 2):
            if a not in old or b not in old:
                together[a, b].add(user)
    for row in range(ITEMS):
        sums = {column: float(len(together[row, column])) for column in range(ITEMS) if column != row}
        for column, similarity in zip(*(array[0, row].tolist() for array in index.neighbours), strict=True):
            if column >= 0:
                sums[column] += similarity / 65535 * np.sqrt(before[row] * before[column])
        expected = {c: min(value / 2 / np.sqrt(after[row] * after[c]), 1) for c, value in sums.items() if value}
        listed = [item for item in items[row].tolist() if item >= 0]
        best = sorted(expected.values(), reverse=True)[:LISTED]
        assert np.allclose([expected[item] for item in listed], best, atol=1e-6)
        assert np.allclose(values[row][: len(best)] / 65535, best, atol=1e-5)


def test_without_neighbours_there_are_none() -> None:
    """A version that was trained with neighbours = 0."""
    nothing: Any = Neighbours(np.empty((2, ITEMS, 0), np.int32), np.empty((2, ITEMS, 0), np.uint16))
    index = dataclasses.replace(an_index(1), neighbours=nothing)
    assert joined_neighbours(index, some_clicks(1), np.ones(ITEMS), np.ones(ITEMS)).items.shape == (2, ITEMS, 0)
