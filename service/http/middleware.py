"""Gives every request an id, limits its body, refuses it early under load, and counts it. Plain ASGI."""

from __future__ import annotations

import asyncio
import random
import re
import time

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import problem
from service.metrics import Metrics
from service.process.draining import Draining

REQUEST_ID = re.compile(rb"^[A-Za-z0-9._-]{1,64}$")
BODY_SECONDS = 10.0  # from a request's head to the end of its body; a later body is answered 408
SHORT_BODY_BYTES = 65_536  # a request with 1,000 items of history and a few hundred to exclude is shorter
LONG_BODIES_BYTES = 4 * 2**20  # that all longer bodies share; a body that does not fit is refused with 429
RETRIEVALS = {"/v1/retrieve", "/v1/retrieve:batch"}
BUSY = "too many requests are waiting; try again later"
BUSY_WITH_LONG = "too many long bodies are under way; try again later"


class RequestMiddleware:
    """Keeps or makes the X-Request-ID, refuses bodies that are too long or too late, counts and times requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics, draining: Draining, max_body_bytes: int) -> None:
        self._app, self._metrics, self._draining, self._max_body_bytes = app, metrics, draining, max_body_bytes
        self._too_long = f"the body is longer than {max_body_bytes} bytes; send less, or in several requests"
        self._room = _Room(max(LONG_BODIES_BYTES, max_body_bytes))  # so the longest body has room if it is alone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if REQUEST_ID.match(given) else f"{random.getrandbits(128):032x}"
        scope["request_id"] = request_id
        if scope["method"] == "HEAD":  # answered as GET; uvicorn keeps the scope with HEAD, so it sends no body
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
            await send(message)

        # Refused before the body is read: parsing and checking a request takes time that the other requests need.
        is_retrieval = scope["path"] in RETRIEVALS and scope["method"] == "POST"
        refused = is_retrieval and (413 if too_long else 429 if scope["state"]["batcher"].overloaded else 0)
        try:
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


class _Room:
    """The memory that all long bodies share. left: bytes that are still free."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.turn = asyncio.Lock()


class _Body:
    """A request's body as it arrives. Refuses a body that is too long or too late.

    most: the most bytes that are allowed; 0 refuses the body without reading it.
    """

    def __init__(self, receive: Receive, started: float, most: int, too_long: str, room: _Room) -> None:
        self._receive, self._end, self._most, self._room = receive, started + BODY_SECONDS, most, room
        self._too_long = too_long
        self._received, self._taken, self._whole = 0, 0, False

    async def receive(self) -> Message:
        """Return the next piece of the body. Raises HTTPException with status 408, 413 or 429."""
        if not self._most:
            raise HTTPException(413, self._too_long)
        if self._whole:
            return await self._receive()
        try:  # limited, because a slow sender occupies one of the proxy's connections
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
                # Each round of the event loop reads the next piece of only one long body, so that other requests go on.
                async with self._room.turn:
                    await asyncio.sleep(0)
        return message

    def close(self) -> None:
        """Give back the room that the body took. Called when the request has been answered."""
        self._room.left += self._taken
