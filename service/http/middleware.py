"""What happens to every request: an id, a limit on its body, its count and time. Plain ASGI."""

from __future__ import annotations

import asyncio
import random
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import problem
from service.metrics import Metrics
from service.process.draining import Draining

REQUEST_ID = re.compile(rb"^[A-Za-z0-9._-]{1,64}$")
BODY_SECONDS = 10.0  # from a request's head to the end of its body; later is answered 408
SHORT_BODY_BYTES = 65_536  # a request with 1,000 items of history and a few hundred to exclude is shorter
LONG_BODIES_BYTES = 4 * 2**20  # of longer ones, together
RETRIEVALS = {"/v1/retrieve", "/v1/retrieve:batch"}
BUSY = "too many requests are waiting; try again later"
BUSY_WITH_LONG = "too many long bodies are under way; try again later"


class RequestMiddleware:
    """Takes X-Request-ID or makes one, refuses long bodies as they arrive, and measures."""

    def __init__(self, app: ASGIApp, metrics: Metrics, draining: Draining, max_body_bytes: int) -> None:
        self._app, self._metrics, self._draining, self._max_body_bytes = app, metrics, draining, max_body_bytes
        self._too_long = f"the body is longer than {max_body_bytes} bytes; send less, or in several requests"
        self._room = _Room(max(LONG_BODIES_BYTES, max_body_bytes))  # the longest has room when it is alone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if REQUEST_ID.match(given) else f"{random.getrandbits(128):032x}"
        scope["request_id"] = request_id
        if scope["method"] == "HEAD":  # answered as GET is; the server, whose scope stays as it is, leaves the body out
            scope = {**scope, "method": "GET"}
        status = 500
        stated = headers.get(b"content-length", b"")
        too_long = stated.isdigit() and int(stated[:20]) > self._max_body_bytes

        body = _Body(receive, started, 0 if too_long else self._max_body_bytes, self._too_long, self._room)

        async def named_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                if self._draining.begun:
                    message["headers"].append((b"connection", b"close"))
            try:
                await send(message)
            except RuntimeError as error:
                if not str(error).endswith("the handler is closed"):
                    raise
                raise ClientDisconnect from None  # of requests in a pipeline, the server tells only the last

        # Before its body is read: to parse and check what is then refused would leave no time for those waiting.
        asked = scope["path"] in RETRIEVALS and scope["method"] == "POST"
        refused = asked and (413 if too_long else 429 if scope["state"]["batcher"].full else 0)
        try:
            with suppress(ClientDisconnect):
                if refused:
                    response = problem(Request(scope), refused, self._too_long if too_long else BUSY)
                    await response(scope, body.receive, named_send)
                else:
                    await self._app(scope, body.receive, named_send)
        finally:
            body.close()
            route = getattr(scope.get("route"), "path", scope["path"] if refused else "unmatched")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.duration.labels(route).observe(time.perf_counter() - started)


@dataclass
class _Room:
    """What long bodies share. left: bytes that they may take together, each until it is answered."""

    left: int
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def others_first(self) -> None:
        """Return when the event loop has been through what else is ready; of those who wait here, one each time.

        A hundred long bodies would otherwise all be read before another's answer is written.
        """
        async with self._turn:
            await asyncio.sleep(0)


class _Body:
    """A request's body as it arrives: neither longer nor later than allowed. most: bytes; 0 refuses it unread."""

    def __init__(self, receive: Receive, started: float, most: int, too_long: str, room: _Room) -> None:
        self._receive, self._end, self._most, self._room = receive, started + BODY_SECONDS, most, room
        self._too_long = too_long
        self._received, self._taken, self._whole = 0, 0, False

    async def receive(self) -> Message:
        """The next piece. Raises HTTPException."""
        if not self._most:
            raise HTTPException(413, self._too_long)
        if self._whole:
            return await self._receive()
        try:  # who sends it drop by drop keeps one of the proxy's connections from others
            async with asyncio.timeout(max(0.0, self._end - time.perf_counter())):
                message = await self._receive()
        except TimeoutError:
            late = f"the body did not come within {BODY_SECONDS:g} s of its head; send it again"
            raise HTTPException(408, late, {"connection": "close"}) from None
        self._whole = not message.get("more_body", False)
        size = len(message.get("body", b""))
        self._received += size
        if self._received > self._most:
            raise HTTPException(413, self._too_long)
        if self._received > SHORT_BODY_BYTES:
            self._room.left -= size
            self._taken += size
            if self._room.left < 0:
                raise HTTPException(429, BUSY_WITH_LONG)
            if not self._whole:
                waits = time.perf_counter()
                await self._room.others_first()
                self._end += time.perf_counter() - waits
        return message

    def close(self) -> None:
        """The request is done with."""
        self._room.left += self._taken
