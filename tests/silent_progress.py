"""Progress that prints nothing."""

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
