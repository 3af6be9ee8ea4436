"""A client that asks as fast as a server answers, or at a fixed rate, over plain sockets so that it costs little.

Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import deque
from pathlib import Path

import numpy as np
import uvloop

from tests.http_client import Connection, post

WARM_UP = 1.0  # seconds before answers are counted; fewer if the measurement is shorter


async def closed_loop(connections: list[Connection], requests: list[bytes], seconds: float) -> dict[str, float]:
    """Answers a second when each connection asks again as soon as it is answered."""
    begin = time.perf_counter() + min(WARM_UP, seconds)
    end = begin + seconds
    answered = failed = 0

    async def keep_asking(connection: Connection, number: int) -> None:
        nonlocal answered, failed
        while time.perf_counter() < end:
            fine = (await connection.ask(requests[number % len(requests)])).status == 200
            number += len(connections)
            answered += fine and begin <= time.perf_counter() < end
            failed += not fine

    await asyncio.gather(*(keep_asking(connection, i) for i, connection in enumerate(connections)))
    return {"per_second": answered / seconds, "failed": failed}


async def open_loop(
    connections: list[Connection], requests: list[bytes], seconds: float, rate: float
) -> dict[str, float]:
    """Milliseconds from the moment at which a request was due, so that waiting for a free connection counts."""
    free, waiting = deque(connections), asyncio.Semaphore(len(connections))
    took: list[float] = []
    failed = 0
    start = time.perf_counter()
    counted = start + min(WARM_UP, seconds)

    async def ask(number: int, due: float) -> None:
        nonlocal failed
        async with waiting:
            connection = free.popleft()
            fine = (await connection.ask(requests[number % len(requests)])).status == 200
            free.append(connection)
        failed += not fine
        if due >= counted:
            took.append(1000 * (time.perf_counter() - due))

    tasks = []
    for number in range(int(rate * (counted - start + seconds))):
        due = start + number / rate
        while (wait := due - time.perf_counter()) > 0:  # timers are precise to a millisecond
            await asyncio.sleep(wait - 0.001 if wait > 0.002 else 0)
        tasks.append(asyncio.ensure_future(ask(number, due)))
    await asyncio.gather(*tasks)
    p50, p99 = np.percentile(took, [50, 99]).tolist()
    return {"p50_ms": p50, "p99_ms": p99, "failed": failed}


async def main(options: argparse.Namespace) -> dict[str, float]:
    """The figures of one run."""
    requests = [post("/v1/retrieve", body) for body in json.loads(options.bodies.read_text())]
    loop = asyncio.get_running_loop()
    port, count = options.port, options.connections
    connections = [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(count)]
    if options.rate:
        return await open_loop(connections, requests, options.seconds, options.rate)
    return await closed_loop(connections, requests, options.seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("bodies", type=Path, help="a JSON list of requests")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--rate", type=float, default=0, help="requests a second; else as fast as they are answered")
    print(json.dumps(uvloop.run(main(parser.parse_args()))))
