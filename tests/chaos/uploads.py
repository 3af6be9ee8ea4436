"""A client program that sends bodies of 60 MB, all at once; prints one line of JSON, how many got which status.

Half of the bodies have a Content-Length, half are chunked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections import Counter


async def upload(port: int, *, chunked: bool) -> str:
    """Send 60 MB, or as much as the server takes. Returns the status of the answer, "cut off" if there is none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {60 * 2**20}"
    writer.write(
        f"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{length}\r\n\r\n".encode()
    )
    piece = b" " * 65536
    answer = asyncio.create_task(reader.readline())
    with contextlib.suppress(ConnectionError):
        for _ in range(60 * 16):
            if answer.done():
                break
            writer.write(b"10000\r\n" + piece + b"\r\n" if chunked else piece)
            await writer.drain()
            await asyncio.sleep(0)
    try:
        return (await answer).split()[1].decode()
    except (ConnectionError, IndexError):
        return "cut off"
    finally:
        writer.transport.abort()


async def main(port: int, count: int) -> Counter[str]:
    """Send `count` bodies at once. Returns how many got which status."""
    return Counter(await asyncio.gather(*(upload(port, chunked=number % 2 == 0) for number in range(count))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("count", type=int)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(main(options.port, options.count))))
