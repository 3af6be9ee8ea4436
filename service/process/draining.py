"""SIGTERM in three steps: not ready, so that a proxy sends requests elsewhere; then the socket closes; then exit."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


class Draining:
    """Whether this process is about to end. While it is, it is not ready, answers all the same, and keeps no
    connection open for the next request.
    """

    def __init__(self) -> None:
        self.begun = False

    @contextmanager
    def on_sigterm(self, seconds: float) -> Iterator[None]:
        """Within, SIGTERM begins draining and reaches the HTTP server `seconds` later; a second one does at once.

        The HTTP server's handler must be installed already, as it is while an app starts.
        """
        server = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(server):
            yield  # no server that could be told: a test
            return
        stop = server
        loop = asyncio.get_running_loop()

        def begin(number: int, _: FrameType | None) -> None:
            # Called between any two steps of the program: to log from here would fail while a line is being written.
            self.begun = True
            signal.signal(signal.SIGTERM, stop)
            loop.call_soon_threadsafe(drain, number)

        def drain(number: int) -> None:
            loop.call_later(seconds, stop, number, None)
            log.info("draining for %g s", seconds)

        signal.signal(signal.SIGTERM, begin)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, stop)
