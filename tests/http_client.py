"""An HTTP client on raw sockets: cheap enough to load a server from one core, and it keeps the bytes of each answer."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

#: How long an idle connection is kept for another request: less than the 5 s after which a server may close it.
IDLE_SECONDS = 2.0


class Reply(NamedTuple):
    """An answer. seconds: from when its request was due until the answer came."""

    status: int
    head: bytes
    body: bytes
    seconds: float

    def json(self) -> Any:
        """The body, parsed as JSON."""
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """The value of the first header of this name."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.lower().encode():
                return value.strip().decode("latin-1")
        return None


class Connection(asyncio.Protocol):
    """One connection that has at most one request under way."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answer: asyncio.Future[Reply] | None = None
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's class is not an asyncio.Transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        start = self._buffer[:head].lower().index(b"content-length:") + len(b"content-length:")
        length = int(self._buffer[start:].split(b"\r\n", 1)[0])
        if len(self._buffer) < head + 4 + length:
            return
        assert len(self._buffer) == head + 4 + length, "more than was asked for"
        body = bytes(self._buffer[head + 4 :])
        reply = Reply(int(self._buffer[9:12]), bytes(self._buffer[:head]), body, 0.0)
        self._buffer.clear()
        self.open = self.open and b"connection: close" not in reply.head.lower()
        assert self._answer is not None, "an answer nobody asked for"
        if not self._answer.done():
            self._answer.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._answer and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("the server closed the connection"))

    def send(self, request: bytes) -> asyncio.Future[Reply]:
        """Send a request; the future gets its answer, or an OSError when the connection ends first."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    async def ask(self, request: bytes) -> Reply:
        """The answer to a request. Raises OSError when the connection ends first."""
        return await self.send(request)

    def abort(self) -> None:
        """Close the connection at once, even in the middle of a request."""
        self.open = False
        self._transport.abort()


@dataclass
class Pool:
    """At most `most` connections to one port, opened when they are needed; the one used last is used again first."""

    port: int
    most: int = 1000

    def __post_init__(self) -> None:
        self._free: deque[tuple[Connection, float]] = deque()
        self._places = asyncio.Semaphore(self.most)

    async def ask(self, request: bytes) -> Reply:
        """The answer to a whole request, as `post` makes it; waits until a connection is available. Raises OSError."""
        async with self._places:
            return await self._ask(request)

    async def _ask(self, request: bytes) -> Reply:
        loop = asyncio.get_running_loop()
        while self._free:
            connection, since = self._free.pop()
            if connection.open and loop.time() < since + IDLE_SECONDS:
                break
            connection.abort()
        else:
            connection = (await loop.create_connection(Connection, "127.0.0.1", self.port))[1]
        try:
            reply = await connection.ask(request)
        except BaseException:
            connection.abort()
            raise
        if connection.open:
            self._free.append((connection, loop.time()))
        return reply

    def close(self) -> None:
        """Close all idle connections."""
        while self._free:
            self._free.pop()[0].abort()


def post(route: str, body: bytes | dict[str, Any], **headers: str) -> bytes:
    """A POST of a JSON body, as bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {route} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in {"Content-Length": str(len(data)), **headers}.items()]
    return "\r\n".join((*lines, "", "")).encode() + data


def get(route: str) -> bytes:
    """A GET, as bytes."""
    return f"GET {route} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def at_rate(rate: float, seconds: float, requests: list[bytes], pool: Pool) -> list[Reply | OSError]:
    """Send `requests` in turn at a fixed rate, whether or not earlier ones were answered; gives the answer or error of
    each.

    A client that waits for an answer before it asks again would leave out exactly the requests that would have waited.
    The seconds of a reply count from when its request was due.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def ask(number: int, due: float) -> Reply | OSError:
        try:
            reply = await pool.ask(requests[number % len(requests)])
        except OSError as error:
            return error
        return reply._replace(seconds=loop.time() - due)

    tasks = []
    for number in range(int(rate * seconds)):
        due = start + number / rate
        while (wait := due - loop.time()) > 0:  # timers count whole milliseconds
            await asyncio.sleep(wait - 0.001 if wait > 0.002 else 0)
        tasks.append(asyncio.ensure_future(ask(number, due)))
    return list(await asyncio.gather(*tasks))
