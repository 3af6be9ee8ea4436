"""One loaded version: a request's features in, candidates out. Immutable, so a request that holds it is consistent."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from index_store.errors import IndexStoreError, VersionDamaged
from index_store.golden import replay
from index_store.index import MAX_READS
from index_store.retrieval import Answer, Query, answer
from index_store.version import Version
from service.errors import BadQuery
from service.pace import Pace

ItemId = int | str


class Retriever:
    """Answers queries from one version."""

    def __init__(self, version: Version) -> None:
        """Load the model, replay the golden queries and warm up. Raises VersionDamaged."""
        self.version = version
        self.manifest = version.manifest
        self.name = version.manifest.version
        self.remote = version.read_paths is not None  # an answer waits for the store
        context = version.document("context.json")
        try:
            self._codes = {
                name: {value: code for code, value in enumerate(values, 1)}
                for name, values in context["categorical"].items()
            }
            self._scales = {name: (float(s["mean"]), float(s["std"])) for name, s in context["numeric"].items()}
            if not all(math.isfinite(m) and math.isfinite(s) and s > 0 for m, s in self._scales.values()):
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise VersionDamaged(f"{self.name}: context.json is not a context schema") from None
        ids = version.item_ids
        self._strings = {item: index for index, item in enumerate(ids)} if isinstance(ids, list) else None
        self._ids = ids
        self._session = _open_session(version)
        columns = {model_input.name: model_input.shape[-1:] for model_input in self._session.get_inputs()}
        if columns.get("categories") != [len(self._codes)] or columns.get("numbers") != [len(self._scales)]:
            raise VersionDamaged(f"{self.name}: context.json has other features than model.onnx takes")
        paths = self._session.get_modelmeta().custom_metadata_map.get("path_ids")
        if paths != version.manifest.parts["path_ids.npy"].sha256:
            raise VersionDamaged(f"{self.name}: model.onnx names the rows of other paths than the version's")
        try:
            replay(self._session, version.index, version.reranker, version.document("golden.json"), self.name)
        except IndexStoreError:
            raise
        except Exception as error:  # noqa: BLE001 -- what the runtime raises for a model of another shape
            raise VersionDamaged(f"{self.name}: model.onnx cannot be run ({type(error).__name__})") from None
        self.pace = self._warm_up()

    def _warm_up(self) -> Pace:
        """Search alone and in company, so that no request pays for what the runtime does on first use, and measure."""
        empty = np.empty(0, np.int64)
        longest = np.zeros(self.manifest.history, np.int64)
        categories, numbers = [0] * len(self._codes), [0.0] * len(self._scales)
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
        m = self.manifest
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
                "item_id_type": "string" if self._strings is not None else "integer",
                "rerank": self.version.reranker.kind,
            },
            "defaults": {"k": m.k, "beam": m.beam, "per_path": m.per_path},
            "context": {
                "categorical": {name: len(codes) for name, codes in self._codes.items()},
                "numeric": list(self._scales),
            },
        }

    def prepare(
        self,
        *,
        history: Sequence[ItemId],
        context: Mapping[str, Any],
        k: int | None,
        beam: int | None,
        per_path: int | None,
        exclude: Sequence[ItemId],
        exclude_history: bool,
        rerank: bool,
    ) -> tuple[Query, int]:
        """A request in this version's terms, and how many of its history items are unknown. Raises BadQuery.

        Unknown items are left out; unknown categories count as absent.
        """
        k = k or self.manifest.k
        default_beam, default_per_path = self.manifest.reach(k)
        widen, beam = beam is None, beam or default_beam
        per_path = per_path or min(default_per_path, MAX_READS // beam)
        if beam > self.manifest.max_beam:
            raise BadQuery(f"beam: this version searches at most {self.manifest.max_beam} paths")
        if beam * per_path > MAX_READS:
            raise BadQuery(f"beam, per_path: a request reads at most {MAX_READS} items, so their product is too large")
        known = self._indices(history)
        excluded = self._indices(exclude)
        if exclude_history:
            excluded = np.concatenate([excluded, known])
        categories, numbers = self._encode(context)
        query = Query(known[-self.manifest.history :], categories, numbers, k, beam, per_path, excluded, rerank, widen)
        return query, len(history) - len(known)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer queries that agree in `beam` and `rerank`, all at once."""
        version, longest, widest = self.version, self.manifest.history, self.manifest.max_beam
        return answer(self._session, version.index, version.reranker, queries, longest, widest)

    def names(self, items: NDArray[np.int64]) -> list[ItemId]:
        """The caller's ids of item indices."""
        if isinstance(self._ids, list):
            return [self._ids[i] for i in items.tolist()]
        names: list[ItemId] = self._ids[items].tolist()
        return names

    def _indices(self, ids: Sequence[ItemId]) -> NDArray[np.int64]:
        """The indices of the known ones among `ids`, in their order. "7" and 7 name the same item."""
        if not ids:
            return np.empty(0, np.int64)
        if self._strings is not None:
            names = (item if isinstance(item, str) else str(item) for item in ids)
            return np.array([self._strings[name] for name in names if name in self._strings], np.int64)
        assert not isinstance(self._ids, list)
        numbers = ids if all(isinstance(item, int) for item in ids) else map(_as_integer, ids)
        wanted = np.array([number for number in numbers if number is not None], np.int64)
        places = np.minimum(self._ids.searchsorted(wanted), len(self._ids) - 1)
        known: NDArray[np.int64] = places[self._ids[places] == wanted]
        return known

    def _encode(self, context: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        for name, value in context.items():
            if name not in self._codes and name not in self._scales:
                raise BadQuery("context: a feature that this version does not have; /v1/info lists them")
            if name in self._scales and value is not None and (isinstance(value, str | bool)):
                raise BadQuery("context: a numeric feature needs a number; /v1/info lists them")
        categories = [
            0 if context.get(name) is None else codes.get(_as_text(context[name]), 0)
            for name, codes in self._codes.items()
        ]
        numbers = [
            0.0 if context.get(name) is None else (float(context[name]) - mean) / std
            for name, (mean, std) in self._scales.items()
        ]
        # What float32 cannot hold would be infinite in the model.
        return categories, [max(-1e6, min(1e6, number)) for number in numbers]


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


def _as_integer(item: ItemId) -> int | None:
    if isinstance(item, int):
        return item
    digits = item.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 20 and str(int(item)) == item):
        return None
    number = int(item)
    return number if -(2**63) <= number < 2**63 else None


def _as_text(value: Any) -> str:
    """A category as the trainer writes it: true, 2 for 2.0."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
