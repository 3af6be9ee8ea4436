"""Draining after SIGTERM, which may come at any moment."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from service.process.draining import Draining

log = logging.getLogger("tests.draining")


class Stream(logging.Handler):
    """A handler that, like a stream, must not be called while it writes. SIGTERM comes in the middle of a line."""

    lines = 0
    writing = False

    def emit(self, _: logging.LogRecord) -> None:
        """Write a line."""
        if self.writing:
            raise RuntimeError("reentrant call")
        self.writing = True
        self.lines += 1
        if self.lines == 1:
            signal.raise_signal(signal.SIGTERM)
        self.writing = False


@pytest.fixture
def stream() -> Iterator[Stream]:
    """The handler, attached to the loggers of this test and of draining."""
    handler, loggers = Stream(), [log, logging.getLogger("service.process.draining")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def test_sigterm_may_come_while_a_line_is_logged(stream: Stream) -> None:
    """Draining begins at once and the server stops afterwards; draining logs a line of its own."""

    async def serve() -> None:
        stopped = asyncio.Event()

        def stop(_: int, __: FrameType | None) -> None:
            stopped.set()

        before = signal.signal(signal.SIGTERM, stop)
        try:
            draining = Draining()
            with draining.on_signals(0):
                log.info("interrupted")
                assert draining.begun
                assert not stopped.is_set()
                await asyncio.wait_for(stopped.wait(), 30)
        finally:
            signal.signal(signal.SIGTERM, before)

    asyncio.run(serve())

    assert stream.lines == 2
