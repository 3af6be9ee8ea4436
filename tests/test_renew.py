"""The parts of a version that has learned, each against its obvious form."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index_store.path_facts import PathFacts
from retrieval.context import ContextSchema
from retrieval.paths.index import Neighbours, PathIndex
from retrieval.paths.overlay import Late
from retrieval.vocabulary import Vocabulary
from tests.conftest import Planted
from trainer.data.neighbours import following_items, nearest_items
from trainer.data.requests import Requests
from trainer.data.split import clicked_items
from trainer.living import renew
from trainer.living.renew import joined_neighbours, path_lists, paths_of_items, popularity, refitted
from trainer.living.sessions import Clicks, Session, as_training_data
from trainer.publish.reranker import fit_reranker

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


def joined_slowly(index: PathIndex, data: Clicks, clicks: NDArray[np.float64]) -> list[list[dict[int, float]]]:
    """For both kinds of lists and each item, the amounts of all items that either list has."""
    users = [u for u in range(len(data.dataset.user_ids)) if data.fresh[slice(*data.dataset.offsets[u : u + 2])].any()]
    split = dataclasses.replace(data.split, train_users=np.array(users))
    clicked = clicked_items(data.dataset, np.array(users), split.train_length)
    late = set(index.late.items.tolist())
    joined = []
    for kind, (items, values) in enumerate(
        (nearest_items(clicked, LISTED), following_items(data.dataset, split, LISTED))
    ):
        rows = []
        for row in range(ITEMS):
            seen = sum(row in data.dataset.sequence(user) for user in users)
            weight = seen / (seen + (0 if row in late else clicks[row])) if seen else 0.0
            amounts: dict[int, float] = defaultdict(float)
            for item, similarity in zip(*(array[kind, row].tolist() for array in index.neighbours), strict=True):
                amounts[item] += (1 - weight) * similarity / 65535
            for item, value in zip(items[row].tolist(), values[row].tolist(), strict=True):
                if item not in late:
                    amounts[item] += weight * min(value, 1)
            amounts.pop(-1, None)
            rows.append({item: amount for item, amount in amounts.items() if amount > 0})
        joined.append(rows)
    return joined


def test_neighbours_are_joined_by_how_much_is_known() -> None:
    """The known similarity counts as much as the clicks that it rests on, the new one as much as the new users."""
    index, data = an_index(4, late=(5, 6)), some_clicks(4)
    clicks = np.random.default_rng(4).uniform(0, 20, ITEMS)
    joined = joined_neighbours(index, data, clicks)
    assert joined.items.dtype == np.int32
    for kind, rows in enumerate(joined_slowly(index, data, clicks)):
        for row, amounts in enumerate(rows):
            best = sorted(amounts.values(), reverse=True)[:LISTED]
            items = [item for item in joined.items[kind, row].tolist() if item >= 0]
            assert np.allclose([amounts[item] for item in items], best, atol=1e-6)
            found = joined.similarities[kind, row][: len(best)] / 65535
            assert np.allclose(found, best, atol=1e-5)
            assert not joined.similarities[kind, row][len(best) :].any()


def test_without_neighbours_there_are_none() -> None:
    """A version that was trained with neighbours = 0."""
    nothing: Any = Neighbours(np.empty((2, ITEMS, 0), np.int32), np.empty((2, ITEMS, 0), np.uint16))
    index = dataclasses.replace(an_index(1), neighbours=nothing)
    assert joined_neighbours(index, some_clicks(1), np.ones(ITEMS)).items.shape == (2, ITEMS, 0)


def test_the_reranker_is_fitted_to_what_was_not_learned(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clicks before the new ones are the history, the new ones the truth; with few users it stays as it is."""
    searcher, facts = planted.searcher, PathFacts.of(planted.version.manifest.structure)
    config = planted.config.replace(rerank="lr")
    sequences = [planted.dataset.sequence(user).astype(np.int64) for user in range(60)]
    sessions = [Session(searcher.vocabulary.names(items), 4, {}) for items in sequences]
    sessions += [Session([1, 2], 0, {}), Session([3], 1, {})]  # one without new clicks, one without a history
    data = as_training_data(sessions, searcher.vocabulary, searcher.schema, np.ones(planted.index.items, bool))
    assert refitted(searcher, data, config) is searcher.structure.reranker

    monkeypatch.setattr(renew, "REFITTED", len(sequences))
    requests = Requests(
        planted.index.items,
        [items[:-4] for items in sequences],
        [items[-4:] for items in sequences],
        np.zeros((len(sequences), 0), np.int64),
        np.zeros((len(sequences), 0), np.float32),
        np.arange(len(sequences)),
    )
    expected = fit_reranker(searcher.structure, requests, facts.beam, facts.per_path)
    found = refitted(searcher, data, config)
    assert expected.kind == found.kind == "lr"
    assert np.allclose(found.weights, expected.weights, atol=1e-5)
    assert refitted(searcher, data, config.replace(rerank="softmax")) is searcher.structure.reranker
