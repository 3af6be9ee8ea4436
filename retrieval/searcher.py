"""One opened version that answers requests in the caller's terms. Trainer and service share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from index_store.errors import VersionDamaged
from index_store.version import Version
from retrieval.context import ContextSchema, Value
from retrieval.paths.search import Answer, Query, answer
from retrieval.query import Limits
from retrieval.vocabulary import ItemId, Vocabulary


class BadQuery(ValueError):
    """A request that this version does not take. The message goes to the caller: it never has input in it."""


@dataclass(frozen=True)
class Request:
    """What a caller asks for, as `POST /v1/retrieve` has it. Where a value is None the version has a default."""

    history: Sequence[ItemId] = ()  # oldest first
    context: Mapping[str, Value] = field(default_factory=dict)  # the user's features, by name
    k: int | None = None
    beam: int | None = None
    per_path: int | None = None
    exclude: Sequence[ItemId] = ()
    exclude_history: bool = True
    rerank: bool = True


class Unknown(NamedTuple):
    """How much of a request the version does not know: history items, and context features or their values."""

    history: int
    context: int


class Searcher:
    """Answers requests from one version. Never changes, so whoever holds it gets answers of that version alone."""

    def __init__(self, version: Version, session: Any) -> None:
        """session: an onnxruntime.InferenceSession of its model.onnx. Raises VersionDamaged if they do not fit."""
        self.version = version
        self.session = session
        manifest = self.manifest = version.manifest
        try:
            self.schema = ContextSchema.from_json(version.document("context.json"))
        except ValueError as error:
            raise VersionDamaged(f"{manifest.version}: context.json: {error}") from None
        self.vocabulary = Vocabulary(version.item_ids)
        inputs = {model_input.name: model_input.shape[-1:] for model_input in session.get_inputs()}
        expected = [len(self.schema.categories)], [len(self.schema.numbers)]
        if (inputs.get("categories"), inputs.get("numbers")) != expected:
            raise VersionDamaged(f"{manifest.version}: context.json has other features than model.onnx takes")
        paths = session.get_modelmeta().custom_metadata_map.get("path_ids")
        if paths != manifest.parts["path_ids.npy"].sha256:
            raise VersionDamaged(f"{manifest.version}: model.onnx names the rows of other paths than the version's")

    def prepare(self, request: Request) -> tuple[Query, Unknown]:
        """The request in the version's own terms, and how much of it is unknown, which is left out.

        Raises BadQuery for a beam wider than the version searches, or more reads than a request may make.
        """
        k = request.k or self.manifest.k
        default_beam, default_per_path = self.manifest.reach(k)
        # Where one of the two is named, the other gives way: a swap to another default makes no request too large.
        beam = request.beam or min(default_beam, max(1, Limits.READS // (request.per_path or 1)))
        per_path = request.per_path or min(default_per_path, Limits.READS // beam)
        if beam > self.manifest.max_beam:
            raise BadQuery(f"beam: this version searches at most {self.manifest.max_beam} paths")
        if beam * per_path > Limits.READS:
            raise BadQuery(
                f"beam, per_path: a request reads at most {Limits.READS} items, so their product is too large"
            )
        known = self.vocabulary.indices(request.history)
        excluded = self.vocabulary.indices(request.exclude)
        if request.exclude_history:
            excluded = np.concatenate([excluded, known])
        categories, numbers, unknown = self.schema.encode(request.context)
        query = Query(
            known[-self.manifest.history :],
            categories,
            numbers,
            k,
            beam,
            per_path,
            excluded,
            request.rerank,
            widen=request.beam is None,
        )
        return query, Unknown(len(request.history) - len(known), unknown)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer queries that agree in `beam` and `rerank`, all at once."""
        version, manifest = self.version, self.manifest
        return answer(self.session, version.index, version.reranker, queries, manifest.history, manifest.max_beam)
