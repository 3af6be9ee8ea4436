"""Bytes that no HTTP client sends: smuggled requests, broken framing, floods of headers, half-sent requests."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import Planted
from tests.wire import MARK, Judge, Target, ask_once, exchange, target

BODY = b'{"history": [1, 5], "k": 2, "exclude": ["m4rk3d-1nput"]}'
CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
#: A request hidden in another's body; an answer with its id shows that it was read as a request.
SMUGGLED = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-ID: smuggled\r\n\r\n"
#: For a request whose body is SMUGGLED.
SMUGGLED_LENGTH = b"Content-Length: %d\r\n" % len(SMUGGLED)


def post(headers: bytes, body: bytes = BODY, *, line: bytes = b"POST /v1/retrieve HTTP/1.1") -> bytes:
    """A POST request with these headers besides the usual ones."""
    return (
        line
        + b"\r\nHost: localhost\r\nX-Mark: m4rk3d-1nput\r\nContent-Type: application/json\r\n"
        + headers
        + b"\r\n"
        + body
    )


def get(target: bytes, headers: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    """A request without a body."""
    return b"GET %b %b\r\nHost: localhost\r\n%b\r\n" % (target, version, headers)


UPGRADE = b"Upgrade: %b\r\nConnection: Upgrade\r\n"
WEBSOCKET = UPGRADE % b"websocket" + b"Sec-WebSocket-Key: bTRyazNkLTFucHV0\r\nSec-WebSocket-Version: 13\r\n"
#: Refused by the parser: 400, and the connection is closed.
REFUSED = {
    "CL and TE": post(SMUGGLED_LENGTH + CHUNKED, b"0\r\n\r\n" + SMUGGLED),
    "TE and CL": post(CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n" + SMUGGLED),
    "TE after a vertical tab": post(LENGTH + b"Transfer-Encoding:\x0bchunked\r\n", BODY + SMUGGLED),
    "TE before a space": post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    "TE after a tab, and CL": post(b"Transfer-Encoding:\tchunked\r\n" + LENGTH, b"0\r\n\r\n" + SMUGGLED),
    "TE twice": post(CHUNKED + b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n" + SMUGGLED),
    "TE ends in another": post(b"Transfer-Encoding: chunked, m4rk3d-1nput\r\n", CHUNK),
    "TE is another": post(b"Transfer-Encoding: xchunked\r\n", CHUNK),
    "two CL": post(LENGTH + b"Content-Length: 0\r\n", BODY + SMUGGLED),
    "two CL, the same": post(LENGTH + LENGTH),
    "CL a list": post(b"Content-Length: 5, 5\r\n"),
    "CL negative": post(b"Content-Length: -1\r\n"),
    "CL with a sign": post(b"Content-Length: +5\r\n"),
    "CL of 2^64": post(b"Content-Length: 18446744073709551616\r\n"),
    "CL of 5,000 digits": post(b"Content-Length: " + b"9" * 5000 + b"\r\n"),
    "CL empty": post(b"Content-Length: \r\n"),
    "CL hexadecimal": post(b"Content-Length: 0x5\r\n"),
    "CL short": post(b"Content-Length: 5\r\n"),
    "bare LF": post(LENGTH).replace(b"\r\n", b"\n"),
    "bare LF after the request line": post(LENGTH).replace(b"\r\n", b"\n", 1),
    "bare LF for the last line": post(LENGTH).replace(b"\r\n\r\n", b"\n\n", 1),
    "bare CR": get(b"/livez", b"X: y\rX-Mark: m4rk3d-1nput\r\n"),
    "obs-fold": get(b"/livez", b"X: y\r\n m4rk3d-1nput\r\n"),
    "NUL in a header": get(b"/livez", b"X: m4rk3d-1nput\x00\r\n"),
    "a space in a header's name": get(b"/livez", b"X Y: m4rk3d-1nput\r\n"),
    "a header without a name": get(b"/livez", b": m4rk3d-1nput\r\n"),
    "a header without a colon": get(b"/livez", b"m4rk3d-1nput\r\n"),
    "a chunk's size is no number": post(CHUNKED, CHUNK.replace(b"38", b"m4", 1)),
    "a chunk's size is negative": post(CHUNKED, b"-" + CHUNK),
    "a chunk's size has a prefix": post(CHUNKED, b"0x" + CHUNK),
    "a chunk's size overflows": post(CHUNKED, b"f" * 17 + CHUNK),
    "a chunk's extension ends in LF": post(CHUNKED, CHUNK.replace(b"\r\n", b";m4rk3d-1nput\n", 1)),
    "a trailer that frames": post(CHUNKED, CHUNK[:-2] + SMUGGLED_LENGTH + b"\r\n" + SMUGGLED),
    "a URL of 1 MB": get(b"/m4rk3d-1nput?" + b"a" * 1_000_000),
    "a path not in ASCII": get(b"/m4rk3d-1nput\xff"),
    "no such method": get(b"/livez").replace(b"GET", b"M4RK", 1),
    "no such version": get(b"/livez", version=b"HTTP/3.7"),
    "HTTP/0.9": b"GET /m4rk3d-1nput\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303"),
    "CONNECT": b"CONNECT m4rk3d-1nput:80 HTTP/1.1\r\nHost: x\r\n\r\n" + SMUGGLED,
    "garbage": bytes(range(256)) * 40,
    "a space first": b" " + get(b"/livez"),
}
#: Odd but unambiguous requests and the statuses of their answers; the connection stays open.
ANSWERED = {
    "no Host": (b"GET /livez HTTP/1.1\r\n\r\n", [200]),
    "a Host that is none": (get(b"/v1/info/").replace(b"localhost", b"[m4rk3d-1nput"), [404]),
    "another Host": (get(b"/v1/info/?m4rk3d-1nput").replace(b"localhost", MARK.encode()), [404]),
    "two Hosts": (get(b"/livez", b"Host: m4rk3d-1nput\r\n"), [200]),
    "forwarded": (get(b"/v1/info/", b"X-Forwarded-Host: m4rk3d-1nput\r\nX-Forwarded-For: m4rk3d-1nput\r\n"), [404]),
    "an absolute URL": (get(b"http://m4rk3d-1nput/livez"), [200]),
    "no resource": (get(b"*").replace(b"GET", b"OPTIONS"), [404]),
    "TRACE": (get(b"/livez", b"X: m4rk3d-1nput\r\n").replace(b"GET", b"TRACE"), [405]),
    "NUL in a path": (get(b"/m4rk3d-1nput%00"), [404]),
    "up and away": (get(b"/static-offline-docs/..%2f../m4rk3d-1nput"), [404]),
    "NUL in a file's name": (get(b"/static-offline-docs/m4rk3d-1nput%00"), [404]),
    "a file's name too long": (get(b"/static-offline-docs/" + MARK.encode() * 400), [404]),
    "a folder": (get(b"/static-offline-docs"), [404]),
    "empty lines first": (b"\r\n\r\n" + get(b"/livez"), [200]),
    "a query of 60 kB": (get(b"/livez?" + MARK.encode() * 5000), [200]),
    "a header of 1 MB": (post(LENGTH + b"X: " + MARK.encode() * 80_000 + b"\r\n"), [200]),
    "5,000 headers": (post(LENGTH + b"".join(b"X-%d: m4rk3d-1nput\r\n" % i for i in range(5000))), [200]),
    "a chunk's extension": (post(CHUNKED, CHUNK.replace(b"\r\n", b";m4rk3d-1nput=1\r\n", 1)), [200]),
    "chunks of one byte": (post(CHUNKED, b"".join(b"1\r\n%c\r\n" % c for c in BODY) + b"0\r\n\r\n"), [200]),
    "an expectation": (post(LENGTH + b"Expect: m4rk3d-1nput\r\n"), [200]),
    "no type": (post(LENGTH).replace(b"application/json", b""), [415]),
    "a type that is none": (post(LENGTH).replace(b"application/json", b"\xff/\xfe; charset=\x80m4rk3d-1nput"), [415]),
    "a body where none is wanted": (get(b"/livez", SMUGGLED_LENGTH) + SMUGGLED, [200]),
    "too long, in chunks": (post(CHUNKED, b"200000\r\n" + b" " * 0x200000 + b"\r\n0\r\n\r\n"), [413]),
    "pipelined": (post(LENGTH) + get(b"/m4rk3d-1nput") + post(CHUNKED, CHUNK) + get(b"/livez"), [200, 404, 200, 200]),
    "an upgrade to nothing": (post(LENGTH + b"Upgrade: m4rk3d-1nput\r\n"), [200]),
}  # fmt: skip


@pytest.fixture(scope="module")
def live(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A process that serves the planted version."""
    with target(planted, tmp_path_factory.mktemp("live")) as opened:
        yield opened


