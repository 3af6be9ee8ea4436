"""Processes that tests kill. Each is forked from a clean process that has imported everything, so it starts at once."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import redis.connection
import torch

import trainer.__main__
import trainer.publish.version
from index_store.log import Draft
from index_store.redis import listing
from index_store.redis import store as server_module
from index_store.store import IndexStore, open_store
from index_store.version import Version
from retrieval.fold import fold_current
from tests.chaos.disk import watched
from tests.planted import changed
from tests.silent_progress import SilentProgress
from trainer.data.events import FileEvents
from trainer.living import follow, learner
from trainer.living.checkpoint import Checkpoint
from trainer.living.sessions import Session

LEASE_MS = 300  # a killed publisher's lease: short, as the next publisher may have to wait for it

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["__main__", "tests.chaos.victims"])


class Victim:
    """A process that runs `work(*arguments)`. It has started when the constructor returns."""

    def __init__(self, work: Callable[..., Any], *arguments: Any) -> None:
        receiver, sender = _forks.Pipe(duplex=False)
        self.process: BaseProcess = _forks.Process(target=_begin, args=(sender, work, *arguments))
        self.process.start()
        sender.close()
        receiver.recv()
        receiver.close()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait so many seconds at most. Returns whether the process has ended by itself."""
        self.process.join(seconds)
        return self.process.exitcode is not None

    def kill(self) -> bool:
        """Kill the process. Returns whether SIGKILL ended it, now or before; otherwise its exit status must be 0."""
        self.process.kill()
        self.process.join()
        status = self.process.exitcode
        self.process.close()
        assert status in {0, -signal.SIGKILL}, status
        return status != 0


def _begin(sender: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    server_module.PUBLISH_MS = listing.TASK_MS = LEASE_MS
    sender.send(None)
    work(*arguments)


def publish_and_activate(url: str, version: Version, steps: int | None = None) -> None:
    """Publish and activate; die by SIGKILL after `steps` operations on the disk and messages to the server."""
    with dying(url, steps) as store:
        store.activate(store.publish(version))


def append_and_fold(url: str, drafts: list[Draft], steps: int | None = None) -> None:
    """Append records and fold; die as `publish_and_activate` does."""
    with dying(url, steps) as store:
        store.append(drafts)
        fold_current(store)


def follow_events(url: str, file: str, folder: str, steps: int | None = None, enough: int = 1) -> None:
    """Follow the events in a file, two at a time, to its end; die as `publish_and_activate` does.

    enough: new clicks from which it learns. Each learning makes a version that only counts what it has learned.
    """
    follow.TOGETHER, follow.ENOUGH, follow.SHARE = 2, enough, 0.0
    vars(learner)["renewed"] = count_clicks
    name = str(open_store(url))
    with dying(url, steps, folder) as store, Checkpoint(Path(folder)) as checkpoint:
        state = checkpoint.load(name, file)
        source = FileEvents(Path(file), state.place if state else None)
        follow.Follow(store, source, file, checkpoint, state, 1000, SilentProgress(), lambda _: None).run()


def count_clicks(version: Version, _: Any, sessions: list[Session], facts: dict[str, Any], *__: Any) -> Version:
    """The version with other metrics."""
    learned = int(version.manifest.metrics.get("learned", 0)) + sum(session.fresh for session in sessions)
    made = changed(version, context=bytes(version.parts["context.json"]) + b" ")
    metrics = {**version.manifest.metrics, **facts, "learned": learned}
    return dataclasses.replace(made, manifest=dataclasses.replace(made.manifest, metrics=metrics))


@contextmanager
def dying(url: str, steps: int | None, folder: str | None = None) -> Iterator[IndexStore]:
    """A store with which this process dies by SIGKILL after `steps` operations on the disk and messages.

    folder: operations in it count too.
    """
    left = steps

    def step(*_: Any) -> None:
        nonlocal left
        if left is not None:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    send: Any = redis.connection.Connection.send_packed_command

    def send_or_die(self: Any, *args: Any, **kwargs: Any) -> Any:
        step()
        return send(self, *args, **kwargs)

    redis.connection.Connection.send_packed_command = send_or_die  # type: ignore[method-assign]
    store = open_store(url)
    with watched(Path(url), step), watched(Path(folder), step) if folder else nullcontext():
        yield store


def train(arguments: list[str], log: str) -> None:
    """Run dr-trainer as a user does, with its output in the file `log`."""
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)  # several threads would wait for each other while other tests run
    status = trainer.__main__.main(arguments)
    os._exit(status)
