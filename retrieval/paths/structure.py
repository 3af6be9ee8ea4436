"""PathStructure: an opened structure of kind "paths", which turns queries into answers (Sec. 3 of the paper).

A search has four steps: run the network for the W most probable paths (beam search, Algorithm 1), read the first n
items of each path, score every item once, keep the k best. The trainer measures with the same code with which the
service answers. Each step works on B queries at once; the loops over items are compiled (kernels.py).

Shapes: B queries, W paths per query, n items per path, E numbers in an item vector, V items, C categories and M numbers
of the context.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.errors import VersionDamaged
from index_store.path_facts import PathFacts
from index_store.version import Version
from retrieval.paths import kernels
from retrieval.paths.index import PathIndex, Postings
from retrieval.paths.overlay import Overlay
from retrieval.paths.rerank import BY_PATH, Beams, Reranker, rerank
from retrieval.paths.trie import path_trie
from retrieval.query import Answer, Limits, Query, wider_beams
from retrieval.session import on_its_device, open_session

#: The types of the network's outputs: user, paths and path_log_probs.
TYPES = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.float32)


def default_search(facts: PathFacts, k: int, usual_k: int) -> tuple[int, int]:
    """(beam, per_path) for a request of k items with neither beam nor per_path.

    The defaults in `facts` were measured for `usual_k` items. For a larger k, the beam grows in proportion to k up to
    facts.max_beam. Then per_path grows, as long as beam times per_path is at most Limits.READS.
    """
    more = max(1.0, k / usual_k)
    beam = max(facts.beam, min(facts.max_beam, math.ceil(facts.beam * more)))
    per_path = math.ceil(facts.per_path * max(1.0, more * facts.beam / beam))
    return beam, min(per_path, Limits.READS // beam)


@dataclass(frozen=True)
class PathStructure:
    """The network, the trie that its beam search follows, and the path lists. Only the overlay of its index changes."""

    session: Any  # has `run` of onnxruntime.InferenceSession
    index: PathIndex
    trie: Any  # int32 (R, K), see `path_trie`; in GPU memory if the session runs on a GPU
    reranker: Reranker
    history: int  # number of most recent items that the network reads
    max_beam: int

    @classmethod
    def open(cls, version: Version, facts: PathFacts) -> PathStructure:
        """Open the structure of a version. Raises VersionDamaged if its parts do not fit each other or the facts."""
        if facts.max_beam > Limits.BEAM:
            raise VersionDamaged(f"max_beam: expected at most {Limits.BEAM}, found {facts.max_beam}")
        index = PathIndex.of(version)
        model = Path(version.folder, "model.onnx") if version.folder else bytes(version.parts["model.onnx"])
        try:
            session = open_session(model)
        except Exception as error:  # noqa: BLE001 -- the runtime has no single error class for a bad model
            raise VersionDamaged(f"model.onnx cannot be loaded ({type(error).__name__})") from None
        if _columns(session, "trie") != facts.width:
            raise VersionDamaged("model.onnx and the manifest have different widths K")
        trie = on_its_device(session, path_trie(index.path_ids, facts.depth, facts.width))
        reranker = Reranker.from_json(version.document("reranker.json"))
        return cls(session, index, trie, reranker, version.manifest.history, facts.max_beam)

    def with_overlay(self, overlay: Overlay | None) -> PathStructure:
        """The same structure with an overlay."""
        return replace(self, index=replace(self.index, overlay=overlay))

    def reads_context(self, categories: int, numbers: int) -> bool:
        """Whether the network reads exactly this number of categories and of numbers of a user."""
        return (_columns(self.session, "categories"), _columns(self.session, "numbers")) == (categories, numbers)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer queries together; all must have the same `beam` and `rerank`. If an answer is short, search wider."""
        return self.widen(queries, self.answer_once(queries))

    def answer_once(self, queries: Sequence[Query]) -> list[Answer]:
        """`answer` without a wider search for short answers."""
        return self._answer(queries, queries[0].beam)

    def can_widen(self, query: Query, answer: Answer) -> bool:
        """Whether `widen` can find more items for `query` than `answer` has."""
        wider = min(2 * query.beam, self.max_beam)
        paths_left = wider > query.beam and wider * query.per_path <= Limits.READS
        items_left = answer.candidates < self.index.live_items <= Limits.READS
        return query.widen and answer.short and (paths_left or items_left)

    def widen(self, queries: Sequence[Query], answers: Sequence[Answer]) -> list[Answer]:
        """Search wider for the queries that allow it and have fewer than k items; other queries keep their answers.

        The beam is doubled until k items are found, or until `max_beam` or Limits.READS is reached. If the path lists
        are on this host, queries are searched in groups that together read at most Limits.READS items. If a query then
        still has fewer than k items, the whole catalogue is scored for it, unless the catalogue has more than
        Limits.READS items. `read` in a new answer includes the earlier searches.
        """
        answers, searched = list(answers), [query.beam for query in queries]
        waiting = [i for i, query in enumerate(queries) if query.widen]
        for beam in wider_beams(queries[0].beam, self.max_beam):
            waiting = [i for i in waiting if answers[i].short and beam * queries[i].per_path <= Limits.READS]
            if not waiting:
                break
            # Remote lists are read for all queries at once, because each round trip takes longer than the reading.
            for group in [waiting] if self.index.read_paths else _groups(waiting, queries, beam):
                again = self._answer([queries[i] for i in group], beam)
                for i, wider in zip(group, again, strict=True):
                    answers[i], searched[i] = wider._replace(read=answers[i].read + wider.read), beam
        if self.index.live_items <= Limits.READS:
            for i, query in enumerate(queries):
                if query.widen and answers[i].short and answers[i].candidates < self.index.live_items:
                    (whole,) = self._answer([query], searched[i], whole_catalogue=True)
                    answers[i] = whole._replace(read=answers[i].read + whole.read)
        return answers

    def search(
        self,
        histories: Sequence[NDArray[np.int64]],
        categories: NDArray[np.int64],
        numbers: NDArray[np.float32],
        beam: int,
        new: NDArray[np.uint16] | None = None,
    ) -> Beams:
        """Run the network for B users.

        histories: item indices from 0 to V - 1, which is not checked here; the last `history` of each are read.
        categories: (B, C). numbers: (B, M). new: the bits of the vectors of the items from V on, if they are not those
        of the overlay. Raises VersionDamaged if the outputs have wrong shapes or types, or name a
        path that the index does not have.
        """
        histories = [history[-self.history :] for history in histories]
        lengths = np.array(list(map(len, histories)))
        items = histories[0] if len(histories) == 1 else np.concatenate(histories)
        vectors, of_overlay, *_ = self.index.item_arrays
        added = of_overlay if new is None else new
        feeds = {
            "history": kernels.padded(vectors, added, items, lengths).view(np.float16),
            "length": lengths,
            "categories": categories,
            "numbers": numbers,
            "beam": np.array(beam),
            "trie": self.trie,
        }
        user, paths, log_probs = self.session.run(["user", "paths", "path_log_probs"], feeds)
        beams = Beams(user, paths, log_probs, items, lengths)
        if (
            beams.user.shape != (len(histories), vectors.shape[1])
            or beams.paths.ndim != 2
            or len(beams.paths) != len(histories)
            or beams.log_probs.shape != beams.paths.shape
            or (beams.user.dtype, beams.paths.dtype, beams.log_probs.dtype) != TYPES
        ):
            raise VersionDamaged("the outputs of model.onnx have unexpected shapes or types; publish again")
        if not kernels.all_within(beams.paths, -1, len(self.index.path_ids)):
            raise VersionDamaged("model.onnx names a path that the version does not have; publish again")
        return beams

    def read(self, beams: Beams, n: int | NDArray[np.int64]) -> Postings:
        """The first n items of each path of B beams; lengths are (B, W). n: a number for all beams, or (B,)."""
        limits = n if isinstance(n, int) else np.repeat(n, beams.paths.shape[1])
        postings = self.index.read(beams.paths.ravel(), limits)
        return postings._replace(lengths=postings.lengths.reshape(beams.paths.shape))

    def _answer(self, queries: Sequence[Query], beam: int, *, whole_catalogue: bool = False) -> list[Answer]:
        """Search once. whole_catalogue: also score the items that were not read; for a single query only."""
        beams = self.search(
            [query.history for query in queries],
            np.array([query.categories for query in queries], np.int64).reshape(len(queries), -1),
            np.array([query.numbers for query in queries], np.float32).reshape(len(queries), -1),
            beam,
        )
        n = np.array([query.per_path for query in queries])
        postings = self.read(beams, n)
        if whole_catalogue:
            live = self.index.live()
            while self.index.seq != postings.seq:  # records were applied in between: both must see the same
                postings, live = self.read(beams, n), self.index.live()
            postings = _with_unread_items(postings, live)
        excluded = [query.excluded for query in queries]
        if overlay := self.index.overlay:  # an item may have been put again after the request was prepared
            excluded = [overlay.with_successors(items) for items in excluded]
        return rerank(
            self.index,
            beams,
            postings,
            self.reranker if queries[0].rerank else BY_PATH,
            [query.k for query in queries],
            excluded,
        )