def test_broken_framing_is_refused(live: Target) -> None:
    """At most one answer, a 400, and the connection is closed: nothing that follows is read as a request."""
    judge = Judge(live.openapi)
    smuggled = 0
    for name, data in REFUSED.items():
        replies = exchange(live.port, data)
        # A client that is still sending when the server closes may lose its answer; a client that sent little does not.
        assert [reply.status for reply in replies] in ([[400], []] if len(data) > 65_536 else [[400]]), name
        smuggled += sum(reply.header("x-request-id") == "smuggled" for reply in replies)
        for reply in replies:
            judge.see(("", "of the parser"), 404 if reply.status == 400 else reply.status, reply.body, name)

    live.check_unharmed()
    assert smuggled == 0
    assert judge.content


def test_odd_requests_are_answered_in_their_order(live: Target) -> None:
    """There are as many answers as requests, each with a documented status."""
    judge = Judge(live.openapi)
    for name, (data, wanted) in ANSWERED.items():
        replies = exchange(live.port, data)
        assert [reply.status for reply in replies] == wanted, name
        assert not any(MARK.encode() in reply.head for reply in replies), name
        path = "/v1/retrieve" if data.startswith(b"POST") else "/livez"
        for reply in replies:
            where = (
                ("GET", "unknown") if reply.status in {404, 405} else ("POST" if data[0] == ord("P") else "GET", path)
            )
            judge.see(where, reply.status, reply.body, name)

    live.check_unharmed()
    assert judge.content


