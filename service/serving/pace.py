"""How long a version's searches take: what decides whether a request's beam is narrowed to meet its deadline."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable

#: The share of the time left that a search may take; the rest is for writing the answer, and for a wrong prediction.
SHARE = 0.8
#: The prediction rises by RISE after a search that took longer, and falls by FALL after one that did not. So it settles
#: where one search in ten takes longer.
RISE, FALL = 1.09, 1.01


class Pace:
    """Predicts how many seconds a search takes.

    A search costs a fixed time, a time for each query, and a time for each path of a query, all measured when the
    version was loaded. Their sum is multiplied by a factor that follows the searches since then, because the machine
    may be busy.
    """

    def __init__(self, per_search: float, per_query: float, per_path: float) -> None:
        self._per_search, self._per_query, self._per_path = per_search, per_query, per_path
        self._factor = 1.0

    @classmethod
    def measured(cls, search: Callable[[int, int], object], beam: int) -> Pace:
        """Measure searches of 1 and of 8 queries, with 1 path and with `beam`. search: called with queries and beam."""

        def seconds(queries: int, width: int) -> float:
            return min(timeit.repeat(lambda: search(queries, width), timer=time.perf_counter, number=1, repeat=3))

        single, eight, narrow = seconds(1, beam), seconds(8, beam), seconds(8, 1)
        per_path = max(0.0, eight - narrow) / (8 * max(1, beam - 1))
        together = max(0.0, eight - single) / 7  # seconds of one more query
        return cls(max(0.0, single - together), max(0.0, together - per_path * beam), per_path)

    def seconds(self, queries: int, beam: int) -> float:
        """The predicted seconds of a search of so many queries together."""
        return self._factor * (self._per_search + queries * (self._per_query + self._per_path * beam))

    def affordable(self, queries: int, beam: int, left: float) -> int:
        """`beam`, halved until the search is predicted to take at most SHARE of the `left` seconds; at least 1."""
        while beam > 1 and self.seconds(queries, beam) > SHARE * left:
            beam //= 2
        return beam

    def learn(self, queries: int, beam: int, seconds: float) -> None:
        """Adjust the factor to a search that took so many seconds."""
        self._factor *= RISE if seconds > self.seconds(queries, beam) else 1 / FALL
