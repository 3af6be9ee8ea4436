"""Logs a repeated failure once."""

from __future__ import annotations

import logging


class FailureLog:
    """Logs the failures of something that is tried again and again: the first, and then only a different one."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._last: str | None = None

    def failed(self, text: str) -> None:
        """Log `text`, unless the previous failure had the same text."""
        if text != self._last:
            self._log.error("%s", text)
        self._last = text

    def over(self) -> None:
        """The last try succeeded, so the next failure is logged again."""
        self._last = None
