"""Logs a repeated failure once."""

from __future__ import annotations

import logging


class FailureLog:
    """Logs the failures of a repeated action, but not a failure with the same text as the failure before it."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._last: str | None = None

    def failed(self, text: str) -> None:
        """Log `text`, unless the previous failure had the same text."""
        if text != self._last:
            self._log.error("%s", text)
        self._last = text

    def over(self) -> None:
        """Record a success, so that the next failure is logged whatever its text is."""
        self._last = None
