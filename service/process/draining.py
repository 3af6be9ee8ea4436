"""SIGTERM in three steps: not ready, so that a proxy sends requests elsewhere; then the socket closes; then exit.

SIGHUP, which comes when the terminal is closed, likewise, unless it is ignored, as under nohup.
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
    """begun: this process will end soon. It is not ready and keeps no connection open, but answers what still comes."""

    def __init__(self) -> None:
        self.begun = False

    @contextmanager
    def on_signals(self, seconds: float) -> Iterator[None]:
        """Inside, a signal begins draining and stops the HTTP server `seconds` later; a second signal stops it at once.

        The HTTP server's own handler of SIGTERM must be installed already, as it is while an app starts.
        """
        stop = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(stop):
            yield  # no server that could be stopped: a test
            return
        loop = asyncio.get_running_loop()
        caught = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]

        def end(*_: object) -> None:
            stop(signal.SIGTERM, None)

        def begin(*_: object) -> None:
            # This runs between any two steps of the program, perhaps while a line is logged, so it must not log.
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
