"""Progress for people: bars on a terminal, plain lines elsewhere. Always on stderr."""

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

#: Called with how much more of the task is done.
Advance = Callable[[int], None]
LINE_SECONDS = 10.0  # between two lines of one task, where there is no terminal


class Progress(Protocol):
    """What the trainer tells while it works."""

    def say(self, text: str) -> None:
        """One line that stays."""

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Something that takes a while: `total` units, advanced as they are done."""


class TerminalProgress:
    """Bars that disappear when their task is done."""

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
    """Lines, for logs and pipes: at most one a task every ten seconds."""

    def say(self, text: str) -> None:
        tell(text)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        done, told = 0, time.monotonic()

        def advance(more: int) -> None:
            nonlocal done, told
            done += more
            if time.monotonic() - told > LINE_SECONDS:
                told = time.monotonic()
                self.say(f"{name}: {done} of {total}")

        yield advance


class SilentProgress:
    """Nothing, for tests and for callers with their own."""

    def say(self, text: str) -> None:
        pass

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:  # noqa: ARG002 -- the protocol's
        yield lambda _: None


def counted(number: int, noun: str) -> str:
    """1 seed, 2 seeds."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def choose_progress() -> Progress:
    """Bars if stderr is a terminal, else lines."""
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress()
