"""Clients in their default settings are answered, whatever protocols they offer besides HTTP/1.1."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from index_store.folder.store import FolderStore
from tests.conftest import Planted
from tests.fleet import ADMIN
from tests.http_client import Reply
from tests.proxy import proxied
from tests.redis_servers import program
from tests.test_api import make_app
from tests.wire import Target, exchange, target

BODY = b'{"history": [1, 5, 9], "k": 3}'
JSON = b"Host: localhost\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n"
OFFERS = {
    "HTTP/2, as Java and curl offer it": H2C,
    "in small letters": b"connection: upgrade\r\nupgrade: h2c\r\n",
    "several": b"Upgrade: h2c, websocket\r\nUpgrade: TLS/1.2\r\nConnection: keep-alive, Upgrade\r\n",
    "a websocket": b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAA\r\n",
    "what does not say that it is one": b"Upgrade: h2c\r\n",
}
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"


def post(offer: bytes, framing: bytes = LENGTH, body: bytes = BODY) -> bytes:
    """A request for three candidates, from a client that also offers another protocol."""
    return b"POST /v1/retrieve HTTP/1.1\r\n" + offer + JSON + framing + b"\r\n" + body


@pytest.fixture(scope="module")
def live(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A process that serves the planted version."""
    with target(planted, tmp_path_factory.mktemp("live")) as opened:
        yield opened


def answers(replies: list[Reply]) -> list[tuple[int, int]]:
    """The status of each reply, and how many candidates it has."""
    return [(reply.status, len(reply.json().get("candidates", ()))) for reply in replies]


@pytest.mark.parametrize("offer", OFFERS)
def test_an_upgrade_offer_is_ignored(live: Target, offer: str) -> None:
    """A request with an offer is answered as one without; the connection is kept, and nothing is logged."""
    before = live.replica.log()
    whole = post(OFFERS[offer])
    chunked = post(OFFERS[offer], b"Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
    get = GET + OFFERS[offer] + b"\r\n"

    replies = exchange(live.port, whole, whole, chunked, get, post(b""), whole)

    assert answers(replies) == [(200, 3), (200, 3), (200, 3), (200, 0), (200, 3), (200, 3)]
    assert not any(reply.header("connection") or reply.header("upgrade") for reply in replies)
    assert live.replica.log() == before


@pytest.mark.parametrize("offer", OFFERS)
def test_a_request_with_an_offer_may_arrive_in_pieces(live: Target, offer: str) -> None:
    """Requests cut anywhere, sent byte by byte, or several at once get one answer each, in their order."""
    whole = post(OFFERS[offer])
    head = whole.index(b"\r\n\r\n") + 4
    get = GET + OFFERS[offer] + b"\r\n"

    for cut in (1, 40, head - 1, head, head + 1, len(whole) - 1):
        assert answers(in_pieces(live, whole[:cut], whole[cut:])) == [(200, 3)], cut
    assert answers(in_pieces(live, *(bytes([byte]) for byte in whole))) == [(200, 3)]
    pipelined = exchange(live.port, whole + get + post(b"") + get + whole)
    assert answers(pipelined) == [(200, 3), (200, 0), (200, 3), (200, 0), (200, 3)]


def in_pieces(live: Target, *pieces: bytes) -> list[Reply]:
    """The replies to pieces sent one by one; another request in between ensures that each piece has been read."""
    return exchange(live.port, *pieces, between=lambda: live.replica.client.get("/livez"))


@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_hides_no_request(live: Target, offer: str) -> None:
    """A body that looks like a request is read as a body, also after an offer of another protocol."""
    hidden = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-ID: smuggled\r\n\r\n"
    length = b"Content-Length: %d\r\n" % len(hidden)
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden)
    for whole in (
        post(OFFERS[offer], length, hidden),
        post(OFFERS[offer], b"Transfer-Encoding: chunked\r\n", chunks),
        (GET + OFFERS[offer] + length + b"\r\n" + hidden),
    ):
        head = whole.index(b"\r\n\r\n") + 4
        status = 200 if whole.startswith(b"GET") else 400
        for replies in (exchange(live.port, whole), in_pieces(live, whole[:head], whole[head:])):
            assert [reply.status for reply in replies] == [status]
            assert replies[0].header("x-request-id") != "smuggled"


