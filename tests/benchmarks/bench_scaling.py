"""The same request over catalogues of 10 thousand to 10 million items, with path lists of equal length.

Each catalogue is loaded right after it is published, so its files are in the page cache. The bytes of paths are those
of the path lists and of the trie that is built when a version is opened.

python -m tests.benchmarks.bench_scaling [--largest 10000000]
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from index_store.store import open_store
from service.serving.retriever import Retriever
from tests.benchmarks.bench_retrieval import ask_ours, our_queries
from tests.benchmarks.catalogue import CONFIG, make_catalogue
from tests.benchmarks.measure import report, take_turns

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
LENGTH = 30  # items on a path: ten million items, on three paths each, fill the 100^3 paths
PATHS = ("path_ids.npy", "path_offsets.npy", "path_items.npy")
USERS = 100
ROUNDS = 7


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="leave out larger ones; default 10 million")
    largest = parser.parse_args().largest
    print_figures(bench([size for size in SIZES if size <= largest], USERS, ROUNDS))


def bench(sizes: list[int], users: int, rounds: int) -> dict[str, Any]:
    """The figures, one row for each size."""
    rows: list[dict[str, Any]] = []
    contenders: dict[str, Callable[[int], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        for size in sizes:
            catalogue = make_catalogue(size, size * CONFIG.paths_per_item // LENGTH, users * (rounds + 1))
            parts = catalogue.version.parts
            started = time.perf_counter()
            name = store.publish(catalogue.version)
            published = time.perf_counter() - started
            queries = our_queries(catalogue)
            rows.append(
                {
                    "items": size,
                    "publish_seconds": published,
                    "vector_bytes_per_item": len(parts["item_vectors.npy"]) / size,
                }
            )
            del catalogue, parts
            started = time.perf_counter()
            version = store.load(name)
            rows[-1]["load_seconds"] = time.perf_counter() - started
            started = time.perf_counter()
            retriever = Retriever(version)
            rows[-1]["open_seconds"] = time.perf_counter() - started
            path_bytes = sum(len(version.parts[part]) for part in PATHS) + retriever.searcher.structure.trie.nbytes
            rows[-1]["path_bytes_per_item"] = path_bytes / size
            contenders[str(size)] = functools.partial(ask_ours, retriever, queries)
        timed = take_turns(contenders, users, rounds)
        folder_bytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    smallest = timed[str(sizes[0])]["p50_ms"]
    for row in rows:
        p50 = timed[str(row["items"])]["p50_ms"]
        row.update(p50_ms=p50, times_smallest=p50 / smallest)
    return {"rows": rows, "items_per_path": LENGTH, "folder_bytes": folder_bytes}


def print_figures(figures: dict[str, Any]) -> None:
    """Print a table, then the JSON."""
    lines = [f"{figures['items_per_path']} items on each path; bytes and seconds of a version in a folder", ""]
    head = f"{'items':>12}{'p50 ms':>9}{'ratio':>7}{'paths B/item':>14}{'vectors':>9}"
    lines.append(f"{head}{'publish s':>11}{'load s':>8}{'open s':>8}")
    lines += [
        f"{row['items']:>12,}{row['p50_ms']:>9.3f}{row['times_smallest']:>7.2f}{row['path_bytes_per_item']:>14.1f}"
        f"{row['vector_bytes_per_item']:>9.1f}{row['publish_seconds']:>11.2f}{row['load_seconds']:>8.2f}"
        f"{row['open_seconds']:>8.2f}"
        for row in figures["rows"]
    ]
    report("scaling", lines, figures)


if __name__ == "__main__":
    main()
