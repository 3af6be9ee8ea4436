"""One request in process on one thread: Deep Retrieval beside an exact scan, HNSW and IVF, all with the same encoder.

python -m tests.benchmarks.bench_retrieval [--items 1500000]
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from index_store.path_facts import PathFacts
from index_store.version import Version
from retrieval.paths import kernels
from retrieval.paths.index import PathIndex
from retrieval.paths.rerank import rerank
from retrieval.query import Answer, Query
from service.serving.retriever import Retriever
from tests.benchmarks.catalogue import CONFIG, Catalogue, make_catalogue
from tests.benchmarks.measure import floor_rates, report, take_turns
from trainer.benchmark.two_tower import build_hnsw

CELLS = 32  # cells of the IVF index that a search scans
USERS = 100
ROUNDS = 7


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_500_000, help="V; default 1.5 million")
    print_figures(bench(parser.parse_args().items, USERS, ROUNDS))


def bench(items: int, users: int, rounds: int) -> dict[str, Any]:
    """The figures. users: how many requests each contender answers in each of `rounds` rounds, all different."""
    catalogue = make_catalogue(items, min(CONFIG.resolve_width(items) ** 3, 2 * items // 3), users * (rounds + 1))
    retriever = Retriever(catalogue.version)
    encoder = encoder_of(catalogue.version)

    def encode(number: int) -> NDArray[np.float32]:
        return encoder(catalogue.requests.histories[number])

    ours = our_queries(catalogue)
    index = retriever.searcher.structure.index
    vectors = index.item_vectors.astype(np.float32)
    rivals = build_rivals(vectors, index.item_bias)
    contenders: dict[str, Callable[[int], object]] = {"deep_retrieval": functools.partial(ask_ours, retriever, ours)}
    contenders |= {name: functools.partial(ask_rival, index, encode) for name, index in rivals.items()}
    timed = take_turns(contenders, users, rounds)
    stepwise = take_turns(our_steps(catalogue, retriever, encode), users, rounds)
    answers = [ask_ours(retriever, ours, number) for number in range(len(ours))]
    operations, moved = arithmetic(catalogue, float(np.mean([answer.read for answer in answers])))
    rate, bandwidth = floor_rates()
    floor = 1000 * max(operations / rate, moved / bandwidth)  # at best, arithmetic and memory traffic overlap
    p50 = timed["deep_retrieval"]["p50_ms"]
    return {
        "items": items,
        "k": CONFIG.k,
        "read": float(np.mean([answer.read for answer in answers])),
        "returned": float(np.mean([len(answer.items) for answer in answers])),
        "milliseconds": {name: timed[name] for name in contenders},
        "times_faster_than": {name: timed[name]["p50_ms"] / p50 for name in rivals},
        "steps_ms": split_steps({name: times["p50_ms"] for name, times in stepwise.items()}),
        "rivals": quality(rivals, encode, users),
        "floor": {
            "operations": operations,
            "bytes": moved,
            "operations_per_second": rate,
            "bytes_per_second": bandwidth,
            "ms": floor,
            "times_floor": p50 / floor,
        },
    }


def ask_ours(retriever: Retriever, queries: list[Query], number: int) -> Answer:
    """Answer a request as the service does, without the HTTP around it."""
    (answer,) = retriever.searcher.answer([queries[number]])
    return answer


def ask_rival(index: Any, encode: Callable[[int], NDArray[np.float32]], number: int) -> Any:
    """Run the same encoder, then search the rival for k items; the bias is one more coordinate."""
    query = np.zeros((1, CONFIG.embedding + 2), np.float32)
    query[:, :-2] = encode(number)
    query[:, -2] = 1
    return index.search(query, CONFIG.k)


def our_queries(catalogue: Catalogue) -> list[Query]:
    """The requests as the service passes them to the searcher, with the version's own beam."""
    manifest = catalogue.version.manifest
    k, facts = manifest.k, PathFacts.of(manifest.structure)
    return [
        Query(history, [], [], k, facts.beam, facts.per_path, history, widen=False)
        for history in catalogue.requests.histories
    ]


def our_steps(
    catalogue: Catalogue, retriever: Retriever, encode: Callable[[int], NDArray[np.float32]]
) -> dict[str, Callable[[int], object]]:
    """The steps of a request, each run on the results of the step before it."""
    searcher, k = retriever.searcher, catalogue.version.manifest.k
    structure, facts = searcher.structure, searcher.facts
    histories = catalogue.requests.histories
    nothing = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32)

    def search_one(number: int) -> Any:
        return structure.search([histories[number]], *nothing, facts.beam)

    beams = [search_one(number) for number in range(len(histories))]
    fetched = [structure.read(beam, facts.per_path) for beam in beams]
    return {
        "encode": encode,
        "search": search_one,
        "fetch": lambda number: structure.read(beams[number], facts.per_path),
        "rerank": lambda number: rerank(
            structure.index, beams[number], fetched[number], structure.reranker, [k], [histories[number]]
        ),
    }


