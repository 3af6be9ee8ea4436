"""Processes to be killed. Each is a fork of one clean process that has imported everything, so it starts in no time."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import redis.connection
import torch

import trainer.__main__
import trainer.publish.version
from index_store.redis import store as server_module
from index_store.store import open_store
from index_store.version import Version
from tests.chaos.disk import watched

LEASE_MS = 300  # of a publisher that will die: nobody has to wait long for it

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["__main__", "tests.chaos.victims"])


class Victim:
    """A process that runs `work(*arguments)`, and has begun with it."""

    def __init__(self, work: Callable[..., Any], *arguments: Any) -> None:
        ready, told = _forks.Pipe(duplex=False)
        self.process: BaseProcess = _forks.Process(target=_begin, args=(told, work, *arguments))
        self.process.start()
        told.close()
        ready.recv()
        ready.close()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it has ended by itself within that time."""
        self.process.join(seconds)
        return self.process.exitcode is not None

    def kill(self) -> bool:
        """SIGKILL. Whether that is what ended it, now or before; else it must have ended well."""
        self.process.kill()
        self.process.join()
        status = self.process.exitcode
        self.process.close()
        assert status in {0, -signal.SIGKILL}, status
        return status != 0


def _begin(told: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    server_module.PUBLISH_MS = LEASE_MS
    told.send(None)
    work(*arguments)


def publish_and_activate(url: str, version: Version, steps: int | None = None) -> None:
    """Dies before the step that follows `steps` others: an operation on the disk, or a message to the server."""
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
    with watched(Path(url), step):
        store.activate(store.publish(version))


def train(arguments: list[str], log: str) -> None:
    """dr-trainer, as a user runs it."""
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)  # several would wait for each other where other tests run
    status = trainer.__main__.main(arguments)
    os._exit(status)
