"""The living catalogue: what a put takes until it is found, what writes cost searches, and what a fold takes.

Over HTTP, the services have one core and the clients the other; in process, one thread. Searches are measured in turns:
without writes, and while a client appends records to the log.

python -m tests.benchmarks.bench_living [--items 1500000] [--seconds 10]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from index_store.log import START, Draft, Record, chained, encode
from index_store.store import open_store
from retrieval.changes import Change, Placement, Put, Similar, to_json
from retrieval.fold import fold
from retrieval.searcher import Searcher
from tests.benchmarks.bench_service import BIN, ROOT, load, on_core, serving
from tests.benchmarks.catalogue import CONFIG, Catalogue, make_catalogue
from tests.benchmarks.measure import report

RECORDS = 100_000  # new items of the fold
SERVED = 100_000  # items of the catalogue that is served over HTTP
WRITES = 1000  # records a second beside the searches
GROUP = 20  # records appended at once
OVERLAY = 0.05  # new items before the searches are measured, as a share of the catalogue
PUTS = 400  # whose answers are measured
TOKEN = "w"
ROUNDS = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_500_000, help="V of the fold; default 1.5 million")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement of searches; default 10")
    options = parser.parse_args()
    print_figures(bench(options.items, RECORDS, SERVED, options.seconds, ROUNDS))


def bench(items: int, records: int, served: int, seconds: float, rounds: int) -> dict[str, Any]:
    """The figures."""
    over_http = served_catalogue(served, seconds, rounds)
    return {"items": items, "records": records, "served": served} | folded(items, records) | over_http


def folded(items: int, count: int) -> dict[str, Any]:
    """Records applied to a version, the memory they take, and their fold, in this process."""
    catalogue = make_catalogue(items, min(CONFIG.resolve_width(items) ** 3, 2 * items // 3), 100)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        version = store.load(store.publish(catalogue.version))
        del catalogue
        records = log_of(Searcher.open(version), items, count)
        searcher = Searcher.open(version, count)
        before, started = _resident(), time.perf_counter()
        for start in range(0, count, 1000):
            searcher.apply(records[start : start + 1000])
        applied, memory = time.perf_counter() - started, _resident() - before
        started = time.perf_counter()
        made = fold(version, records)
        middle = time.perf_counter()
        store.publish(made)
        ended = time.perf_counter()
    return {
        "applied_per_second": count / applied,
        "overlay_megabytes": memory / 2**20,
        "fold_seconds": middle - started,
        "publish_seconds": ended - middle,
    }


def log_of(searcher: Searcher, first: int, count: int) -> list[Record]:
    """Records of one new item each, with the ids first, first + 1, ..., on random paths, with 16 similar items."""
    place, texts = START, []
    for number, put in enumerate(puts(searcher, first, count), 1):
        place, text = encode(Draft("bench", number, [to_json(put)]), place, 0)
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


def served_catalogue(items: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Puts and searches over HTTP, on a folder with two replicas."""
    catalogue = make_catalogue(items, min(CONFIG.resolve_width(items) ** 3, 2 * items // 3), 500)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = open_store(str(folder / "store"))
        store.activate(store.publish(catalogue.version))
        environment = {"DR_STORE": str(folder / "store"), "DR_WRITE_TOKEN": TOKEN, "DR_TIMEOUT_MS": "10000"}
        ports = [stack.enter_context(serving([str(BIN / "dr-service")], environment)) for _ in range(2)]
        found = put_until_found(ports, items)
        fill = [to_json(put) for put in puts(Searcher.open(catalogue.version), 2 * items, int(OVERLAY * items))]
        for start in range(0, len(fill), 100):
            store.append([Draft("fill", 1 + start, fill[start : start + 100])])
        bodies = _bodies(folder, catalogue)
        rate = load(ports[0], bodies, seconds, 0)["per_second"] / 2
        quiet, writing = [], []
        for _ in range(rounds):
            quiet.append(load(ports[0], bodies, seconds, rate))
            with _writer(str(folder / "store"), items):
                writing.append(load(ports[0], bodies, seconds, rate))
    return found | {"searches_per_second": rate, "quiet": _medians(quiet), "writing": _medians(writing)}


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


@contextlib.contextmanager
def _writer(url: str, items: int) -> Iterator[None]:
    """A process on the clients' core that appends WRITES records a second."""
    command = [*on_core(-1), sys.executable, "-m", "tests.benchmarks.living_writer", url, str(items)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout
            process.stdout.readline()  # it has begun
            yield
            if process.poll() is not None:
                raise RuntimeError("the writer ended early")
        finally:
            process.terminate()


def _bodies(folder: Path, catalogue: Catalogue) -> Path:
    file = folder / "bodies.json"
    file.write_text(json.dumps([{"history": history.tolist()} for history in catalogue.requests.histories]))
    return file


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = (1000 * np.percentile(seconds, [50, 99])).tolist()
    return {"p50_ms": p50, "p99_ms": p99}


def _medians(measured: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.median([figures[name] for figures in measured])) for name in ("p50_ms", "p99_ms")}


def _resident() -> int:
    """Bytes of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def print_figures(figures: dict[str, Any]) -> None:
    """Print a table, then the JSON."""
    rows = ("put", "same_replica", "other_replica", "quiet", "writing")
    over_http = f"over HTTP: {figures['served']:,} items and {OVERLAY:.0%} new ones beside them; "
    over_http += f"{figures['searches_per_second']:,.0f} searches a second, {WRITES} writes a second"
    applied = f"{figures['items']:,} items, {figures['records']:,} records of one new item: "
    applied += f"{figures['applied_per_second']:,.0f} applied a second, {figures['overlay_megabytes']:.1f} MB; "
    applied += f"fold {figures['fold_seconds']:.1f} s, publish {figures['publish_seconds']:.1f} s"
    lines = [
        over_http,
        "",
        f"{'':20}{'p50 ms':>9}{'p99 ms':>9}",
        *(f"{name:20}{figures[name]['p50_ms']:9.2f}{figures[name]['p99_ms']:9.2f}" for name in rows),
        "",
        applied,
    ]
    report("living", lines, figures)


if __name__ == "__main__":
    main()
