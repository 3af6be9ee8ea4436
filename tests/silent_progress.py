"""Progress that prints nothing, and one that interrupts a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trainer.progress import Advance


class SilentProgress:
    """No output."""

    def say(self, text: str) -> None:
        """Drop the line."""

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Count nothing."""
        yield lambda _: None


class Interrupt(SilentProgress):
    """Raises KeyboardInterrupt when the line of an epoch is printed, as Ctrl-C would at that moment."""

    def __init__(self, epoch: int) -> None:
        self._wanted = f"epoch {epoch}:"

    def say(self, text: str) -> None:
        if text.startswith(self._wanted):
            raise KeyboardInterrupt
