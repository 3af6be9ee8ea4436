"""One worker over HTTP, beside an endpoint that does nothing and a service with the same encoder and faiss's HNSW.

The server has one core, the client another, and Redis whatever they leave. The peak is measured with 32 connections,
each of which asks again as soon as it is answered. Latency is measured at half of a service's own peak, from the moment
at which a request was due, so that waiting counts.

python -m tests.benchmarks.bench_service [--items 100000] [--seconds 5]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import httpx
import numpy as np

from index_store.store import open_store
from retrieval.paths.index import PathIndex
from tests.benchmarks.catalogue import CONFIG, make_catalogue
from tests.benchmarks.measure import report
from tests.redis_servers import RedisServer, free_port, running
from trainer.benchmark.two_tower import build_hnsw

BIN = Path(sys.executable).parent
CONNECTIONS = 32
ROUNDS = 3
ROOT = Path(__file__).parents[2]
USERS = 500


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000, help="V; default 100 thousand")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement; default 5")
    options = parser.parse_args()
    print_figures(bench(options.items, options.seconds, ROUNDS))


def bench(items: int, seconds: float, rounds: int) -> dict[str, Any]:
    """The figures: medians over rounds in which the services take turns; each round begins with another service."""
    with contextlib.ExitStack() as stack:
        bodies, services = _start(stack, items)
        peak = _in_turns(services, rounds, lambda _, port: _load(port, bodies, seconds, 0))
        latency = _in_turns(
            services, rounds, lambda name, port: _load(port, bodies, seconds, peak[name]["per_second"] / 2)
        )
    return {
        "items": items,
        "k": CONFIG.k,
        "peak_per_second": {name: figures["per_second"] for name, figures in peak.items()},
        "at_half_of_peak": latency,
    }


def _in_turns(
    services: dict[str, int], rounds: int, measure: Callable[[str, int], dict[str, float]]
) -> dict[str, dict[str, float]]:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in services}
    names = list(services)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(measure(name, services[name]))
    return {
        name: {figure: float(np.median([figures[figure] for figures in measured])) for figure in measured[0]}
        for name, measured in results.items()
    }


def _start(stack: contextlib.ExitStack, items: int) -> tuple[Path, dict[str, int]]:
    """Start all services. Returns a file of requests, and the port of each service."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    catalogue = make_catalogue(items, min(CONFIG.resolve_width(items) ** 3, 2 * items // 3), USERS)
    redis = stack.enter_context(running(RedisServer(folder / "redis")))
    for url in (str(folder / "store"), redis.url):
        store = open_store(url)
        store.activate(store.publish(catalogue.version))
    index = PathIndex.of(catalogue.version)
    graph, _ = build_hnsw(index.item_vectors.astype(np.float32), index.item_bias)
    faiss.write_index(graph, str(folder / "graph"))
    bodies = folder / "bodies.json"
    bodies.write_text(json.dumps([{"history": history.tolist()} for history in catalogue.requests.histories]))
    del catalogue, index, graph
    ours = {"DR_CACHE": str(folder / "cache"), "DR_TIMEOUT_MS": "10000", "DR_STORE_TIMEOUT_MS": "5000"}
    local = {"DR_STORE": str(folder / "store"), "RIVAL_GRAPH": str(folder / "graph")}
    starts: dict[str, tuple[list[str], dict[str, str]]] = {
        "empty": ([*UVICORN, "tests.benchmarks.rivals:empty"], {}),
        "hnsw": ([*UVICORN, "tests.benchmarks.rivals:hnsw"], local),
        "folder": ([str(BIN / "dr-service")], ours | local),
        "redis_resident": ([str(BIN / "dr-service")], ours | {"DR_STORE": redis.url}),
        "redis_remote": ([str(BIN / "dr-service")], ours | {"DR_STORE": redis.url, "DR_RESIDENCY": "remote"}),
    }
    return bodies, {name: stack.enter_context(serving(*start)) for name, start in starts.items()}


UVICORN = [str(BIN / "uvicorn"), "--factory", "--no-access-log", "--log-level", "warning"]


@contextlib.contextmanager
def serving(command: list[str], environment: dict[str, str]) -> Iterator[int]:
    """Run a service on the first core. Yields its port once the service answers."""
    port = free_port()
    arguments = ["--port", str(port)] if "--factory" in command else []
    process = subprocess.Popen(
        [*_on_core(0), *command, *arguments],
        env=os.environ | environment | {"DR_PORT": str(port), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.post(f"http://127.0.0.1:{port}/v1/retrieve", json={}, trust_env=False).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command} does not answer")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def _load(port: int, bodies: Path, seconds: float, rate: float) -> dict[str, float]:
    """The figures of tests.benchmarks.load, run on the last core."""
    client = [sys.executable, "-m", "tests.benchmarks.load", str(port), str(bodies), "--seconds", str(seconds)]
    client += ["--connections", str(CONNECTIONS), "--rate", str(rate)]
    done = subprocess.run([*_on_core(-1), *client], check=True, capture_output=True, text=True, cwd=ROOT)
    figures: dict[str, float] = json.loads(done.stdout)
    if figures["failed"]:
        raise RuntimeError(f"{figures['failed']:.0f} requests failed")
    return figures


def _on_core(place: int) -> list[str]:
    """A prefix that keeps a command on one of this machine's cores; empty without taskset."""
    core = sorted(os.sched_getaffinity(0))[place]
    return ["taskset", "--cpu-list", str(core)] if shutil.which("taskset") else []


def print_figures(figures: dict[str, Any]) -> None:
    """Print a table, then the JSON."""
    peak, latency = figures["peak_per_second"], figures["at_half_of_peak"]
    lines = [
        f"{figures['items']:,} items, {figures['k']} candidates an answer, histories of 69; one worker on one core",
        "",
        f"{'':16}{'peak/s':>9}{'of empty':>10}{'p50 ms':>9}{'p99 ms':>9}{'p99/p50':>9}",
    ]
    for name, rate in peak.items():
        p50, p99 = latency[name]["p50_ms"], latency[name]["p99_ms"]
        lines.append(f"{name:16}{rate:9,.0f}{rate / peak['empty']:10.2f}{p50:9.2f}{p99:9.2f}{p99 / p50:9.1f}")
    report("service", lines, figures)


if __name__ == "__main__":
    main()
