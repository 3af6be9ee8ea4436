"""The server's HTTP connection: uvicorn's, with four corrections that a service without a proxy needs.

- A request that offers another protocol (`Upgrade`) is answered as if the offer had not been made. RFC 9110, 7.8,
  allows that, and Java's client offers HTTP/2 with every request. uvicorn would read the request's body as the next
  request, which also lets an attacker hide requests in bodies.
- A request that is not valid HTTP is answered with a problem, as every other error is.
- The rest of a body that was refused is read for as long as an idle connection is kept, not for ever.
- Little is read ahead, so that many long bodies together take little memory.

Clients that are slow to send or to read are left to the proxy, see docker/haproxy.cfg.
"""

from __future__ import annotations

import asyncio
import random
import socket

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Bytes of a connection that the kernel buffers. By default it buffers megabytes, and uvicorn reads 256 KB of them at
#: once: a hundred connections would then hold more than all long bodies may take together (middleware.py).
READ_AHEAD = 32_768


class Connection(HttpToolsProtocol):
    """Given to uvicorn as its `http` setting."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called before anything is read."""
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_AHEAD)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Called with any part of the stream: part of a request, a whole one, or several.

        After a head with an offer the parser stops, and it cannot be told to go on. A new one takes its place: it
        parses the head again without the offer, and then what follows the head.
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
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it
        self.parser.feed_data(b"\r\n".join((line, *headers, b"", b"")))

    def on_headers_complete(self) -> None:
        """Called at the end of a head. One with an offer starts no request: it is parsed again.

        Only here the connection stops being idle. For uvicorn any byte ends that, so a client that goes on sending a
        body which was refused would be kept for ever.
        """
        if not self.parser.should_upgrade():
            self._unset_keepalive_if_required()
            super().on_headers_complete()
        elif self.parser.get_method() == b"CONNECT":  # which the parser takes for an offer too
            raise httptools.HttpParserError("there are no tunnels")

    def on_message_complete(self) -> None:
        """Called at the end of a body, and at the end of a head with an offer."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer with a problem and close the connection: where the next request begins is unknown."""
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
