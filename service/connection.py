"""The HTTP server's connection, but for how much it reads ahead."""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Bytes that the system holds for us of a connection. By itself it holds megabytes, and the server reads 256 KB of them
#: at once: of a hundred long bodies more than all that they may take together.
READ_AHEAD = 32_768


class Connection(HttpToolsProtocol):
    """Reads little ahead."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Before anything is read."""
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_AHEAD)
        super().connection_made(transport)
