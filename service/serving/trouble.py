"""A failure that repeats is logged once."""

from __future__ import annotations

import logging


class Trouble:
    """Something that is tried again and again. It is logged when it fails, and again only when it fails otherwise."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._last: str | None = None

    def failed(self, text: str) -> None:
        """Log `text`, unless it is what was logged last."""
        if text != self._last:
            self._log.error("%s", text)
        self._last = text

    def over(self) -> None:
        """It has succeeded."""
        self._last = None
