"""The server's HTTP connection: uvicorn's class, with four corrections that a service without a proxy needs.

- A request that offers another protocol (`Upgrade`) is answered as if it had no offer, which RFC 9110 (7.8) allows.
  Java's client offers HTTP/2 with every request. uvicorn would read the body of such a request as the next request, so
  an attacker could hide requests in bodies.
- A request that is not valid HTTP is answered with a problem, as every other error is.
- The rest of a refused body is read only for the time that an idle connection is kept, not without limit.
- The server reads little ahead of the application, so that many long bodies together take little memory.

The proxy protects the service from clients that send or read slowly, see docker/haproxy.cfg.
"""

from __future__ import annotations

import asyncio
import random
import socket

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Bytes that the kernel buffers for a connection. By default the kernel buffers megabytes, and uvicorn reads 256 KB of
#: them at once. A hundred connections would then exceed the limit for all long bodies (LONG_BODIES_BYTES).
READ_AHEAD = 32_768


class Connection(HttpToolsProtocol):
    """The class of a connection, passed to uvicorn as the setting `http`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called before anything is read."""
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_AHEAD)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Called with the next bytes of the stream: a part of a request, a whole request, or several requests.

        After a head with an offer the parser stops and cannot continue. A new parser replaces it. The new parser parses
        the head again without the offer, and then the bytes that follow the head.
        """
        rest = memoryview(data)
        try:
            while rest:
                try:
                    self.parser.feed_data(rest)
                    return
                except httptools.HttpParserUpgrade as offer:
                    rest = rest[offer.args[0] :]  # the position in `rest` at which the head ends
                    self._parse_without_offer()
        except httptools.HttpParserError:
            self.logger.warning("a request is not valid HTTP/1.1")
            self.send_400_response("the request is not valid HTTP/1.1")

    def _parse_without_offer(self) -> None:
        line = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        headers = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.parser.feed_data(b"\r\n".join((line, *headers, b"", b"")))

    def on_headers_complete(self) -> None:
        """Called at the end of a head. A head with an offer starts no request, because it is parsed again.

        A connection counts as idle until a head is complete. In uvicorn any byte stops the idle timer, so a client
        could keep a connection open by sending more of a refused body.
        """
        if not self.parser.should_upgrade():
            self._unset_keepalive_if_required()
            super().on_headers_complete()
        elif self.parser.get_method() == b"CONNECT":  # for the parser, CONNECT is an offer too
            raise httptools.HttpParserError("there are no tunnels")

    def on_message_complete(self) -> None:
        """Called at the end of a body, and at the end of a head with an offer."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer with a problem and close the connection, because it is unknown where the next request begins."""
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
