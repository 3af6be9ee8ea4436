"""Fixtures: a small version that is trained once per test session on planted data, and Redis servers for many tests."""

from __future__ import annotations

import fcntl
import functools
import os
import pickle
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

import retrieval.paths.kernels  # noqa: F401 -- compiles the kernels once, before workers start that would each do it
from tests.planted import write_interactions
from tests.redis_servers import RedisServer, running, running_cluster, valkey_binary
from trainer.config import TrainConfig

if TYPE_CHECKING:  # the process that controls the workers imports this file too; it needs neither torch nor a store
    from index_store.version import Version
    from retrieval.paths.index import PathIndex
    from retrieval.paths.structure import PathStructure
    from retrieval.searcher import Searcher
    from trainer.data.dataset import Dataset
    from trainer.data.split import Split
    from trainer.deep_retrieval.fit import Trained

# The same examples in every run: a test that fails only sometimes does not show whether a change broke it.
settings.register_profile("steady", derandomize=True)
settings.load_profile("steady")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip tests/chaos and tests/benchmarks, which have make targets of their own, unless they are named."""
    named = any(collection_path.name in argument for argument in config.invocation_params.args)
    return True if collection_path.name in {"chaos", "benchmarks"} and not named else None


#: Small and quick: about two seconds of training.
SMALL = TrainConfig(
    depth=2,
    width=6,
    paths_per_item=2,
    candidate_paths=8,
    embedding=16,
    hidden=16,
    history=6,
    dropout=0.0,
    epochs=8,
    warmup_epochs=3,
    reassignments=1,
    batch=128,
    learning_rate=0.06,
    k=5,
    test_users=20,
)


@dataclass(frozen=True)
class Planted:
    """The data, training and version of one run."""

    file: Path
    config: TrainConfig
    dataset: Dataset
    split: Split
    trained: Trained
    version: Version

    @functools.cached_property
    def searcher(self) -> Searcher:
        """A searcher of the version."""
        from retrieval.searcher import Searcher

        return Searcher.open(self.version)

    @property
    def structure(self) -> PathStructure:
        """The version's structure of paths."""
        return self.searcher.structure

    @property
    def index(self) -> PathIndex:
        """The version's path lists and item vectors."""
        return self.structure.index


def train_planted(folder: Path, config: TrainConfig, *, text_ids: bool = False, users: Path | None = None) -> Planted:
    """Train on planted interactions and make a version."""
    from tests.silent_progress import SilentProgress
    from trainer.data.dataset import load_dataset
    from trainer.data.split import split_users
    from trainer.deep_retrieval.checkpoint import Run
    from trainer.deep_retrieval.fit import fit
    from trainer.publish.version import make_version

    folder.mkdir(exist_ok=True)
    file = write_interactions(folder, text_ids=text_ids)
    dataset = load_dataset(file, config, users=users)
    split = split_users(dataset, config)
    trained = fit(config, dataset, split, Run(folder / "run", config, dataset), SilentProgress())
    return Planted(
        file, config, dataset, split, trained, make_version(config, dataset, split, trained, SilentProgress())
    )


def shared(factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run of the tests have."""
    return factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()


@pytest.fixture(scope="session", autouse=True)
def _traced_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of all workers, one traces a network's architecture."""
    from tests.traced_graphs import TracedGraphs
    from trainer.publish import network

    network._traced = TracedGraphs(shared(tmp_path_factory) / "graphs")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Planted]) -> Planted:
    """The result of `make`, which the first worker that asks for it calls; the others read the result from a file."""
    folder = shared(factory)
    kept = folder / f"{name}.pickle"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_bytes(pickle.dumps(make(folder / name)))
    made: Planted = pickle.loads(kept.read_bytes())
    return made


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A run with integer ids and seed 0."""
    return once(tmp_path_factory, "planted", lambda folder: train_planted(folder, SMALL))


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A run on the same data with seed 1: a second version to swap with."""
    return once(tmp_path_factory, "other", lambda folder: train_planted(folder, SMALL.replace(seed=1)))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server that all tests share; each test uses a namespace of its own."""
    with running(RedisServer(tmp_path_factory.mktemp("redis") / "server")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Valkey server that all tests share; each test uses a namespace of its own."""
    with running(RedisServer(tmp_path_factory.mktemp("valkey") / "server", binary=valkey_binary())) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """A Redis cluster of three nodes that all tests share."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"t{uuid.uuid4().hex}"


@pytest.fixture
def url(redis_server: RedisServer, namespace: str) -> str:
    """An empty store on the shared server."""
    return f"{redis_server.url}?namespace={namespace}"


@pytest.fixture(params=["folder", "redis", "valkey", "cluster"])
def every_url(request: pytest.FixtureRequest, tmp_path: Path, namespace: str) -> str:
    """The URL of an empty store of each backend."""
    if request.param == "folder":
        return str(tmp_path / "store")
    if request.param == "cluster":
        port = request.getfixturevalue("redis_cluster")[0].port
        return f"redis+cluster://127.0.0.1:{port}?namespace={namespace}"
    return f"{request.getfixturevalue(request.param + '_server').url}?namespace={namespace}"


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    """A plain Redis client of the shared server."""
    with redis_server.client() as client:
        yield client


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis server for this test alone, which the test may freeze or kill."""
    with running(RedisServer(tmp_path / "redis")) as server:
        yield server
