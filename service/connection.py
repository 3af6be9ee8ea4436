"""The HTTP server's connection, but for how much it reads ahead, and how long after an answer."""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Bytes that the system holds for us of a connection. By itself it holds megabytes, and the server reads 256 KB of them
#: at once: of a hundred long bodies more than all that they may take together.
READ_AHEAD = 32_768
#: How long the rest of a body is read once it has been answered, so that who sends it can see the answer, and a
#: connection is kept for what comes after it.
LINGER_SECONDS = 2.0


class Connection(HttpToolsProtocol):
    """Reads little ahead, and not forever what it has refused."""

    _lingering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Before anything is read."""
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_AHEAD)
        super().connection_made(transport)

    def on_response_complete(self) -> None:
        """Some requests are answered before all of their body has come."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._lingering = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def on_message_begin(self) -> None:
        """The rest had an end: the connection is used again."""
        super().on_message_begin()
        if self._lingering:
            self._lingering.cancel()
            self._lingering = None
