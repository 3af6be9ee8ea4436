"""uvicorn's connection, except: it ignores `Upgrade`, reads little ahead, and soon stops reading a refused body."""

from __future__ import annotations

import asyncio
import random
import socket

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Bytes that the system holds for us of a connection. By itself it holds megabytes, and the server reads 256 KB of them
#: at once: of a hundred long bodies more than all that they may take together.
READ_AHEAD = 32_768
#: How long the rest of a body is read once it has been answered, so that who sends it can see the answer, and a
#: connection is kept for what comes after it.
LINGER_SECONDS = 2.0


class Connection(HttpToolsProtocol):
    """Reads little ahead, and not forever what it has refused. Offers of other protocols are passed over.

    Clients may offer HTTP/2 or websockets (`Upgrade`) with any request; a server that does not take an offer up answers
    as if it had not been made. The parser has no such mode: behind a head with an offer it stops, and what comes next,
    even the request's body, it would read as a new request. So the head is parsed again without the offer, by a new
    parser, which then reads on where the other stopped.
    """

    _lingering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Before anything is read."""
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_AHEAD)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Of whole requests, parts of them, or several."""
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        try:
            while rest:
                try:
                    self.parser.feed_data(rest)
                    return
                except httptools.HttpParserUpgrade as offer:
                    rest = rest[offer.args[0] :]
                    self._parse_without_offer()
        except httptools.HttpParserError:
            self.logger.warning("a request is not valid HTTP/1.1")
            self.send_400_response("the request is not valid HTTP/1.1")

    def _parse_without_offer(self) -> None:
        target, headers = self.url, self.headers
        line = b"%b %b HTTP/%b" % (self.parser.get_method(), target, self.parser.get_http_version().encode())
        kept = [b"%b: %b" % header for header in headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the server sets it
        self.parser.feed_data(b"\r\n".join((line, *kept, b"", b"")))

    def send_400_response(self, msg: str) -> None:
        """For what cannot be parsed: a problem, as every other error is, and the end of the connection."""
        request_id = f"{random.getrandbits(128):032x}"
        body = orjson.dumps(
            {"type": "about:blank", "title": "Bad Request", "status": 400, "detail": msg, "request_id": request_id}
        )
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def on_headers_complete(self) -> None:
        """Start the request; if the head has an `Upgrade`, wait for the second parse."""
        if not self.parser.should_upgrade():
            super().on_headers_complete()
        elif self.parser.get_method() == b"CONNECT":
            raise httptools.HttpParserError("there are no tunnels")

    def on_message_complete(self) -> None:
        """End the request, likewise."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

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
