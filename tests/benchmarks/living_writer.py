"""Appends records to the log of a store at a fixed rate, until it is terminated: python -m ... URL ITEMS."""

from __future__ import annotations

import sys
import time
from itertools import count

from index_store.log import Draft
from index_store.store import open_store
from retrieval.changes import to_json
from retrieval.searcher import Searcher
from tests.benchmarks.bench_living import GROUP, OVERLAY, WRITES, puts


def main() -> None:
    """Put the same new items again and again, so that the overlay does not grow."""
    store, items = open_store(sys.argv[1]), int(sys.argv[2])
    searcher = Searcher.open(store.load(str(store.current())))
    changes = [to_json(put) for put in puts(searcher, 2 * items, int(OVERLAY * items))]
    print("begun", flush=True)
    producer, start = str(time.time_ns()), time.perf_counter()
    for number in count():
        group = range(number * GROUP, (number + 1) * GROUP)
        store.append([Draft(producer, 1 + each, [changes[each % len(changes)]]) for each in group])
        time.sleep(max(0.0, start + (number + 1) * GROUP / WRITES - time.perf_counter()))


if __name__ == "__main__":
    main()
