"""A client program that sends far more requests than the service can answer; prints one line of JSON.

Times are measured from the moment at which a request was due. `lag_ms` is how late the client itself sent its requests:
unless that is small, the other figures mean nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from tests.http_client import Connection, Pool, Reply, at_rate, get, post

CONNECTIONS = 1000


async def flood(port: int, requests: list[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Send `rate` requests a second, each on a free connection; at most CONNECTIONS are opened."""
    loop = asyncio.get_running_loop()
    free: deque[Connection] = deque()
    statuses: Counter[str] = Counter()
    took: dict[str, list[float]] = {"answered": [], "refused": []}
    lags: list[float] = []
    unexplained = under_way = opened = 0
    done = loop.create_future()

    def finish(answer: asyncio.Future[Reply], connection: Connection, due: float) -> None:
        nonlocal unexplained, under_way, opened
        under_way -= 1
        if answer.exception():
            statuses[type(answer.exception()).__name__] += 1
        else:
            reply = answer.result()
            statuses[str(reply.status)] += 1
            kind = "answered" if reply.status == 200 else "refused" if reply.status in {429, 503} else None
            if kind:
                took[kind].append(loop.time() - due)
            unexplained += kind == "refused" and b"retry-after" not in reply.head.lower()
        if connection.open:
            free.append(connection)
        else:
            opened -= 1
        if number == total and not under_way:
            done.set_result(None)

    total, number = int(rate * seconds), 0
    start = loop.time()
    while number < total:
        due = start + number / rate
        if (wait := due - loop.time()) > 0:
            await asyncio.sleep(wait if wait > 0.002 else 0)
            continue
        while free and not free[-1].open:
            free.pop()
            opened -= 1
        if free:
            connection = free.pop()
        elif opened < CONNECTIONS:
            opened += 1
            connection = (await loop.create_connection(Connection, "127.0.0.1", port))[1]
        else:
            await asyncio.sleep(0)
            continue
        lags.append(loop.time() - due)
        under_way += 1
        number += 1
        answer = connection.send(requests[number % len(requests)])
        answer.add_done_callback(lambda answer, c=connection, at=due: finish(answer, c, at))  # type: ignore[misc]
        if number % 64 == 0:
            await asyncio.sleep(0)
    await done
    return {
        "seconds": loop.time() - start,
        "statuses": dict(sorted(statuses.items())),
        "unexplained": unexplained,
        "lag_ms": _p99(lags),
        **{f"{kind}_ms": _p99(seconds) for kind, seconds in took.items()},
    }


def _p99(seconds: list[float]) -> float:
    return 1000 * float(np.percentile(seconds, 99)) if seconds else 0.0


async def main(options: argparse.Namespace) -> dict[str, Any]:
    """Flood the service, and meanwhile ask /livez five times a second."""
    requests = [post("/v1/retrieve", body) for body in json.loads(options.bodies.read_text())]
    health = asyncio.create_task(at_rate(5, options.seconds, [get("/livez")], Pool(options.health)))
    figures = await flood(options.port, requests, options.rate, options.seconds)
    alive = [reply.seconds for reply in await health if isinstance(reply, Reply) and reply.status == 200]
    return figures | {"alive": len(alive), "alive_ms": _p99(alive)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("health", type=int, help="port that is asked for /livez")
    parser.add_argument("bodies", type=Path, help="a JSON list of requests")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    print(json.dumps(uvloop.run(main(parser.parse_args()))))
