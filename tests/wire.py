"""A live server, bytes that no HTTP client would send, and checks that every answer of the server must pass."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from index_store.store import open_store
from tests.conftest import Planted
from tests.fleet import Replica, fleet, same
from tests.http_client import Reply

#: Every input has this text; no answer and no line of the log may have it.
MARK = "m4rk3d-1nput"
#: Sent after every input: when it is answered, all answers to the input have come.
LAST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: the-last\r\nConnection: close\r\n\r\n"
MOST_BYTES = 4096  # of an error's body


class Judge:
    """Checks answers: no server error, no echo of the input, short errors, no status that the OpenAPI does not list."""

    def __init__(self, openapi: dict[str, Any]) -> None:
        self._documented = {
            (method.upper(), path): set(map(int, operation["responses"]))
            for path, operations in openapi["paths"].items()
            for method, operation in operations.items()
        }
        self.answers = 0
        self.statuses: defaultdict[str, set[int]] = defaultdict(set)
        self._faults: dict[str, list[str]] = {"server error": [], "echo": [], "long": [], "undocumented": []}

    def see(self, request: tuple[str, str], status: int, body: bytes, sent: object = None) -> None:
        """Check an answer to a request of this method and path. The status for an unknown path must be 404 or 405."""
        self.answers += 1
        self.statuses[request[1]].add(status)
        about = f"{request} {str(sent)[:200]} -> {status} {body[:300]!r}"
        for kind, wrong in (
            ("server error", status >= 500),
            ("echo", MARK.encode() in body),
            ("long", status >= 400 and len(body) > MOST_BYTES),
            ("undocumented", status not in self._documented.get(request, {404, 405})),
        ):
            if wrong:
                self._faults[kind].append(about)

    def faults(self, *kinds: str) -> str:
        """How many faults of each kind there were, of all kinds if none is named. `content` prints the first ones."""
        return ", ".join(f"{len(self._faults[kind])}" for kind in kinds or self._faults)

    @property
    def content(self) -> bool:
        """Whether there were no faults; the first of each kind are printed."""
        for kind, answers in self._faults.items():
            print(*(f"{kind}: {each}" for each in answers[:3]), sep="\n", end="")
        return not any(self._faults.values())


class Target:
    """A replica under attack, and what it answered before the attack."""

    def __init__(self, replica: Replica) -> None:
        self.replica, self.port = replica, replica.port
        self.openapi: dict[str, Any] = replica.client.get("/openapi.json").json()
        self._before = self._ask()

    def _ask(self) -> list[dict[str, Any]]:
        answer = self.replica.client.post("/v1/retrieve", json={"history": [1, 5, 9], "k": 5})
        assert answer.status_code == 200, answer.text
        candidates: list[dict[str, Any]] = answer.json()["candidates"]
        return candidates

    def check_unharmed(self) -> None:
        """The replica answers as before, and its log has neither the input nor a traceback or error."""
        assert same(self._ask(), self._before)
        log = self.replica.log()
        assert MARK not in log
        assert "Traceback" not in log
        assert " ERROR " not in log


@contextmanager
def target(planted: Planted, folder: Path, **settings: object) -> Iterator[Target]:
    """One replica of the planted version in a folder store, which looks for a new version only every minute."""
    store = open_store(str(folder / "store"))
    store.activate(store.publish(planted.version))
    with fleet(folder, str(folder / "store"), count=1, poll_seconds=60, timeout_ms=60_000, **settings) as (replica,):
        yield Target(replica)


def exchange(port: int, *parts: bytes, between: Callable[[], object] | None = None) -> list[Reply]:
    """The answers to `parts` on one connection, each part sent once the previous one is answered, or `between` done.

    LAST is sent at the end, so all answers are in when LAST is answered or the connection ends.
    """
    replies: list[Reply] = []
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        answers = _answers(connection)
        with suppress(ConnectionResetError, BrokenPipeError):  # refused before all of it was sent
            for part in parts[:-1]:
                connection.sendall(part)
                if between:
                    between()
                else:
                    replies += [reply for reply in [next(answers, None)] if reply]
            connection.sendall(parts[-1] + LAST)
        replies += answers
    return [reply for reply in replies if reply.header("x-request-id") != "the-last"]


def ask_once(port: int, *parts: bytes) -> Reply | None:
    """The first answer to `parts`, or None if the server closes the connection first; then the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
        return next(_answers(connection), None)


def _answers(connection: socket.socket) -> Iterator[Reply]:
    """Each answer as it comes, until the server closes the connection or has answered LAST."""
    buffer = bytearray()
    while True:
        end = buffer.find(b"\r\n\r\n")
        if end >= 0:
            reply = Reply(int(buffer[9:12]), bytes(buffer[:end]), b"", 0.0)
            whole = end + 4 + int(reply.header("content-length") or 0)
            if len(buffer) >= whole:
                yield reply._replace(body=bytes(buffer[end + 4 : whole]))
                del buffer[:whole]
                if reply.header("x-request-id") == "the-last":
                    return
                continue
        try:
            data = connection.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            assert not buffer, "half an answer"
            return
        buffer += data
