"""Clients of the shipped proxy that stop sending, or send byte by byte."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from index_store.store import open_store
from tests.chaos.conftest import FULL, Goal, amount
from tests.chaos.traffic import BODIES
from tests.conftest import Planted
from tests.fleet import fleet
from tests.http_client import Pool, Reply, at_rate, post
from tests.proxy import proxied
from tests.wire import target

HALF_OPEN, DRIPPING = amount(500), amount(50)
CUT_SECONDS = 10.0
RATE = 100
HALF_A_BODY = b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nX-Request-ID: slow\r\nContent-Length: 400\r\n\r\n{"
#: All that a client sends before it stalls: nothing, half a line, an unfinished head, half a body, half a chunk.
BEGINNINGS = [
    b"",
    b"POST /v1/retrieve HT",
    b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\n",
    HALF_A_BODY,
    b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
]


def test_slow_clients(goal: Goal, planted: Planted, tmp_path: Path) -> None:
    """Promise: slow clients.

    Slow clients hold connections to the proxy and are cut off; other requests are not slower meanwhile.
    """
    store = open_store(str(tmp_path / "store"))
    store.activate(store.publish(planted.version))
    bodies = [post("/v1/retrieve", body) for body in BODIES]
    with (
        fleet(tmp_path, str(tmp_path / "store"), count=1, timeout_ms=10_000) as (replica,),
        proxied(tmp_path, [replica.port]) as port,
    ):
        quiet = asyncio.run(_others(port, bodies))
        with subprocess.Popen([sys.executable, "-m", __name__, str(port)], stdout=subprocess.PIPE, text=True) as slow:
            assert slow.stdout
            assert slow.stdout.readline() == "all connected\n"
            busy = asyncio.run(_others(port, bodies))
            cut = json.loads(slow.communicate(timeout=60)[0])

    clients = HALF_OPEN + DRIPPING
    goal(
        f"{HALF_OPEN} half-open and {DRIPPING} dripping clients through the proxy: other requests not answered 200",
        quiet.count(None) + busy.count(None),
        reached=None not in quiet + busy,
    )
    before, meanwhile = (1000 * float(np.percentile([s for s in seconds if s], 99)) for seconds in (quiet, busy))
    goal(
        "p99 of other requests at most 1.5 times that without slow clients, or 2 ms more",
        f"{meanwhile:.1f} ms, {before:.1f}",
        reached=meanwhile <= max(1.5 * before, before + 2),
        timing=True,
    )
    goal(
        f"all {clients} slow clients are cut off; the last within {CUT_SECONDS:.0f} s",
        f"{len(cut)}, {max(cut):.1f} s",
        reached=len(cut) == clients and (max(cut) <= CUT_SECONDS or not FULL),
    )


def test_a_refused_body_is_not_waited_for(planted: Planted, tmp_path: Path) -> None:
    """Promise: slow clients. A client that stops in the middle of a body that is too large gets 413 and is cut off."""
    head = b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1048577\r\n\r\n"
    with target(planted, tmp_path) as live, proxied(tmp_path, [live.port]) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=CUT_SECONDS) as connection:
            connection.sendall(head + b" " * 65_536)
            answer = b""
            while part := connection.recv(65_536):
                answer += part
        assert answer.startswith(b"HTTP/1.1 413 ")
        live.check_unharmed()


async def _others(port: int, bodies: list[bytes]) -> list[float | None]:
    """Seconds to the answer of each ordinary request; None if it was not answered 200."""
    pool = Pool(port)
    replies = await at_rate(RATE, 5, bodies, pool)
    pool.close()
    return [reply.seconds if isinstance(reply, Reply) and reply.status == 200 else None for reply in replies]


async def _until_cut(port: int, number: int, all_connected: asyncio.Barrier) -> float:
    """Seconds until a client that never finishes its request is cut off."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(BEGINNINGS[number % len(BEGINNINGS)])
    begun = time.monotonic()
    await all_connected.wait()
    dripping = asyncio.ensure_future(_drip(writer)) if number < DRIPPING else None
    answer = b""
    with contextlib.suppress(OSError):
        while piece := await reader.read(65536):
            answer += piece
    if dripping:
        dripping.cancel()
    elif BEGINNINGS[number % len(BEGINNINGS)] == HALF_A_BODY:
        assert all(part in answer for part in (b"application/problem+json", b'"status":408', b'"request_id":"slow"')), (
            answer
        )
    writer.transport.abort()
    return time.monotonic() - begun


async def _drip(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while True:
            await asyncio.sleep(0.1)
            writer.write(b"a")


async def _slow(port: int) -> list[float]:
    clients = HALF_OPEN + DRIPPING
    all_connected = asyncio.Barrier(clients + 1)
    waiting = [asyncio.ensure_future(_until_cut(port, number, all_connected)) for number in range(clients)]
    await all_connected.wait()
    print("all connected", flush=True)
    return list(await asyncio.gather(*waiting))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Slow clients; prints a JSON list, the seconds until each was cut.")
    parser.add_argument("port", type=int)
    print(json.dumps(asyncio.run(_slow(parser.parse_args().port))))
