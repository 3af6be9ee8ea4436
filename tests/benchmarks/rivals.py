"""The services that ours is compared with: one that does nothing, and one that a team would write instead of ours.

Both have the same request and response bodies as ours. DR_STORE: a folder with a current version; RIVAL_GRAPH: an HNSW
index.
"""

from __future__ import annotations

import os
import uuid
from typing import Any

import faiss
import numpy as np
import orjson
from fastapi import FastAPI, Response

from index_store.store import open_store
from retrieval.paths.index import PathIndex
from service.http.models import RetrieveRequest, RetrieveResponse
from tests.benchmarks.bench_retrieval import encoder_of


def empty() -> FastAPI:
    """A service that checks the request, and always answers the same bytes."""
    app = FastAPI()
    scores = np.random.default_rng(0).random(200, np.float32).tolist()  # as many digits as in our answers
    candidates = [
        {"item_id": 10_000 + i, "score": 1 + score, "path_log_prob": -score} for i, score in enumerate(scores)
    ]
    content = orjson.dumps(_answer(candidates, "v1-000000000000"))

    @app.post("/v1/retrieve", response_model=RetrieveResponse)
    async def retrieve(body: RetrieveRequest) -> Response:
        return Response(content, media_type="application/json")

    return app


def hnsw() -> FastAPI:
    """A service of the same encoder and faiss's HNSW over the same vectors; its scores rank items as the logits do."""
    faiss.omp_set_num_threads(1)
    store = open_store(os.environ["DR_STORE"])
    name = store.current()
    assert name is not None
    version = store.load(name)
    encode, vectors = encoder_of(version), PathIndex.of(version).item_vectors
    graph: Any = faiss.read_index(os.environ["RIVAL_GRAPH"])
    graph.hnsw.efSearch = version.manifest.k + version.manifest.history
    app = FastAPI()

    @app.post("/v1/retrieve", response_model=RetrieveResponse)
    async def retrieve(body: RetrieveRequest) -> Response:
        history = np.array(body.history, np.int64)[-version.manifest.history :]
        k = body.k or version.manifest.k
        query = np.zeros((1, vectors.shape[1] + 2), np.float32)
        query[:, :-2] = encode(history)
        query[:, -2] = 1
        scores, items = graph.search(query, k + len(history))
        keep = np.isin(items[0], history, invert=True).nonzero()[0][:k]
        candidates = [
            {"item_id": item, "score": score, "path_log_prob": 0.0}
            for item, score in zip(items[0, keep].tolist(), scores[0, keep].tolist(), strict=True)
        ]
        return Response(orjson.dumps(_answer(candidates, version.manifest.version)), media_type="application/json")

    return app


def _answer(candidates: list[dict[str, Any]], version: str) -> dict[str, Any]:
    return {
        "version": version,
        "request_id": uuid.uuid4().hex,
        "took_ms": 1.234,
        "candidates": candidates,
        "coverage": {"paths": 50, "items": 210, "unknown_history": 0},
        "degraded": {"short": False, "narrowed": False},
    }