def _columns(session: Any, name: str) -> object:
    """The last dimension of the network's input `name`; None if there is no such input."""
    return next((entry.shape[-1] for entry in session.get_inputs() if entry.name == name and entry.shape), None)


def _groups(waiting: Sequence[int], queries: Sequence[Query], beam: int) -> Iterator[list[int]]:
    """The waiting queries, in order, in groups that together read at most Limits.READS items."""
    group: list[int] = []
    reads = 0
    for i in waiting:
        reads += beam * queries[i].per_path
        if group and reads > Limits.READS:
            yield group
            group, reads = [], beam * queries[i].per_path
        group.append(i)
    yield group


def _with_unread_items(postings: Postings, live: NDArray[np.bool_]) -> Postings:
    """The postings of one beam, with all live items that were not read added to the last path that has items.

    If no path has items, the items are added to the first path. So an unread item counts as if it were on the last
    searched path that has items, although it may be further down the list of any searched path.
    """
    unread = live.copy()
    unread[postings.items] = False
    rest = np.flatnonzero(unread).astype(np.int32)
    lengths = postings.lengths.copy()
    lengths[0, np.flatnonzero(lengths[0])[-1] if lengths.any() else 0] += len(rest)
    return postings._replace(items=np.concatenate([postings.items, rest]), lengths=lengths)
