"""Handles SIGTERM: /readyz fails at once, so that a proxy chooses other replicas. Later the server stops.

SIGHUP, which is sent when the terminal is closed, is handled in the same way, unless SIGHUP is ignored (nohup).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class Draining:
    """begun: this process will end soon. It is not ready and keeps no connection open, but answers new requests."""

    def __init__(self) -> None:
        self.begun = False

    @contextmanager
    def on_signals(self, seconds: float) -> Iterator[None]:
        """In this context, a signal begins draining and stops the HTTP server after `seconds`.

        A second signal stops the server at once. The server must have installed its own SIGTERM handler before; uvicorn
        does so before the app starts.
        """
        stop = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(stop):
            yield  # there is no server to stop: a test
            return
        loop = asyncio.get_running_loop()
        caught = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]

        def end(*_: object) -> None:
            stop(signal.SIGTERM, None)

        def begin(*_: object) -> None:
            # A signal handler may interrupt any step of the program, also the logging of a line, so it must not log.
            self.begun = True
            for each in caught:
                signal.signal(each, end)
            loop.call_soon_threadsafe(drain)

        def drain() -> None:
            loop.call_later(seconds, end)
            log.info("draining for %g s", seconds)

        before = {each: signal.signal(each, begin) for each in caught}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
