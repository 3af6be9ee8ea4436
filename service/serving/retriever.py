"""One loaded version: verified, warmed up, and timed. A request that holds it is answered by this version alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from index_store.errors import IndexStoreError, VersionDamaged
from index_store.version import Version
from retrieval.golden import replay
from retrieval.paths.search import Answer, Query
from retrieval.searcher import Searcher
from service.serving.pace import Pace


class Retriever:
    """Answers queries from one version."""

    def __init__(self, version: Version) -> None:
        """Load the model, replay the golden queries and warm up. Raises VersionDamaged."""
        self.searcher = Searcher(version, _open_session(version))
        self.version = version
        self.manifest = version.manifest
        self.name = version.manifest.version
        self.remote = version.read_paths is not None  # an answer waits for the store
        try:
            replay(self.searcher, version.document("golden.json"))
        except IndexStoreError:
            raise
        except Exception as error:  # noqa: BLE001 -- what the runtime raises for a model of another shape
            raise VersionDamaged(f"{self.name}: model.onnx cannot be run ({type(error).__name__})") from None
        self.pace = self._warm_up()

    def _warm_up(self) -> Pace:
        """Search alone and in company, so that no request pays for what the runtime does on first use, and measure."""
        empty = np.empty(0, np.int64)
        longest = np.zeros(self.manifest.history, np.int64)
        categories, numbers, _ = self.searcher.schema.encode({})
        beam, per_path = self.manifest.reach(self.manifest.k)

        def search(history: NDArray[np.int64], queries: int, beam: int) -> None:
            query = Query(history, categories, numbers, self.manifest.k, beam, per_path, history, widen=False)
            self.answer([query] * queries)

        for queries in (1, 8, 1):
            search(empty, queries, beam)
            search(longest, queries, beam)
        return Pace.measured(functools.partial(search, longest), beam)

    def info(self) -> dict[str, Any]:
        """The version's shape, defaults and context features, for /v1/info."""
        m, schema = self.manifest, self.searcher.schema
        return {
            "version": self.name,
            "created": m.created,
            "model": {
                "depth": m.depth,
                "width": m.width,
                "paths_per_item": m.paths_per_item,
                "embedding": m.embedding,
                "history": m.history,
                "items": m.items,
                "paths": m.paths,
                "item_id_type": self.searcher.vocabulary.kind,
                "rerank": self.version.reranker.kind,
            },
            "defaults": {"k": m.k, "beam": m.beam, "per_path": m.per_path},
            "context": {
                "categorical": {category.name: len(category.values) for category in schema.categories},
                "numeric": [number.name for number in schema.numbers],
            },
        }

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer queries that agree in `beam` and `rerank`, all at once."""
        return self.searcher.answer(queries)


def _open_session(version: Version) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # One thread a search: throughput comes from batches and processes, and spinning would starve the HTTP side.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = f"{version.folder}/model.onnx" if version.folder else bytes(version.parts["model.onnx"])
    try:
        return onnxruntime.InferenceSession(model, options, providers=_providers())
    except Exception as error:  # noqa: BLE001 -- the runtime has no error class of its own for a bad model
        raise VersionDamaged(
            f"{version.manifest.version}: model.onnx cannot be loaded ({type(error).__name__})"
        ) from None


def _providers() -> list[str]:
    """The GPU's, where the runtime for it is installed in the other's place; else the CPU's."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return ["CPUExecutionProvider"]
    onnxruntime.preload_dlls()  # CUDA's libraries where pip put them
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
