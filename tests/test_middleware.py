"""Limits on bodies, for a client that sends them in pieces or not at all."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from index_store.folder.store import FolderStore
from service.http import middleware
from service.http.app import create_app
from service.process.settings import Settings

SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v1/retrieve",
    "raw_path": b"/v1/retrieve",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
}
#: Sends pieces of a body, waits for the event, then disconnects; returns the messages of the answer.
Ask = Callable[[list[bytes], asyncio.Event], Coroutine[Any, Any, list[Message]]]


def with_app(folder: Path, test: Callable[[Ask], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Run `test` beside a running service that has no version yet."""
    app = create_app(Settings(store=str(folder), **settings), FolderStore(str(folder)))

    async def run() -> None:
        async with app.router.lifespan_context(app) as state:

            async def ask(pieces: list[bytes], hung_up: asyncio.Event) -> list[Message]:
                messages: list[Message] = []
                unsent = copy.copy(pieces)

                async def receive() -> Message:
                    if unsent:
                        return {"type": "http.request", "body": unsent.pop(0), "more_body": True}
                    await hung_up.wait()
                    return {"type": "http.disconnect"}

                async def send(message: Message) -> None:
                    messages.append(message)

                await app({**SCOPE, "state": dict(state or {})}, receive, send)
                return messages

            await test(ask)

    asyncio.run(run())


@pytest.mark.parametrize("sent", [[], [b'{"history": [1']])
def test_a_body_that_does_not_come_is_408(sent: list[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The connection is closed too, because a client that stops sending would keep it from other clients."""
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.01)

    async def test(ask: Ask) -> None:
        begin, *_ = await ask(sent, asyncio.Event())

        assert begin["status"] == 408
        assert (b"connection", b"close") in begin["headers"]

    with_app(tmp_path, test)


def test_long_bodies_share_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """While one long body takes nearly all of the limit, the next gets 429 and short bodies are read; then there is
    room.

    The limit has room for the longest body that is allowed.
    """
    monkeypatch.setattr(middleware, "SHORT_BODY_BYTES", 10)
    monkeypatch.setattr(middleware, "LONG_BODIES_BYTES", 20)

    async def test(ask: Ask) -> None:
        hung_up, at_once = asyncio.Event(), asyncio.Event()
        at_once.set()
        first = asyncio.create_task(ask([b" " * 1024], hung_up))
        await asyncio.sleep(0)
        refused = await ask([b" " * 15], at_once)
        short = await ask([b" " * 10], at_once)
        hung_up.set()
        await first
        after = await ask([b" " * 1024], at_once)

        assert [answer[0]["status"] for answer in (refused, short, after)] == [429, 400, 400]
        assert (b"retry-after", b"1") in refused[0]["headers"]

    with_app(tmp_path, test, max_body_bytes=1024)


def test_long_bodies_take_turns(tmp_path: Path) -> None:
    """Of three long bodies that have arrived, each round of the event loop reads the next piece of only one."""
    rounds: list[int] = []
    now = 0

    class Logged(list[bytes]):
        def pop(self, index: Any = -1) -> bytes:
            rounds.append(now)
            return super().pop(index)

    async def count() -> None:
        nonlocal now
        while True:
            now += 1
            await asyncio.sleep(0)

    async def test(ask: Ask) -> None:
        hung_up = asyncio.Event()
        hung_up.set()
        counting = asyncio.create_task(count())
        await asyncio.gather(*(ask(Logged([b" " * 70_000] * 5), hung_up) for _ in range(3)))
        counting.cancel()

    with_app(tmp_path, test)

    after_the_first = rounds[3:]  # the first piece shows that a body is long
    assert len(after_the_first) == 12
    assert len(set(after_the_first)) == 12
