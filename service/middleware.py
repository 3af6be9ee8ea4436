"""What happens to every request: an id, a limit on its body, its count and time. Plain ASGI."""

from __future__ import annotations

import random
import re
import time
from contextlib import suppress

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.draining import Draining
from service.metrics import Metrics
from service.problems import problem

REQUEST_ID = re.compile(rb"^[A-Za-z0-9._-]{1,64}$")
RETRIEVALS = {"/v1/retrieve", "/v1/retrieve:batch"}


class RequestMiddleware:
    """Takes X-Request-ID or makes one, refuses long bodies as they arrive, and measures."""

    def __init__(self, app: ASGIApp, metrics: Metrics, draining: Draining, max_body_bytes: int) -> None:
        self._app, self._metrics, self._draining, self._max_body_bytes = app, metrics, draining, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if REQUEST_ID.match(given) else f"{random.getrandbits(128):032x}"
        scope["request_id"] = request_id
        status, received = 500, 0
        stated = headers.get(b"content-length", b"")
        # The parser lets go of the connection at such a head; of what follows, even the body would be the next request.
        upgrading = b"upgrade" in headers
        too_long = stated.isdigit() and int(stated[:20]) > self._max_body_bytes

        async def limited_receive() -> Message:
            nonlocal received
            message = {} if too_long else await receive()
            received += len(message.get("body", b""))
            if too_long or received > self._max_body_bytes:
                raise HTTPException(413)
            return message

        async def named_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                if upgrading or self._draining.begun:
                    message["headers"].append((b"connection", b"close"))
            try:
                await send(message)
            except RuntimeError as error:
                if not str(error).endswith("the handler is closed"):
                    raise
                raise ClientDisconnect from None  # of requests in a pipeline, the server tells only the last

        # Before its body is read: to parse and check what is then refused would leave no time for those waiting.
        refused = scope["path"] in RETRIEVALS and scope["state"]["batcher"].full
        try:
            with suppress(ClientDisconnect):
                if refused:
                    response = problem(Request(scope), 429, "too many requests are waiting; try again later")
                    await response(scope, limited_receive, named_send)
                else:
                    await self._app(scope, limited_receive, named_send)
        finally:
            route = getattr(scope.get("route"), "path", scope["path"] if refused else "unmatched")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.duration.labels(route).observe(time.perf_counter() - started)
