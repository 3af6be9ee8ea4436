"""Random walks over everything that can be done to a catalogue: a set of live items predicts what replicas answer."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from index_store.errors import PointerMoved
from index_store.folder.store import FolderStore
from index_store.log import Draft
from index_store.redis.store import ServerStore
from index_store.store import open_store, rollback
from index_store.version import Version
from retrieval.changes import Change, Delete, Evidence, Patch, Put, to_json
from retrieval.fold import LEASE, catalogue, fold_current, with_catalogue
from retrieval.query import ItemId
from retrieval.searcher import Searcher
from service.metrics import Metrics
from service.serving.reloader import Reloader, Serving
from tests.chaos.conftest import Goal, amount
from tests.chaos.test_stateful import Died, deadly, run_walks
from tests.conftest import Planted
from tests.fleet import answer_of

STEPS = amount(4_000, 400)
WALK = 40  # steps of one walk
HOUR_MS = 3_600_000
REPLICAS = 2

changes = st.lists(
    st.tuples(st.sampled_from(["put", "put", "delete", "expire", "bias"]), st.integers(0, 13)), min_size=1, max_size=3
)
moments = st.integers(0, 99)  # when a process is killed, in percent of its calls to the system or the server
replicas = st.integers(0, REPLICAS - 1)


@dataclass
class World:
    """What all walks on one backend share."""

    place: Callable[[], str]  # the URL of a new, empty store
    networks: list[Version]
    searcher: Searcher  # of the first network, to place items
    items: list[ItemId]  # the items that change: 8 of the training, then 6 new ones
    runner: asyncio.Runner
    calls: dict[str, int]  # how many an append and a fold make
    steps: int = 0
    deaths: int = 0
    looks: int = 0


class Walk(RuleBasedStateMachine):
    """Random changes, folds, swaps and deaths; each replica that looks answers all live items, and no other."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.url = self.world.place()
        self.store = open_store(self.url)
        self.store.activate(self.store.publish(self.world.networks[0]))
        self.live = set(self.world.searcher.vocabulary.names(np.arange(self.world.searcher.manifest.items)))
        self.seq = 0
        self.last: tuple[Draft, int] | None = None  # the last draft, and the number of its record
        self.replicas = [self._start() for _ in range(REPLICAS)]
        self.world.steps -= 1  # for the first call of the invariant, before any step

    # -- writers --

    @rule(wanted=changes)
    def append(self, wanted: Sequence[tuple[str, int]]) -> None:
        draft = self._draft(wanted)
        assert self.store.append([draft]) == [self.seq + 1]
        self._appended(draft, wanted)

    @rule()
    def append_again(self) -> None:
        if self.last:
            assert self.store.append([self.last[0]]) == [self.last[1]]

    @rule(wanted=changes, moment=moments)
    def die_appending(self, wanted: Sequence[tuple[str, int]], moment: int) -> None:
        """The record is whole or not there; the writer's second attempt stores it once."""
        draft, dying = self._draft(wanted), open_store(self.url)
        self._die("append", moment, lambda: dying.append([draft]))
        assert self.store.log_end().seq in (self.seq, self.seq + 1)
        assert self.store.append([draft]) == [self.seq + 1]
        self._appended(draft, wanted)

    # -- operators --

    @rule()
    def fold(self) -> None:
        covered = self.store.load(str(self.store.current())).manifest.covers.seq
        assert fold_current(self.store).records == self.seq - covered

    @rule(moment=moments)
    def die_folding(self, moment: int) -> None:
        dying = open_store(self.url)
        self._die("fold", moment, lambda: fold_current(dying))
        if isinstance(self.store, ServerStore):  # its lease, as if expired
            key = self.store._keys.task(LEASE)
            self.store._server.transact([key], lambda _: [("UNLINK", key)])

    @rule(network=st.integers(0, 1))
    def train(self, network: int) -> None:
        """A version that was trained anew becomes current, as `dr-trainer fit` makes it."""
        version = with_catalogue(self.world.networks[network], *catalogue(self.store))
        self.store.activate(self.store.publish(version))

    @rule()
    def rollback(self) -> None:
        if self.store.previous() is None:
            with pytest.raises(PointerMoved):
                rollback(self.store)
        else:
            rollback(self.store)

    # -- replicas --

    @rule(number=replicas)
    def look(self, number: int) -> None:
        """The replica, which may have slept for long, follows the pointer and the log, and answers."""
        reloader, run = self.replicas[number], self.world.runner.run
        run(reloader.follow())
        run(reloader.follower.advance())
        assert isinstance(reloader.state, Serving), reloader.state
        assert reloader.state.version == self.store.current()
        assert reloader.follower.problem is None
        assert reloader.follower.seq == self.seq
        answer = [candidate["item_id"] for candidate in answer_of(reloader.retriever, history=[], k=100)]
        assert sorted(answer, key=str) == sorted(self.live, key=str)
        self.world.looks += 1

    @rule(number=replicas)
    def restart(self, number: int) -> None:
        self._stop(self.replicas[number])
        self.replicas[number] = self._start()

    @invariant()
    def agrees(self) -> None:
        self.world.steps += 1
        assert self.store.log_end().seq == self.seq

    def teardown(self) -> None:
        """At the end, every replica agrees."""
        for number, reloader in enumerate(self.replicas):
            self.look(number)
            self._stop(reloader)
        if isinstance(self.store, FolderStore):
            shutil.rmtree(self.store.folder, ignore_errors=True)

    # -- helpers --

    def _start(self) -> Reloader:
        return Reloader(open_store(self.url), 60, Metrics(), slots=1000)

    @staticmethod
    def _stop(reloader: Reloader) -> None:
        reloader.holding._store.hold([])
        reloader.follower._thread.shutdown()

    def _draft(self, wanted: Sequence[tuple[str, int]]) -> Draft:
        made = [to_json(self._change(kind, self.world.items[place])) for kind, place in wanted]
        return Draft(uuid.uuid4().hex, 1, made)

    def _change(self, kind: str, item: ItemId) -> Change:
        if kind == "put":
            evidence = Evidence(like=[other for other in self.world.items[:3] if other != item])
            return Put(item, self.world.searcher.place([evidence])[0], evidence)
        if kind == "delete":
            return Delete(item)
        return Patch(item, bias=1.0) if kind == "bias" else Patch(item, expires=int(1000 * time.time()) - HOUR_MS)

    def _appended(self, draft: Draft, wanted: Sequence[tuple[str, int]]) -> None:
        self.seq += 1
        self.last = draft, self.seq
        for kind, place in wanted:
            if kind == "put":
                self.live.add(self.world.items[place])
            elif kind != "bias":
                self.live.discard(self.world.items[place])

    def _die(self, verb: str, moment: int, call: Callable[[], Any]) -> None:
        with deadly(1 + moment * self.world.calls[verb] // 100):
            try:
                call()
            except Died:
                self.world.deaths += 1


@pytest.fixture(params=["folder", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """A function that returns the URL of a new, empty store; one function for each backend."""
    if request.param == "folder":
        return lambda: str(tmp_path / uuid.uuid4().hex)
    address = request.getfixturevalue("redis_server").url
    return lambda: f"{address}?namespace=t{uuid.uuid4().hex}"


def calls_of(url: str, version: Version) -> dict[str, int]:
    """How many calls to the system or the server an append and a fold make, at least."""
    store = open_store(url)
    store.activate(store.publish(version))
    counted = {}
    with deadly(math.inf) as calls:
        store.append([Draft("p", 1, [to_json(Delete(1))])])
        counted["append"] = next(calls)
    with deadly(math.inf) as calls:
        fold_current(store)
        counted["fold"] = next(calls)
    return counted


# A killed process cannot close its connections.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function Pipeline:pytest.PytestUnraisableExceptionWarning")
def test_random_walks_over_the_catalogue(
    place: Callable[[], str],
    planted: Planted,
    other: Planted,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    goal: Goal,
) -> None:
    """Promise: random walks. Puts, deletes, patches, repeats, folds, trainings, rollbacks, kills, restarts, answers."""
    monkeypatch.setattr("service.serving.loading.try_model", lambda version: None)  # starts a process, too slow
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # processes die here, not the machine
    items = [*planted.searcher.vocabulary.names(np.arange(8)), *range(5000, 5006)]
    with asyncio.Runner() as runner:
        here = World(
            place, [planted.version, other.version], planted.searcher, items, runner, calls_of(place(), planted.version)
        )

        class WalkHere(Walk):
            world = here

        run_walks(WalkHere, STEPS, WALK)
    goal(
        f"During {STEPS:,} random puts, deletes, patches, repeats, folds, trainings, rollbacks, kills and restarts, "
        f"replicas answer all live items and no other ({request.node.callspec.params['place']})",
        f"{here.steps:,} steps, {here.deaths:,} deaths, {here.looks:,} answers, all as predicted",
        here.steps >= STEPS and here.deaths > STEPS / 100,
    )
