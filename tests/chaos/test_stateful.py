"""Random walks over everything that can be done to a store, compared step by step with a small reference model."""

from __future__ import annotations

import asyncio
import io
import itertools
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis.connection import Connection

from index_store.errors import IndexStoreError, PointerMoved, VersionInUse, VersionNotFound
from index_store.folder.store import FolderStore
from index_store.redis import store as server_module
from index_store.redis.store import ServerStore
from index_store.store import IndexStore, open_store, prune, rollback
from index_store.version import Version
from retrieval.query import ItemId
from service.errors import NotReady
from service.metrics import Metrics
from service.serving.reloader import Reloader, Serving
from service.serving.retriever import Retriever
from tests.chaos.conftest import Goal, amount
from tests.chaos.reference_store import ReferenceStore, content_of
from tests.conftest import Planted
from tests.fleet import answer_of
from tests.planted import with_ids

STEPS = amount(10_000, 500)  # on each backend; a quarter of them where another one has the same code
WALK = 50  # steps of one walk, from an empty store
CONTENTS = 5  # different versions
HISTORY = [1, 5, 9]
#: The folder store's calls to the system at which a process may be killed.
CALLS = ((os, "mkdir"), (os, "fsync"), (os, "rename"), (os, "replace"), (os, "open"), (os, "unlink"), (io, "open"))
LONG_MS = 3_600_000  # a lease ends when the test ends it, not because the machine is slow

content_numbers = st.integers(0, CONTENTS - 1)
#: What is expected to be current: nothing, the version of some content, or the version that is current.
expectations = st.one_of(st.none(), content_numbers, st.just("the current"))
moments = st.integers(0, 99)  # when a process is killed, in percent of the calls of a publish and its activation


class Died(BaseException):
    """Raised where a process is killed. Handlers of Exception do not catch it, as they do not catch a kill."""


@dataclass
class World:
    """What all walks on one backend share."""

    place: Callable[[], str]  # the URL of a new, empty store
    versions: list[Version]
    answers: Mapping[str, list[ItemId]]  # content -> its answer to HISTORY
    runner: asyncio.Runner
    calls: int  # how many a publish and its activation make
    steps: int = 0
    deaths: int = 0


