"""The network on a GPU and on this machine's processor, for batches of 1 to 4096 requests. Without a GPU it says so.

The processor uses all its cores, while the service uses one for each search.

python -m tests.benchmarks.bench_gpu [--items 1500000]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime

from retrieval.paths.rerank import Beams
from retrieval.paths.trie import path_trie
from retrieval.searcher import Searcher
from retrieval.session import on_its_device
from tests.benchmarks.catalogue import CONFIG, Catalogue, make_catalogue
from tests.benchmarks.measure import report, take_turns

BATCHES = (1, 8, 64, 512, 4096)
ROUNDS = 5
CALLS = 4  # of each batch size in a round
PROVIDERS = {"gpu": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_500_000, help="V; default 1.5 million")
    items = parser.parse_args().items
    has_gpu = PROVIDERS["gpu"] in onnxruntime.get_available_providers()
    print_figures(bench(items, BATCHES) if has_gpu else {"batches": []})


def bench(items: int, batches: tuple[int, ...], providers: dict[str, str] = PROVIDERS) -> dict[str, Any]:
    """The figures, one row for each batch size: the milliseconds that a batch takes with each provider."""
    catalogue = make_catalogue(items, min(CONFIG.resolve_width(items) ** 3, 2 * items // 3), max(batches))
    sessions = {name: _open(catalogue, provider) for name, provider in providers.items()}
    rows = []
    for batch in batches:
        contenders = {name: _searching(catalogue, session, batch) for name, session in sessions.items()}
        timed = take_turns(contenders, CALLS, ROUNDS)
        milliseconds = {name: times["p50_ms"] for name, times in timed.items()}
        rows.append({"batch": batch, "ms": milliseconds, "times_faster": milliseconds["cpu"] / milliseconds["gpu"]})
    return {"items": items, "batches": rows}


def _open(catalogue: Catalogue, provider: str) -> onnxruntime.InferenceSession:
    wanted = [provider]
    if provider == PROVIDERS["gpu"]:
        onnxruntime.preload_dlls()  # CUDA's libraries, from where pip installed them
        wanted.append(PROVIDERS["cpu"])
    session = onnxruntime.InferenceSession(bytes(catalogue.version.parts["model.onnx"]), providers=wanted)
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"{provider} is installed and cannot be used; see onnxruntime's warning")
    return session


def _searching(catalogue: Catalogue, session: onnxruntime.InferenceSession, batch: int) -> Callable[[int], Beams]:
    histories = catalogue.requests.histories[:batch]
    nothing = np.zeros((batch, 0), np.int64), np.zeros((batch, 0), np.float32)
    structure = Searcher.open(catalogue.version).structure
    trie = on_its_device(session, path_trie(structure.index.path_ids, CONFIG.depth, int(CONFIG.width)))
    structure = replace(structure, session=session, trie=trie)
    return lambda _number: structure.search(histories, *nothing, int(CONFIG.beam))


def print_figures(figures: dict[str, Any]) -> None:
    """Print a table, then the JSON."""
    lines = ["no GPU here: onnxruntime has no CUDA provider; the service-gpu image brings the one that has"]
    if figures["batches"]:
        lines = [f"{'batch':>6}{'gpu ms':>10}{'cpu ms':>10}{'gpu is':>16}{'requests/s':>13}"]
        for row in figures["batches"]:
            gpu, cpu, rate = row["ms"]["gpu"], row["ms"]["cpu"], 1000 * row["batch"] / row["ms"]["gpu"]
            lines.append(f"{row['batch']:>6}{gpu:>10.2f}{cpu:>10.2f}{row['times_faster']:>9.1f}x faster{rate:>13,.0f}")
    report("gpu", lines, figures)


if __name__ == "__main__":
    main()
