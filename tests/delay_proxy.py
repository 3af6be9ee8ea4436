"""A TCP proxy that imitates a bad network: answers arrive late, byte by byte, cut off or not at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class DelayProxy:
    """Forwards bytes in both directions, those of the server `delay` seconds late.

    mode: what happens to the server's bytes: "reset" ends the connection in the middle of an answer, "mute" drops them,
    "drip" forwards them one by one.
    """

    def __init__(self, target: int) -> None:
        self.target, self.port, self.delay, self.mode = target, 0, 0.0, ""
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def cut(self) -> None:
        """Reset all connections."""
        assert self._loop

        def abort() -> None:
            for writer in self._writers:
                writer.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    async def serve(self, started: threading.Event, stopped: asyncio.Event) -> None:
        """Forward connections until `stopped` is set."""
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await stopped.wait()
        server.close()
        pumps = asyncio.all_tasks() - {asyncio.current_task()}
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            self._pump(reader, server_writer, late=False), self._pump(server_reader, writer, late=True)
        )

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, late: bool) -> None:
        with suppress(OSError):
            self._writers.add(writer)
            while data := await reader.read(65536):
                if late:
                    await asyncio.sleep(self.delay)
                if late and self.mode == "reset":
                    writer.write(data[: len(data) // 2])
                    writer.transport.abort()
                elif late and self.mode == "drip":
                    for byte in data:
                        writer.write(bytes([byte]))
                        await asyncio.sleep(0.01)
                elif not late or self.mode != "mute":
                    writer.write(data)
                await writer.drain()
        writer.close()
        self._writers.discard(writer)


@contextmanager
def delay_proxy(target: int) -> Iterator[DelayProxy]:
    """A proxy to a local port, in a thread of its own."""
    proxy, started = DelayProxy(target), threading.Event()
    loop, stopped = asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        loop.run_until_complete(proxy.serve(started, stopped))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
