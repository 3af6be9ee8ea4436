"""Ctrl-C, a polite kill and a terminal that is closed: all stop a command in the same way."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at the first polite signal; a second one ends the process at once.

    Yields a list that receives the signal's number, even if the exception is replaced on its way. A signal that is
    ignored, as SIGHUP is under nohup, stays ignored.
    """
    received: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, _: FrameType | None) -> None:
        received.append(number)
        for polite in before:
            signal.signal(polite, signal.SIG_DFL)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():  # no other may
        before = {n: signal.getsignal(n) for n in POLITE if signal.getsignal(n) is not signal.SIG_IGN}
    for polite in before:
        signal.signal(polite, stop)
    try:
        yield received
    finally:
        for polite, handler in before.items():
            signal.signal(polite, handler)


def tell(text: str) -> None:
    """One line on stderr, if it can be written: the terminal may be closed, and whoever read the pipe gone."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # for what is left in its buffer
