"""The living catalogue: what a put takes until it is found, what writes cost searches, and what a fold takes.

Puts are measured over HTTP. Searches are measured in one process, because a client that writes would take a core from
the client that measures: in turns without writes, and while another thread applies records as a replica does.

python -m tests.benchmarks.bench_living [--items 1500000] [--searches 5000]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import threadpoolctl

from index_store.log import START, Draft, Record, chained, encode
from index_store.store import open_store
from retrieval.changes import Change, Placement, Put, Similar, to_json
from retrieval.fold import fold
from retrieval.searcher import Searcher
from tests.benchmarks.bench_retrieval import our_queries
from tests.benchmarks.bench_service import BIN, serving
from tests.benchmarks.catalogue import CONFIG, make_catalogue
from tests.benchmarks.measure import report

RECORDS = 100_000  # new items of the fold
SERVED = 100_000  # items of the catalogue that is served over HTTP
WRITES = 1000  # records a second beside the searches
GROUP = 50  # records applied at once: a replica looks at the log every 50 ms
WRITTEN = 60_000  # records that are there for each round
OVERLAY = 0.05  # new items before the searches are measured, as a share of the catalogue
PUTS = 400  # whose answers are measured
TOKEN = "w"
ROUNDS = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_500_000, help="V of the fold; default 1.5 million")
    parser.add_argument("--searches", type=int, default=5000, help="of each round; default 5000")
    options = parser.parse_args()
    print_figures(bench(options.items, RECORDS, SERVED, options.searches, ROUNDS))


def bench(items: int, records: int, served: int, searches: int, rounds: int) -> dict[str, Any]:
    """The figures."""
    figures = {"items": items, "records": records, "served": served}
    return figures | puts_over_http(served) | searched(served, searches, rounds) | folded(items, records)


def folded(items: int, count: int) -> dict[str, Any]:
    """Records applied to a version, and their fold, in this process."""
    catalogue = make_catalogue(items, min(CONFIG.resolve_width(items) ** 3, 2 * items // 3), 100)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        version = store.load(store.publish(catalogue.version))
        del catalogue
        records = log_of(Searcher.open(version), items, count)
        searcher = Searcher.open(version, count)
        started = time.perf_counter()
        for start in range(0, count, 1000):
            searcher.apply(records[start : start + 1000])
        applied = time.perf_counter() - started
        started = time.perf_counter()
        made = fold(version, records)
        middle = time.perf_counter()
        store.publish(made)
        ended = time.perf_counter()
    return {
        "applied_per_second": count / applied,
        "fold_seconds": middle - started,
        "publish_seconds": ended - middle,
    }


def log_of(searcher: Searcher, first: int, count: int, again: int = 0) -> list[Record]:
    """Records of one new item each, with the ids first, first + 1, ..., on random paths, with 16 similar items.

    again: so many more records, which put the same items again.
    """
    place, texts = START, []
    changes = [to_json(put) for put in puts(searcher, first, count)]
    for number in range(count + again):
        place, text = encode(Draft("bench", 1 + number, [changes[number % count]]), place, 0)
        texts.append(text)
    return chained(texts, START)


def puts(searcher: Searcher, first: int, count: int) -> Iterator[Change]:
    """Puts as the service writes them."""
    rng, index = np.random.default_rng(1), searcher.structure.index
    ids = searcher.vocabulary.names(np.arange(index.items))
    paths = index.path_ids[rng.integers(len(index.path_ids), size=(count, CONFIG.paths_per_item))].tolist()
    similar = rng.integers(len(ids), size=(count, 2, 8)).tolist()
    vectors = rng.normal(size=(count, CONFIG.embedding)).astype(np.float16)
    for item in range(count):
        near, follows = (Similar([ids[other] for other in others], [0.1] * 8) for others in similar[item])
        placement = Placement(vectors[item], -1.0, paths[item], "clicks", searcher.network, near, follows)
        yield Put(first + item, placement)


def puts_over_http(items: int) -> dict[str, Any]:
    """Puts on a folder with two replicas."""
    catalogue = make_catalogue(items, min(CONFIG.resolve_width(items) ** 3, 2 * items // 3), 10)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = open_store(str(folder / "store"))
        store.activate(store.publish(catalogue.version))
        environment = {"DR_STORE": str(folder / "store"), "DR_WRITE_TOKEN": TOKEN, "DR_TIMEOUT_MS": "10000"}
        ports = [stack.enter_context(serving([str(BIN / "dr-service")], environment)) for _ in range(2)]
        return put_until_found(ports, items)


def searched(items: int, searches: int, rounds: int) -> dict[str, Any]:
    """Searches one after another in this process, of all items and as many new ones as OVERLAY says."""
    catalogue = make_catalogue(items, min(CONFIG.resolve_width(items) ** 3, 2 * items // 3), 500)
    new = int(OVERLAY * items)
    searcher = Searcher.open(catalogue.version, 2 * new)
    records = log_of(searcher, items, new, rounds * WRITTEN)
    searcher.apply(records[:new])
    queries, later = our_queries(catalogue), iter(records[new:])

    def write(over: threading.Event) -> None:
        """Apply GROUP records at a time, WRITES a second."""
        start = time.perf_counter()
        for number in itertools.count(1):
            searcher.apply(list(itertools.islice(later, GROUP)))
            if over.wait(max(0.0, start + number * GROUP / WRITES - time.perf_counter())):
                return

    took: dict[str, list[float]] = {"quiet": [], "writing": []}
    with threadpoolctl.threadpool_limits(1):
        for turn in range(rounds):
            for name, seconds in took.items():
                over = threading.Event()
                writer = threading.Thread(target=write, args=(over,))
                if name == "writing":
                    writer.start()
                for number in range(searches):
                    started = time.perf_counter()
                    searcher.answer([queries[(turn * searches + number) % len(queries)]])
                    seconds.append(time.perf_counter() - started)
                over.set()
                if name == "writing":
                    writer.join()
    return {name: _percentiles(seconds) for name, seconds in took.items()}


def put_until_found(ports: Sequence[int], items: int) -> dict[str, Any]:
    """Milliseconds of puts one after another: until the answer, from there to a search that finds the item on the same
    replica, and to one on the other replica, which is asked again and again.
    """
    took: dict[str, list[float]] = {"put": [], "same_replica": [], "other_replica": []}
    with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        for item in range(items, items + PUTS):
            liked = item % items
            started = time.perf_counter()
            put = {"items": [{"item_id": item, "like": [liked]}]}
            client.post(f"http://127.0.0.1:{ports[0]}/v1/items", json=put).raise_for_status()
            took["put"].append(time.perf_counter() - started)
            for name, port in zip(("same_replica", "other_replica"), ports, strict=True):
                started = time.perf_counter()
                while not _finds(client, port, liked, item):
                    if name == "same_replica" or time.perf_counter() > started + 10:
                        raise RuntimeError(f"item {item} is not found by replica {port}")
                took[name].append(time.perf_counter() - started)
    return {name: _percentiles(values) for name, values in took.items()}


def _finds(client: httpx.Client, port: int, liked: int, item: int) -> bool:
    answer = client.post(f"http://127.0.0.1:{port}/v1/retrieve", json={"history": [liked], "k": 1000, "beam": 256})
    return item in {candidate["item_id"] for candidate in answer.raise_for_status().json()["candidates"]}


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = (1000 * np.percentile(seconds, [50, 99])).tolist()
    return {"p50_ms": p50, "p99_ms": p99}


def print_figures(figures: dict[str, Any]) -> None:
    """Print a table, then the JSON."""
    rows = ("put", "same_replica", "other_replica", "quiet", "writing")
    served = (
        f"puts over HTTP, searches in process; {figures['served']:,} items and {OVERLAY:.0%} new ones beside them; "
    )
    served += f"{WRITES} writes a second"
    applied = f"{figures['items']:,} items, {figures['records']:,} records of one new item: "
    applied += f"{figures['applied_per_second']:,.0f} applied a second; "
    applied += f"fold {figures['fold_seconds']:.1f} s, publish {figures['publish_seconds']:.1f} s"
    lines = [
        served,
        "",
        f"{'':20}{'p50 ms':>9}{'p99 ms':>9}",
        *(f"{name:20}{figures[name]['p50_ms']:9.2f}{figures[name]['p99_ms']:9.2f}" for name in rows),
        "",
        applied,
    ]
    report("living", lines, figures)


if __name__ == "__main__":
    main()