def split_steps(timed: dict[str, float]) -> dict[str, float]:
    """The time of each step. The network encodes and searches in one run, so the beam search is that less encoding."""
    return {
        "encode": timed["encode"],
        "beam": timed["search"] - timed["encode"],
        "fetch": timed["fetch"],
        "rerank": timed["rerank"],
    }


def encoder_of(version: Version) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """The encoder alone, cut out of the version's network: it turns a history into a user vector (1, E)."""
    vectors = PathIndex.of(version).item_vectors.view(np.uint16)
    whole = onnx.load_from_string(bytes(version.parts["model.onnx"]))
    inputs = [value.name for value in whole.graph.input if value.name in {"history", "length"}]
    part = onnx.utils.Extractor(whole).extract_model(inputs, ["user"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def encode(history: NDArray[np.int64]) -> NDArray[np.float32]:
        length = np.array([len(history)])
        embedded = kernels.padded(vectors, vectors[:0], history, length).view(np.float16)
        user: NDArray[np.float32] = session.run(["user"], {"history": embedded, "length": length})[0]
        return user

    return encode


def build_rivals(vectors: NDArray[np.float32], bias: NDArray[np.float32]) -> dict[str, Any]:
    """Indexes of faiss over the same vectors, with the bias as one more coordinate.

    The HNSW index is that of `dr-trainer benchmark`. A second coordinate gives all its items the same length, which
    finds more than a graph of inner products.
    """
    places = np.concatenate([vectors, bias[:, None] - bias.mean(), np.zeros((len(bias), 1), np.float32)], axis=1)
    size = places.shape[1]
    exact = faiss.IndexFlatIP(size)
    exact.add(places)
    graph, _ = build_hnsw(vectors, bias)
    graph.hnsw.efSearch = CONFIG.k
    lists = min(4096, len(places) // 40)
    cells = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, lists, faiss.METRIC_INNER_PRODUCT)
    cells.train(places[:: max(1, len(places) // (40 * lists))])
    cells.add(places)
    cells.nprobe = CELLS
    return {"exact_scan": exact, "hnsw": graph, "ivf": cells}


def quality(
    rivals: dict[str, Any], encode: Callable[[int], NDArray[np.float32]], users: int
) -> dict[str, dict[str, float]]:
    """How many items each rival returns, and its recall of the exact scan's answer."""
    qualities: dict[str, dict[str, float]] = {}
    exact = [ask_rival(rivals["exact_scan"], encode, number)[1][0] for number in range(users)]
    for name, index in rivals.items():
        answers = [ask_rival(index, encode, number)[1][0] for number in range(users)]
        hits = [len(np.intersect1d(answer, truth)) / len(truth) for answer, truth in zip(answers, exact, strict=True)]
        returned = [int((answer >= 0).sum()) for answer in answers]
        qualities[name] = {"recall": float(np.mean(hits)), "returned": float(np.mean(returned))}
    return qualities


def arithmetic(catalogue: Catalogue, read: float) -> tuple[float, float]:
    """The fewest operations and bytes that one request needs in any implementation."""
    m, config = catalogue.version.manifest, CONFIG
    facts = PathFacts.of(m.structure)
    size, hidden, width, beam = m.embedding, config.hidden, facts.width, facts.beam
    gru = (m.history + 1) * 2 * 6 * size**2
    projections = 2 * 2 * size**2
    users = facts.depth * 2 * size * hidden
    nodes = 2 * hidden * width * (1 + (facts.depth - 1) * beam)
    sums = hidden * beam * sum(range(1, facts.depth))
    rerank = 2 * size * read
    # Only the bytes that no cache holds between two requests: the vectors that are read, and the path lists.
    vectors = 2 * size * (m.history + read)
    return float(gru + projections + users + nodes + sums + rerank), float(vectors + 4 * read)


def print_figures(figures: dict[str, Any]) -> None:
    """Print a table, then the JSON."""
    times, floor = figures["milliseconds"], figures["floor"]
    lines = [
        f"{figures['items']:,} items, {figures['k']} wanted, {figures['read']:.0f} read; one thread.",
        "Recall is of the exact scan's answer.",
        "",
    ]
    lines += [f"{'':16}{'p50 ms':>10}{'p99 ms':>10}{'ours is':>16}{'recall':>8}"]
    for name, quantiles in times.items():
        ratio = figures["times_faster_than"].get(name)
        line = f"{name:16}{quantiles['p50_ms']:10.3f}{quantiles['p99_ms']:10.3f}"
        lines.append(line + (f"{ratio:9.1f}x faster{figures['rivals'][name]['recall']:8.3f}" if ratio else ""))
    lines += ["", "of ours: " + ", ".join(f"{name} {took:.3f}" for name, took in figures["steps_ms"].items())]
    lines.append(
        f"floor {floor['ms']:.3f} ms: {floor['operations'] / 1e6:.1f} million operations at "
        f"{floor['operations_per_second'] / 1e9:.0f} billion/s, {floor['bytes'] / 1e6:.2f} MB at "
        f"{floor['bytes_per_second'] / 1e9:.1f} GB/s; ours takes {floor['times_floor']:.1f} times that"
    )
    report("retrieval", lines, figures)


if __name__ == "__main__":
    main()