class Walk(RuleBasedStateMachine):
    """Random operations on a store and on the model; after each step both have the same versions and pointers."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.model = ReferenceStore()
        self.url = self.world.place()
        self.store, self.holder = open_store(self.url), open_store(self.url)
        self.replica = open_store(self.url)
        self.reloader = self._start()
        self.serving: list[str] = []  # the replica's previous version and its current one
        self.gone: dict[str, IndexStore] = {}  # replicas that have died, whose leases have not ended
        self.names: dict[str, str] = {
            version.manifest.fingerprint[:12]: "v9-000000000000" for version in self.world.versions
        }
        self.world.steps -= 1  # for the first call of the invariant, before any step

    # -- publishers and operators --

    @rule(i=content_numbers)
    def publish(self, i: int) -> None:
        self._published(i, self.store.publish(self.world.versions[i]))

    @rule(i=content_numbers)
    def activate(self, i: int) -> None:
        self._both(lambda: self.store.activate(self._name(i)), lambda: self.model.activate(self._name(i)))

    @rule(i=content_numbers, expected=expectations)
    def activate_if(self, i: int, expected: int | str | None) -> None:
        name, wanted = self._name(i), self._expected(expected)
        self._both(lambda: self.store.activate(name, wanted), lambda: self.model.activate(name, wanted))

    @rule()
    def rollback(self) -> None:
        self._both(lambda: rollback(self.store), self.model.rollback)

    @rule(i=content_numbers)
    def delete(self, i: int) -> None:
        self._both(lambda: self.store.delete(self._name(i)), lambda: self.model.delete(self._name(i)))

    @rule(keep=st.integers(0, 3))
    def prune(self, keep: int) -> None:
        self._both(lambda: prune(self.store, keep), lambda: self.model.prune(keep))
        self._settle(None)
        self.model.half.clear()
        assert self._stored() == self.model.versions

    @rule(held=st.sets(content_numbers))
    def hold(self, held: set[int]) -> None:
        self.model.held["somebody"] = {self._name(i) for i in held} & self.model.versions
        self.holder.hold(self.model.held["somebody"])

    @rule(i=content_numbers)
    def load(self, i: int) -> None:
        def parts() -> dict[str, bytes]:
            return {part: bytes(content) for part, content in self.store.load(self._name(i)).parts.items()}

        if self._name(i) in self.model.versions:
            assert parts() == self.world.versions[i].parts

    # -- processes that are killed --

    @rule(i=content_numbers, moment=moments)
    def die_publishing(self, i: int, moment: int) -> None:
        def verb(store: IndexStore) -> None:
            self._published(i, store.publish(self.world.versions[i]))
            store.activate(self._name(i))

        self._die(i, moment, verb)

    @rule(i=content_numbers, moment=moments)
    def die_deleting(self, i: int, moment: int) -> None:
        self._die(i, moment, lambda store: store.delete(self._name(i)))

    # -- the service --

    @rule()
    def follow(self) -> None:
        self.world.runner.run(self.reloader.follow())
        assert isinstance(self.reloader.state, Serving) or self.model.current is None
        if self.model.current is not None:
            self._serves(self.model.current)
        self.query()

    @rule(i=content_numbers, expected=st.one_of(st.just(...), expectations))
    def swap(self, i: int, expected: int | str | EllipsisType | None) -> None:
        name, wanted = self._name(i), self._expected(expected)

        def swap() -> str | None:
            previous: str | None = self.world.runner.run(self.reloader.swap(name, wanted))["previous"]
            return previous

        if wanted is not ... and wanted != self.model.current:  # raised even if the version is unknown
            with pytest.raises(PointerMoved):
                swap()
            return
        self._both(swap, lambda: self.model.activate(name, wanted))
        if name in self.model.versions:
            self._serves(name)

    @rule(asks=st.booleans())
    def restart(self, asks: bool) -> None:
        """The replica dies and another one starts, which with `asks` follows the pointer and is queried at once."""
        self.gone[uuid.uuid4().hex] = self.replica
        self.model.held[list(self.gone)[-1]] = self.model.held.pop("replica", set())
        self.replica, self.serving = open_store(self.url), []
        self.reloader = self._start()
        if asks:
            self.follow()

    @rule()
    def leases_end(self) -> None:
        for name, replica in self.gone.items():
            replica.hold([])
            del self.model.held[name]
        self.gone.clear()

    @rule()
    def query(self) -> None:
        if not self.serving:
            with pytest.raises(NotReady):
                self.reloader.retriever  # noqa: B018 -- looking raises
            return
        retriever = self.reloader.retriever
        assert retriever.name == self.serving[-1]
        assert answer(retriever) == self.world.answers[content_of(retriever.name)]

    @invariant()
    def agrees(self) -> None:
        self.world.steps += 1
        assert [manifest.version for manifest in self.store.versions()] == self.model.names()
        assert (self.store.current(), self.store.previous()) == (self.model.current, self.model.previous)

    def teardown(self) -> None:
        """Release all holds, and check that a prune deletes all but the current and the previous version."""
        for store in (self.holder, self.replica, *self.gone.values()):
            store.hold([])
        self.model.held.clear()
        self.prune(0)
        if isinstance(self.store, FolderStore):
            shutil.rmtree(self.store.folder, ignore_errors=True)

    # -- helpers --

    def _start(self) -> Reloader:
        return Reloader(self.replica, 60, Metrics())

    def _name(self, i: int) -> str:
        """The name under which the store has the content, or had it last."""
        return self.names[self.world.versions[i].manifest.fingerprint[:12]]

    def _published(self, i: int, name: str) -> None:
        self.model.publish(self.world.versions[i].manifest.fingerprint[:12], name)
        self.names[content_of(name)] = name

    def _expected(self, expected: int | str | EllipsisType | None) -> str | EllipsisType | None:
        if isinstance(expected, int):
            return self._name(expected)
        return self.model.current if expected == "the current" else ... if expected is ... else None

    def _both(self, real: Callable[[], Any], wanted: Callable[[], Any]) -> None:
        """Call both functions, which must return the same or raise the same error."""
        outcomes: list[Any] = []
        for verb in (real, wanted):
            try:
                outcomes.append(verb())
            except IndexStoreError as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1]

    def _serves(self, name: str) -> None:
        if self.serving[-1:] != [name]:
            self.serving = [*self.serving[-1:], name]
        self.world.runner.run(self.reloader.holding.renew())  # as `keep` does every few seconds
        self.model.held["replica"] = set(self.serving)

    def _die(self, i: int, moment: int, verb: Callable[[IndexStore], None]) -> None:
        """Call `verb` as another process would that is killed at `moment`, unless it is done before."""
        dying, content = open_store(self.url), self.world.versions[i].manifest.fingerprint[:12]
        leases = self._leases()
        self.model.half.add(content)
        with deadly(1 + moment * self.world.calls // 100):
            try:
                verb(dying)
            except Died:
                self.world.deaths += 1
            except (VersionInUse, VersionNotFound):
                pass  # the verb was refused
        if isinstance(self.store, ServerStore) and (left := self._leases() - leases):
            self.store._server.release(self.store._keys.leases, sorted(left))  # as if expired
        self._settle(content)
        self.load(i)

    def _settle(self, dying: str | None) -> None:
        names = [manifest.version for manifest in self.store.versions()]
        self.names |= {content_of(name): name for name in names}
        self.model.settle(names, self.store.current(), self.store.previous(), dying)

    def _leases(self) -> set[str]:
        return set(self.store._listing._leases()) if isinstance(self.store, ServerStore) else set()

    def _stored(self) -> set[str]:
        """The versions of which anything is stored, whole or not. Other leftovers give a name that is no version's."""
        if isinstance(self.store, FolderStore):
            folder = self.store.folder / "versions"
            return {entry.name for entry in folder.iterdir()} if folder.exists() else set()
        assert isinstance(self.store, ServerStore)
        keys = list(self.store._server.scan(self.store._keys.pattern()))
        return {str(self.store._keys.version_of(key)) for key in keys} | self.store._listing.listed()


