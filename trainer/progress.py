"""Report progress on stderr: bars on a terminal, else plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from trainer.stopping import tell

#: Called with the number of units finished since the last call.
Advance = Callable[[int], None]
LINE_SECONDS = 10.0  # least time between two lines of a task, if stderr is not a terminal


class Progress(Protocol):
    """Messages and progress of the trainer while it works."""

    def say(self, text: str) -> None:
        """Print a line that stays visible."""

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Show the progress of a task of `total` units. Yields the function to call with newly finished units."""


class TerminalProgress:
    """Progress as bars that disappear when their task is finished."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self._console, transient=True) as bars:
            bar = bars.add_task(name, total=total)
            yield lambda done: bars.advance(bar, done)


class PlainProgress:
    """Progress as lines, for logs and pipes: at most one line per task every ten seconds."""

    def say(self, text: str) -> None:
        tell(text)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        done, last_line = 0, time.monotonic()

        def advance(more: int) -> None:
            nonlocal done, last_line
            done += more
            if time.monotonic() - last_line > LINE_SECONDS:
                last_line = time.monotonic()
                self.say(f"{name}: {done} of {total}")

        yield advance


def counted(number: int, noun: str) -> str:
    """The number with its noun: 1 seed, 2 seeds."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def choose_progress() -> Progress:
    """Bars if stderr is a terminal, else lines."""
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress()