@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_excuses_no_broken_framing(live: Target, offer: str) -> None:
    """Two lengths, a length with chunks, and CONNECT are refused despite the offer, and the connection is closed."""
    for framing in (LENGTH + b"Content-Length: 0\r\n", LENGTH + b"Transfer-Encoding: chunked\r\n"):
        assert [reply.status for reply in exchange(live.port, post(OFFERS[offer], framing))] == [400]
    for where in (b"/livez", b"localhost:80"):
        tunnel = b"CONNECT %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (where, OFFERS[offer])
        assert [reply.status for reply in exchange(live.port, tunnel + GET + b"\r\n")] == [400]


@pytest.mark.parametrize("flag", ["--http2", "--http1.1", "--http1.0"])
def test_curl(live: Target, flag: str) -> None:
    """The program curl is answered with and without an offer, several times on one connection."""
    address = f"{live.replica.address}/v1/retrieve"
    command = [program("curl"), flag, "-sS", "--fail", "-H", "content-type: application/json", "-d", BODY.decode()]
    done = subprocess.run([*command, address, address, address], capture_output=True, check=False)

    assert done.returncode == 0, done.stderr
    answered = [json.loads(line + b"}}") for line in done.stdout.split(b"}}")[:-1]]
    assert [len(answer["candidates"]) for answer in answered] == [3, 3, 3]


ROUTES = ("/livez", "/readyz", "/v1/info", "/metrics", "/admin/v1/versions", "/docs", "/openapi.json", "/nowhere",
          "/static-offline-docs/swagger-ui.css", "/v1/retrieve")  # fmt: skip


def headers_of(answer: httpx.Response) -> dict[str, str]:
    """The headers of an answer, except those that differ from answer to answer."""
    return {name: value for name, value in answer.headers.items() if name not in {"x-request-id", "date"}}


@pytest.mark.parametrize("route", ROUTES)
def test_every_get_route_answers_head(live: Target, route: str) -> None:
    """HEAD gives the status and headers of GET but no body, so the next answer on the connection is read right."""
    client = live.replica.client
    by_get, by_head = client.get(route), client.head(route)
    raw = raw_head(live, route)

    assert by_head.status_code == by_get.status_code
    assert by_head.content == b""
    if route != "/metrics":  # its length grows with what is counted
        assert headers_of(by_head) == headers_of(by_get)
        assert raw.header("content-length") == by_get.headers["content-length"]


def raw_head(live: Target, route: str) -> Reply:
    """The answer to HEAD, with another request behind it on the same connection, so that a body would be noticed."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        token = ADMIN["Authorization"].encode()
        request = b"HEAD %b HTTP/1.1\r\nHost: x\r\nAuthorization: %b\r\n\r\n" % (route.encode(), token)
        connection.sendall(request + GET + b"\r\n")
        answer = bytearray()
        while not answer.endswith(b'{"status":"ok"}'):
            answer += connection.recv(65536)
    head, behind, _ = bytes(answer).split(b"\r\n\r\n")
    assert behind.startswith(b"HTTP/1.1 200 OK\r\n")
    return Reply(int(head[9:12]), head, b"", 0.0)


def test_head_while_not_ready(tmp_path: Path) -> None:
    """HEAD answers 503, as GET does; the OpenAPI does not list HEAD, and a 405 allows HEAD wherever it allows GET."""
    with TestClient(make_app(FolderStore(str(tmp_path)))) as client:
        assert (client.head("/readyz").status_code, client.head("/livez").status_code) == (503, 200)
        assert not any("head" in operations for operations in client.get("/openapi.json").json()["paths"].values())
        assert client.delete("/livez").headers["allow"] == "GET, HEAD"
        assert client.head("/v1/retrieve").headers["allow"] == "POST"


def test_wget_spider(live: Target, tmp_path: Path) -> None:
    """`wget --spider`, which monitors use, succeeds at the service and through the proxy."""
    with proxied(tmp_path, [live.port]) as front:
        for port in (live.port, front):
            for route in ("/livez", "/readyz", "/v1/info", "/docs"):
                command = [program("wget"), "--spider", "--no-verbose", "--tries=1", f"http://127.0.0.1:{port}{route}"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