def answer(retriever: Retriever) -> list[ItemId]:
    """A version's answer to HISTORY, whose items are first translated to the version's own ids."""
    names = np.array(retriever.searcher.vocabulary.names(np.arange(retriever.manifest.items)))
    return [candidate["item_id"] for candidate in answer_of(retriever, history=names[HISTORY].tolist())]


def run_walks(machine: type[RuleBasedStateMachine], steps: int, length: int) -> None:
    """Run random walks of `length` steps, so many that they have `steps` in all; the same ones each time."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=-(-steps * 5 // (4 * length)),  # some walks are shorter
            stateful_step_count=length,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@contextmanager
def deadly(moment: float) -> Iterator[Iterator[int]]:
    """During the context, calls to the system and the server raise Died from number `moment` on. Yields a counter."""
    calls = itertools.count(1)

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(calls) >= moment:
                raise Died
            return call(*args, **kwargs)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for module, name in (*CALLS, (Connection, "send_packed_command")):
            patch.setattr(module, name, dying(getattr(module, name)))
        yield calls


@pytest.fixture(params=["folder", "redis", "valkey", "cluster"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """A function that returns the URL of a new, empty store; one function for each backend."""
    if request.param == "folder":
        return lambda: str(tmp_path / uuid.uuid4().hex)
    if request.param == "cluster":
        address = f"redis+cluster://127.0.0.1:{request.getfixturevalue('redis_cluster')[0].port}"
    else:
        address = request.getfixturevalue(f"{request.param}_server").url
    return lambda: f"{address}?namespace=t{uuid.uuid4().hex}"


@pytest.fixture
def versions(planted: Planted) -> list[Version]:
    """Versions that have the same items under other ids, so that an answer shows which version gave it."""
    ids = planted.version.item_ids
    assert isinstance(ids, np.ndarray)
    return [with_ids(planted.version, ids + 1000 * i) for i in range(CONTENTS)]


# A killed process cannot close its connections.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function (Cluster)?Pipeline:pytest.PytestUnraisableExceptionWarning"
)
def test_random_walks_agree_with_the_model(
    place: Callable[[], str],
    versions: list[Version],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    goal: Goal,
) -> None:
    """Promise: random walks. Random calls of publish, activate, rollback, delete, prune, hold, kill, restart, query."""
    monkeypatch.setattr(server_module, "HOLD_MS", LONG_MS)
    monkeypatch.setattr(server_module, "PUBLISH_MS", LONG_MS)
    monkeypatch.setattr(server_module, "BATCH", 8)  # keys at once, so that there are more steps to die at
    monkeypatch.setattr("service.serving.loading.try_model", lambda version: None)  # starts a process, too slow
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # processes die here, not the machine
    answers = {version.manifest.fingerprint[:12]: answer(Retriever(version)) for version in versions}
    assert len({tuple(items) for items in answers.values()}) == CONTENTS
    backend = request.node.callspec.params["place"]
    steps = STEPS // 4 if backend in {"valkey", "cluster"} else STEPS
    with asyncio.Runner() as runner:
        with deadly(math.inf) as calls:
            store = open_store(place())
            store.activate(store.publish(versions[0]))
        here = World(place, versions, answers, runner, next(calls))

        class WalkHere(Walk):
            world = here

        run_walks(WalkHere, steps, WALK)
    goal(
        f"{steps:,} random steps of publish, activate, rollback, delete, prune, hold, kill, restart and query equal a "
        f"reference model ({backend})",
        f"{here.steps:,} steps, {here.deaths:,} deaths, all equal",
        here.steps >= steps and here.deaths > steps / 100,
    )
