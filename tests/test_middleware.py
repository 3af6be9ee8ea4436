"""What cannot be seen through a client that sends whole requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from service import middleware
from service.app import create_app
from service.settings import Settings


@pytest.mark.parametrize("sent", [b"", b'{"history": [1'])
def test_a_body_that_does_not_come_is_408(sent: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Whoever stops sending keeps a connection from others, so it is closed; the head alone is enough to begin."""
    from index_store.folder import FolderStore

    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.01)
    app = create_app(Settings(store=str(tmp_path)), FolderStore(str(tmp_path)))
    told: list[Message] = []
    pieces = [{"type": "http.request", "body": sent, "more_body": True}] if sent else []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/retrieve",
        "raw_path": b"/v1/retrieve",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"20000")],
    }

    async def receive() -> Message:
        if pieces:
            return pieces.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        told.append(message)

    async def ask() -> None:
        async with app.router.lifespan_context(app) as state:
            await app({**scope, "state": dict(state or {})}, receive, send)

    asyncio.run(ask())

    assert told[0]["status"] == 408
    assert (b"connection", b"close") in told[0]["headers"]
