"""Stop a command in the same way on Ctrl-C, on SIGTERM, and when its terminal is closed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # signals that ask a process to stop


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at the first signal of STOP_SIGNALS; a second signal ends the process at once.

    Yields a list that receives the signal's number, even if another exception replaces KeyboardInterrupt. An ignored
    signal, such as SIGHUP under nohup, stays ignored.
    """
    received: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, _: FrameType | None) -> None:
        received.append(number)
        for stop_signal in before:
            signal.signal(stop_signal, signal.SIG_DFL)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
        before = {n: signal.getsignal(n) for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
    for stop_signal in before:
        signal.signal(stop_signal, stop)
    try:
        yield received
    finally:
        for stop_signal, handler in before.items():
            signal.signal(stop_signal, handler)


def tell(text: str) -> None:
    """Print a line on stderr. Ignore write errors, because the terminal or the reader of the pipe may be gone."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # so that flushing the buffer at exit succeeds
