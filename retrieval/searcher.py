"""Searcher: an opened version that answers requests, for trainer, service, golden queries and benchmarks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from index_store.errors import VersionDamaged, VersionIncompatible
from index_store.log import Place, Record
from index_store.manifest import Manifest, naming
from index_store.path_facts import PathFacts
from index_store.version import Version
from retrieval.attributes import Attributes
from retrieval.changes import Change, Evidence, Placement, changes_of
from retrieval.context import ContextSchema
from retrieval.descriptions import Descriptions
from retrieval.paths.fold import folded_parts
from retrieval.paths.overlay import Overlay
from retrieval.paths.placing import Placer, PlacingFacts
from retrieval.paths.structure import PathStructure, default_search
from retrieval.query import Answer, BadQuery, ItemId, Limits, Query, Request, Unknown
from retrieval.vocabulary import Vocabulary


class Searcher:
    """Answers requests from one version and the changes in its overlay."""

    def __init__(self, version: Version, facts: PathFacts, structure: PathStructure, slots: int = 0) -> None:
        """Use `open` instead. Raises VersionDamaged if the features of network and context.json differ in number."""
        self.version, self.manifest = version, version.manifest
        try:
            self.schema = ContextSchema.from_json(version.document("context.json"))
        except ValueError as error:
            raise VersionDamaged(f"context.json: {error}") from None
        self.vocabulary = Vocabulary(version.item_ids)
        self.facts = facts
        attributes = Attributes.of(version)
        self.descriptions = Descriptions(attributes, self.vocabulary)
        self.overlay = self._overlay(structure, slots) if slots else None
        self.structure = structure.with_overlay(self.overlay)
        self._placer = Placer(
            self.structure,
            self.vocabulary,
            self.schema,
            PlacingFacts.from_json(version.document("placing.json"), version.array("feature_vectors.npy")),
            facts.max_beam,
            facts.paths_per_item,
            self.network,
            attributes.schema,
        )
        if len(version.array("feature_vectors.npy")) != attributes.schema.size + 1:
            raise VersionDamaged("attributes.json and feature_vectors.npy differ in the number of features")
        if not structure.reads_context(len(self.schema.categories), len(self.schema.numbers)):
            raise VersionDamaged("context.json and model.onnx differ in the number of features")

    @classmethod
    def open(cls, version: Version, slots: int = 0) -> Searcher:
        """Open a version, so that it can answer. A new kind of version would be opened here too.

        slots: the most new items for which the searcher has room; with 0 it has no overlay. Raises VersionIncompatible
        for a kind that this release does not know, VersionDamaged if parts do not fit.
        """
        manifest = version.manifest
        require_known_kind(manifest)
        with naming(manifest.version):
            for name, limit in (("k", Limits.K), ("history", Limits.HISTORY)):
                if getattr(manifest, name) > limit:
                    raise VersionDamaged(f"{name}: expected at most {limit}, found {getattr(manifest, name)}")
            facts = PathFacts.of(manifest.structure)
            return cls(version, facts, PathStructure.open(version, facts), slots)

    @property
    def network(self) -> str:
        """The network, as changes of items name it."""
        return self.manifest.parts["model.onnx"].sha256[:16]

    def _overlay(self, structure: PathStructure, slots: int) -> Overlay:
        index, manifest = structure.index, self.manifest
        overlay = Overlay(
            self.vocabulary,
            index.path_ids,
            index.item_bias,
            index.ends,
            index.late,
            self.version.array("item_since.npy"),
            embedding=manifest.embedding,
            paths_per_item=self.facts.paths_per_item,
            network=self.network,
            slots=slots,
            place=manifest.covers,
        )
        overlay.add_late(index.late_sizes)
        return overlay

    def default_search(self, k: int) -> tuple[int, int]:
        """(beam, per_path) for a request of k items with neither beam nor per_path."""
        return default_search(self.facts, k, self.manifest.k)

    def prepare(self, request: Request) -> tuple[Query, Unknown]:
        """The request as a query of this version, without unknown ids and values, and the number of these.

        Raises BadQuery if beam is above the version's max_beam, or if beam times per_path is above Limits.READS.
        """
        k = request.k or self.manifest.k
        default_beam, default_per_path = self.default_search(k)
        # If the request names beam or per_path, the default of the other is reduced where needed. So the request does
        # not become too large when a version with larger defaults is swapped in.
        beam = request.beam or min(default_beam, max(1, Limits.READS // (request.per_path or 1)))
        per_path = request.per_path or min(default_per_path, Limits.READS // beam)
        if beam > self.facts.max_beam:
            raise BadQuery(f"beam: expected at most {self.facts.max_beam} for this version")
        if beam * per_path > Limits.READS:
            raise BadQuery(f"beam, per_path: expected a product of at most {Limits.READS}, the items that are read")
        known = self.vocabulary.indices(request.history)
        excluded = self.vocabulary.indices(request.exclude)
        if request.exclude_history:
            excluded = np.concatenate([excluded, known])
        categories, numbers, unknown = self.schema.encode(request.context)
        query = Query(
            history=known[-self.manifest.history :],
            categories=categories,
            numbers=numbers,
            k=k,
            beam=beam,
            per_path=per_path,
            excluded=excluded,
            rerank=request.rerank,
            widen=request.beam is None,
        )
        return query, Unknown(len(request.history) - len(known), unknown)

    def paths_of(self, item: ItemId) -> list[int]:
        """The ids of the paths on which the item is found, ascending; none if the lists of the version are remote."""
        known = self.vocabulary.indices([item])
        return self.structure.index.paths_of(int(known[0])) if len(known) else []

    def is_live(self, item: ItemId) -> bool:
        """Whether the item is in the catalogue, and neither deleted nor expired."""
        known = self.vocabulary.indices([item])
        return bool(len(known) and self.structure.index.live(known)[0])

    def is_in_catalogue(self, item: ItemId) -> bool:
        """Whether the item was put and not deleted; it may have expired."""
        known = self.vocabulary.indices([item])
        return bool(len(known) and self.structure.index.end_of(known)[0] > 0)

    def apply(self, records: Sequence[Record]) -> int:
        """Apply records of the log to the overlay, and return how many changes found no room (`Overlay.apply`).

        They must follow `overlay.place`; for one thread at a time. Raises LogDamaged; then nothing has changed.
        """
        return self.change(changes_of(records), records[-1].place)

    def change(self, changes: Sequence[Change], place: Place) -> int:
        """`apply` of the changes in records up to `place`."""
        assert self.overlay
        left_out = self.overlay.apply(changes, place, lambda puts: self.place([put.evidence for put in puts]))
        self.descriptions.apply(changes)
        return left_out

    def folded_parts(self) -> tuple[dict[str, bytes], int, int, list[ItemId]]:
        """See `fold.folded_parts`."""
        parts, items, postings, expired = folded_parts(self.structure.index, self.vocabulary)
        features = self.version.array("feature_vectors.npy")
        return parts | self.descriptions.folded_parts(features), items, postings, expired

    def at(self, clock: Callable[[], float]) -> Searcher:
        """The same searcher with another clock, which says which items have expired; seconds since 1970."""
        other = copy.copy(self)
        other.structure = replace(self.structure, index=replace(self.structure.index, clock=clock))
        return other

    def where(self, item: ItemId) -> Placement:
        """Where an item is found that is in the catalogue, as a placement that keeps it there."""
        (at,), index = self.vocabulary.indices([item]).tolist(), self.structure.index
        table, new, bias, *_ = index.item_arrays
        row = table[at] if at < len(table) else new[at - len(table)]
        paths = index.paths_of(at)
        return Placement(row.copy().view(np.float16), float(bias[at]), paths, "kept", self.network)

    def place(self, evidence: Sequence[Evidence]) -> list[Placement]:
        """A place for each new item, of which the evidence is known."""
        return self._placer.place(evidence)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer queries together; all must have the same `beam` and `rerank`. If an answer is short, search wider."""
        return self.structure.answer(queries)

    def answer_once(self, queries: Sequence[Query]) -> list[Answer]:
        """`answer` without a wider search. `widen` continues from these answers."""
        return self.structure.answer_once(queries)

    def can_widen(self, query: Query, answer: Answer) -> bool:
        """Whether a wider search may find more than `answer`."""
        return self.structure.can_widen(query, answer)

    def widen(self, queries: Sequence[Query], answers: Sequence[Answer]) -> list[Answer]:
        """Search wider for the queries with a short answer and `widen` set. Returns all answers, in order."""
        return self.structure.widen(queries, answers)


def require_known_kind(manifest: Manifest) -> None:
    """Raise VersionIncompatible for a kind of version that this release cannot open."""
    if manifest.kind != "paths":
        raise VersionIncompatible(
            f"{manifest.version}: a structure of kind {manifest.kind!r}, but this release opens paths only; upgrade it"
        )
