"""How long a version's searches take, so that one is narrowed rather than late."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable

#: Of the time that is left, what a search may take; the rest is for writing the answer and for being wrong.
SHARE = 0.8
#: What is predicted rises by RISE after a search that took longer, and falls by FALL after one that did not: so it
#: settles where one search in ten takes longer.
RISE, FALL = 1.09, 1.01


class Pace:
    """Predicts the seconds of a search: so much for itself, for each query, and for each path of a query, as measured
    when the version was loaded; times a factor that follows what searches take since, on a machine that may be busy.
    """

    def __init__(self, per_search: float, per_query: float, per_path: float) -> None:
        self._per_search, self._per_query, self._per_path = per_search, per_query, per_path
        self._factor = 1.0

    @classmethod
    def measured(cls, search: Callable[[int, int], object], beam: int) -> Pace:
        """From searches of one query and of eight, of one path and of `beam`. search: called with both numbers."""

        def seconds(queries: int, width: int) -> float:
            return min(timeit.repeat(lambda: search(queries, width), timer=time.perf_counter, number=1, repeat=3))

        one, eight, narrow = seconds(1, beam), seconds(8, beam), seconds(8, 1)
        per_path = max(0.0, eight - narrow) / (8 * max(1, beam - 1))
        together = max(0.0, eight - one) / 7  # what one query more takes
        return cls(max(0.0, one - together), max(0.0, together - per_path * beam), per_path)

    def seconds(self, queries: int, beam: int) -> float:
        """What so many queries searched together probably take."""
        return self._factor * (self._per_search + queries * (self._per_query + self._per_path * beam))

    def affordable(self, queries: int, beam: int, left: float) -> int:
        """The widest beam of `beam`, a half, a quarter and so on, at least 1, with which they are done in `left` s."""
        while beam > 1 and self.seconds(queries, beam) > SHARE * left:
            beam //= 2
        return beam

    def learn(self, queries: int, beam: int, seconds: float) -> None:
        """A search that took so long."""
        self._factor *= RISE if seconds > self.seconds(queries, beam) else 1 / FALL
