"""Predicts how long a version's searches take. So a request's beam can be narrowed to meet the deadline."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable

#: The share of the time left that a search may take; the rest is for writing the answer and for wrong predictions.
SHARE = 0.8
#: The prediction is multiplied by RISE after a search that took longer than predicted, and divided by FALL after any
#: other search. So in the long run one search in ten takes longer than predicted.
RISE, FALL = 1.09, 1.01


class Pace:
    """Predicts how many seconds a search takes.

    A search takes a fixed time, a time for each query, and a time for each path of a query. All three are measured when
    the version is loaded. Their sum is multiplied by a factor that follows the searches, because the machine may be
    busy.
    """

    def __init__(self, per_search: float, per_query: float, per_path: float) -> None:
        self._per_search, self._per_query, self._per_path = per_search, per_query, per_path
        self._factor = 1.0

    @classmethod
    def measured(cls, search: Callable[[int, int], object], beam: int) -> Pace:
        """Measure searches of 1 and 8 queries with `beam` paths, and of 8 queries with 1 path.

        search: called with the number of queries and the beam.
        """

        def seconds(queries: int, width: int) -> float:
            return min(timeit.repeat(lambda: search(queries, width), timer=time.perf_counter, number=1, repeat=3))

        single, eight, narrow = seconds(1, beam), seconds(8, beam), seconds(8, 1)
        per_path = max(0.0, eight - narrow) / (8 * max(1, beam - 1))
        together = max(0.0, eight - single) / 7  # seconds that one more query takes
        return cls(max(0.0, single - together), max(0.0, together - per_path * beam), per_path)

    def seconds(self, queries: int, beam: int) -> float:
        """The predicted seconds of one search of `queries` queries with `beam` paths each."""
        return self._factor * (self._per_search + queries * (self._per_query + self._per_path * beam))

    def affordable(self, queries: int, beam: int, left: float) -> int:
        """`beam`, halved until the search is predicted to take at most SHARE of the `left` seconds; at least 1."""
        while beam > 1 and self.seconds(queries, beam) > SHARE * left:
            beam //= 2
        return beam

    def learn(self, queries: int, beam: int, seconds: float) -> None:
        """Adjust the factor to a search that took `seconds`."""
        self._factor *= RISE if seconds > self.seconds(queries, beam) else 1 / FALL
