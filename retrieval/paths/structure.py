"""PathStructure: one opened structure of kind "paths", from queries to answers (Sec. 3).

A search is: run the network for the W most probable paths (beam search, Algorithm 1), read the first n items of each,
score every item once, keep the best k. The trainer measures with this and the service answers with it, so what is
measured is what is served. All of it works on B queries at once; the loops over items are compiled (kernels.py).

Shapes: B queries, W paths a query, n items a path, E embedding, V items, C and M context features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.errors import VersionDamaged
from index_store.path_facts import PathFacts
from index_store.version import Version
from retrieval.paths import kernels
from retrieval.paths.index import PathIndex, Postings
from retrieval.paths.rerank import BY_PATH, Beams, Reranker, rerank
from retrieval.paths.trie import path_trie
from retrieval.query import Answer, Limits, Query
from retrieval.session import on_its_device, open_session

#: The types of the network's outputs: user, paths and path_log_probs.
TYPES = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.float32)


def default_search(facts: PathFacts, k: int, usual_k: int) -> tuple[int, int]:
    """(beam, per_path) for a request of k items that names neither.

    The defaults in `facts` were measured for `usual_k` items. For more items, the beam widens in proportion, then more
    items are read of each path, at most Limits.READS in all.
    """
    more = max(1.0, k / usual_k)
    beam = max(facts.beam, min(facts.max_beam, math.ceil(facts.beam * more)))
    per_path = math.ceil(facts.per_path * max(1.0, more * facts.beam / beam))
    return beam, min(per_path, Limits.READS // beam)


@dataclass(frozen=True)
class PathStructure:
    """The network, the trie that its beam follows, and the path lists. Never changes."""

    session: Any  # has onnxruntime.InferenceSession's `run`
    index: PathIndex
    trie: Any  # int32 (R, K), see `path_trie`, where the session wants it
    reranker: Reranker
    history: int  # most recent items that the network reads
    max_beam: int

    @classmethod
    def open(cls, version: Version, facts: PathFacts) -> PathStructure:
        """The structure of a version. Raises VersionDamaged where its parts do not fit each other or the facts."""
        if facts.max_beam > Limits.BEAM:
            raise VersionDamaged(f"max_beam: expected at most {Limits.BEAM}, found {facts.max_beam}")
        index = PathIndex.of(version)
        model = Path(version.folder, "model.onnx") if version.folder else bytes(version.parts["model.onnx"])
        try:
            session = open_session(model)
        except Exception as error:  # noqa: BLE001 -- the runtime has no error class of its own for a bad model
            raise VersionDamaged(f"model.onnx cannot be loaded ({type(error).__name__})") from None
        if _columns(session, "trie") != facts.width:
            raise VersionDamaged("model.onnx searches another width than the manifest says")
        trie = on_its_device(session, path_trie(index.path_ids, facts.depth, facts.width))
        reranker = Reranker.from_json(version.document("reranker.json"))
        return cls(session, index, trie, reranker, version.manifest.history, facts.max_beam)

    def reads_context(self, categories: int, numbers: int) -> bool:
        """Whether the network reads so many categories and numbers of a user."""
        return (_columns(self.session, "categories"), _columns(self.session, "numbers")) == (categories, numbers)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer queries that agree in `beam` and `rerank`, all at once."""
        return self.widen(queries, self.answer_once(queries))

    def answer_once(self, queries: Sequence[Query]) -> list[Answer]:
        """The same without searching any query wider, however few items come out."""
        return self._answer(queries, queries[0].beam)

    def can_widen(self, query: Query, answer: Answer) -> bool:
        """Whether `widen` may find more for a query that so far has this answer."""
        wider = min(2 * query.beam, self.max_beam)
        paths_left = wider > query.beam and wider * query.per_path <= Limits.READS
        items_left = answer.candidates < self.index.items <= Limits.READS
        return query.widen and answer.short and (paths_left or items_left)

    def widen(self, queries: Sequence[Query], answers: Sequence[Answer]) -> list[Answer]:
        """Search on for those that may widen and have fewer than k items; the others keep their answers.

        The beam is doubled as far as `max_beam` and Limits.READS allow. With resident lists, queries are searched in
        groups that together read at most Limits.READS items. A query that still has fewer than k then reads the whole
        catalogue, if that has at most Limits.READS items. The new answers' `read` includes earlier reads.
        """
        answers, beam = list(answers), queries[0].beam
        waiting = [i for i, query in enumerate(queries) if query.widen]
        while beam < self.max_beam:
            beam = min(2 * beam, self.max_beam)
            waiting = [i for i in waiting if answers[i].short and beam * queries[i].per_path <= Limits.READS]
            if not waiting:
                break
            # Where lists are remote, waiting for them takes longer than reading many together.
            for group in [waiting] if self.index.read_paths else _groups(waiting, queries, beam):
                again = self._answer([queries[i] for i in group], beam)
                for i, wider in zip(group, again, strict=True):
                    answers[i] = wider._replace(read=answers[i].read + wider.read)
        if self.index.items <= Limits.READS:
            for i, query in enumerate(queries):
                if query.widen and answers[i].short and answers[i].candidates < self.index.items:
                    (whole,) = self._answer([query], beam, whole_catalogue=True)
                    answers[i] = whole._replace(read=answers[i].read + whole.read)
        return answers

    def search(
        self,
        histories: Sequence[NDArray[np.int64]],
        categories: NDArray[np.int64],
        numbers: NDArray[np.float32],
        beam: int,
    ) -> Beams:
        """Run the network for B users.

        histories: item indices, 0 to V - 1, which is not checked here; the last `history` of each are read. categories,
        numbers: (B, C), (B, M). Raises VersionDamaged if the network names a path that the index does not have.
        """
        histories = [history[-self.history :] for history in histories]
        lengths = np.array(list(map(len, histories)))
        items = histories[0] if len(histories) == 1 else np.concatenate(histories)
        vectors = self.index.item_vectors
        feeds = {
            "history": kernels.padded(vectors.view(np.uint16), items, lengths).view(np.float16),
            "length": lengths,
            "categories": categories,
            "numbers": numbers,
            "beam": np.array(beam),
            "trie": self.trie,
        }
        beams = Beams(*self.session.run(["user", "paths", "path_log_probs"], feeds))
        if (
            beams.user.shape != (len(histories), vectors.shape[1])
            or beams.paths.ndim != 2
            or len(beams.paths) != len(histories)
            or beams.log_probs.shape != beams.paths.shape
            or (beams.user.dtype, beams.paths.dtype, beams.log_probs.dtype) != TYPES
        ):
            raise VersionDamaged("model.onnx answers in other shapes or types than a version's; publish again")
        if not kernels.all_within(beams.paths, -1, len(self.index.path_ids)):
            raise VersionDamaged("model.onnx names a path that the version does not have; publish again")
        return beams

    def read(self, beams: Beams, n: int | NDArray[np.int64]) -> Postings:
        """The first n items of each path of B beams, with lengths (B, W). n: a number for all beams, or (B,)."""
        limits = n if isinstance(n, int) else np.repeat(n, beams.paths.shape[1])
        postings = self.index.read(beams.paths.ravel(), limits)
        return Postings(postings.items, postings.lengths.reshape(beams.paths.shape))

    def _answer(self, queries: Sequence[Query], beam: int, *, whole_catalogue: bool = False) -> list[Answer]:
        """whole_catalogue: of one query, also the items that are on no searched path."""
        beams = self.search(
            [query.history for query in queries],
            np.array([query.categories for query in queries], np.int64).reshape(len(queries), -1),
            np.array([query.numbers for query in queries], np.float32).reshape(len(queries), -1),
            beam,
        )
        postings = self.read(beams, np.array([query.per_path for query in queries]))
        return rerank(
            self.index,
            beams,
            _with_the_rest(postings, self.index.items) if whole_catalogue else postings,
            self.reranker if queries[0].rerank else BY_PATH,
            [query.k for query in queries],
            [query.excluded for query in queries],
        )


def _columns(session: Any, name: str) -> object:
    """The last dimension of the network's input of that name; None if there is no such input."""
    return next((entry.shape[-1] for entry in session.get_inputs() if entry.name == name and entry.shape), None)


def _groups(waiting: Sequence[int], queries: Sequence[Query], beam: int) -> Iterator[list[int]]:
    """The waiting queries, in order, in groups that read at most Limits.READS items together."""
    group: list[int] = []
    reads = 0
    for i in waiting:
        reads += beam * queries[i].per_path
        if group and reads > Limits.READS:
            yield group
            group, reads = [], beam * queries[i].per_path
        group.append(i)
    yield group


def _with_the_rest(postings: Postings, items: int) -> Postings:
    """The postings of one beam, with all other items added to its last path that has items (the first if none has).

    The added items lie on less probable paths, so the probability of that path is an upper bound for theirs.
    """
    on_a_path = np.zeros(items, bool)
    on_a_path[postings.items] = True
    rest = np.flatnonzero(~on_a_path).astype(np.int32)
    lengths = postings.lengths.copy()
    lengths[0, np.flatnonzero(lengths[0])[-1] if lengths.any() else 0] += len(rest)
    return Postings(np.concatenate([postings.items, rest]), lengths)