@pytest.mark.parametrize("upgrade", [UPGRADE % b"h2c", UPGRADE % b"websocket", WEBSOCKET, UPGRADE % b"m4rk3d-1nput"])
def test_an_upgrade_hides_no_request(live: Target, upgrade: bytes) -> None:
    """The parser pauses at an Upgrade header; the body, sent later, is read as the body and not as the next request."""
    head = post(upgrade + SMUGGLED_LENGTH, b"")

    replies = exchange(live.port, head, SMUGGLED, between=lambda: live.replica.client.get("/livez"))

    assert [reply.status for reply in replies] == [400]  # no JSON
    assert replies[0].header("x-request-id") != "smuggled"
    live.check_unharmed()


@pytest.mark.parametrize("path", [b"/m4rk3d-1nput", b"/v1/retrieve?m4rk3d-1nput", b"/static-offline-docs/m4rk3d-1nput"])
def test_there_are_no_websockets(live: Target, path: bytes) -> None:
    """A WebSocket handshake is answered like any GET, with 404 or 405, and the log does not repeat its path."""
    (reply,) = exchange(live.port, get(path, WEBSOCKET))

    assert reply.status in {404, 405}
    live.check_unharmed()


def test_a_content_length_over_the_limit_is_refused_at_once(live: Target) -> None:
    """A body announced as too long is answered with 413 before the rest of it arrives."""
    for length in (b"1048577", b"9223372036854775807"):
        reply = ask_once(live.port, post(b"Content-Length: %b\r\n" % length))
        assert reply
        assert reply.status == 413, length
    live.check_unharmed()


def test_a_refused_body_is_not_read_for_ever(planted: Planted, tmp_path: Path) -> None:
    """After a 413 the connection is closed once keep_alive_seconds are over, even if the client keeps sending."""
    endless = post(CHUNKED, b"fffffff\r\n" + b" " * 0x110000)
    with target(planted, tmp_path, keep_alive_seconds=1) as live:
        with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
            connection.sendall(endless)
            assert _status(connection) == 413
            connection.settimeout(0.1)
            with pytest.raises(ConnectionError):
                _drip(connection, 30)
        live.check_unharmed()


def test_a_connection_outlives_a_refused_body(live: Target) -> None:
    """The 413 comes before the body; once the client has sent the body anyway, its next request is answered."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        connection.sendall(post(b"Content-Length: 1048577\r\n", b""))
        assert _status(connection) == 413
        connection.sendall(b" " * 1048577 + get(b"/livez"))
        assert _status(connection) == 200
    live.check_unharmed()


def _drip(connection: socket.socket, seconds: float) -> None:
    """Send a byte every tenth of a second. Raises ConnectionError when the server has closed the connection."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection.sendall(b" ")
        with contextlib.suppress(TimeoutError):
            assert connection.recv(1) == b""


def _status(connection: socket.socket) -> int:
    """The status of the next answer. The whole answer is read, though it may come in pieces."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status


def test_a_request_may_arrive_byte_by_byte(live: Target) -> None:
    """Head and body are sent one byte at a time; the request is answered once it is complete."""
    reply = ask_once(live.port, *(bytes([byte]) for byte in post(LENGTH)))

    assert reply
    assert reply.status == 200
    assert len(reply.json()["candidates"]) == 2


def test_half_open_connections_do_not_block_other_clients(live: Target) -> None:
    """200 connections have sent nothing, half a head, half a body or half a chunk; other clients are answered."""
    whole = post(LENGTH)
    halves = (b"", whole[:30], whole[:-5], post(CHUNKED, CHUNK[:9]))
    with ExitStack() as stack:
        for number in range(200):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", live.port), timeout=30))
            connection.sendall(halves[number % len(halves)])
        live.check_unharmed()
    live.check_unharmed()


def test_a_client_that_leaves_early_leaves_no_traceback(live: Target) -> None:
    """200 clients close their side of the connection before they are answered; no traceback or error is logged."""
    for number in range(200):
        with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
            # MSG_MORE keeps the request back until the end of the connection is sent with it.
            connection.send(
                (post(LENGTH), get(b"/livez"), get(b"/docs"), get(b"/metrics"))[number % 4], socket.MSG_MORE
            )
            connection.shutdown(socket.SHUT_WR)
            if number % 8 < 4:
                connection.recv(1)
    live.check_unharmed()


def test_pipelined_requests_of_a_disconnected_client_end(planted: Planted, tmp_path: Path) -> None:
    """Uvicorn reports the disconnect only to the newest of the connection's requests; the others must end, too."""
    with target(planted, tmp_path) as live:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
                connection.sendall(post(LENGTH) * 3)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)
        assert live.replica.client.post("/v1/retrieve", json={}).status_code == 200
        assert live.replica.process
        live.replica.process.send_signal(signal.SIGTERM)
        assert live.replica.process.wait(40) == 0  # the process would wait a minute for a request that does not end
