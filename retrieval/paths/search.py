"""From a beam to an answer: fetch the items on its paths, score each once, keep the best k.

The trainer measures with this and the service answers with it, so that what is measured is what is served. All
of it works on B requests at once; the loops over items are compiled (kernels.py).

Shapes: B requests, W paths a request, n items a path, N candidates of all requests, E embedding, V items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index_store.errors import VersionDamaged
from retrieval.paths import kernels
from retrieval.paths.index import BY_PATH, Index, Postings, Reranker
from retrieval.query import Limits

#: Of user, paths and path_log_probs.
TYPES = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.float32)


@dataclass(frozen=True)
class Beams:
    """What the ONNX model answers for B requests.

    user: float32 (B, E). paths: int32 (B, W), rows of `path_ids`, and log_probs: float32 (B, W), best first; row -1 is
    no path.
    """

    user: NDArray[np.float32]
    paths: NDArray[np.int32]
    log_probs: NDArray[np.float32]


@dataclass(frozen=True)
class Candidates:
    """The items found for B requests, N in all, in ascending order of request, then item, each once a request.

    request, item: int64 (N,). features: float32 (N, 4), see FEATURES: the softmax head's logit, the item's bias,
    log of the summed probability of the retrieved paths that hold the item, and how many those are.
    """

    request: NDArray[np.int64]
    item: NDArray[np.int64]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Query:
    """A request in a version's own terms: item indices, feature codes, standardised numbers."""

    history: NDArray[np.int64]  # oldest first; the model reads the last of it
    categories: Sequence[int]  # (C,)
    numbers: Sequence[float]  # (M,)
    k: int
    beam: int  # W
    per_path: int  # n
    excluded: NDArray[np.int64]
    rerank: bool = True  # else the most probable paths' items first
    widen: bool = True  # search more paths if fewer than k are found


class Answer(NamedTuple):
    """One request's answer, best first. items: int64 (<= k,), scores and path_log_probs: float32 of the same length.

    paths: how many were searched; read: how many items they held, each path capped at n, those of a narrower search
    before included; candidates: how many different ones. narrowed: searched with a narrower beam than asked for.
    """

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    path_log_probs: NDArray[np.float32]
    paths: int
    read: int
    candidates: int
    narrowed: bool = False


def fetch(index: Index, beams: Beams, n: int | NDArray[np.int64]) -> Postings:
    """The first n items of each path of B beams, n or n[b] of each; their lengths are (B, W)."""
    width = beams.paths.shape[1]
    found = index.read(beams.paths.ravel(), n if isinstance(n, int) else np.repeat(n, width))
    return Postings(found.items, found.lengths.reshape(beams.paths.shape))


def join(index: Index, beams: Beams, postings: Postings) -> Candidates:
    """What was fetched for B beams, each item once a request."""
    request, item, log_prob, paths = kernels.join(
        postings.items, postings.lengths, np.ascontiguousarray(beams.log_probs)
    )
    vectors, user = index.item_vectors.view(np.uint16), np.ascontiguousarray(beams.user)
    return Candidates(request, item, kernels.features(vectors, index.item_bias, user, request, item, log_prob, paths))


def rerank(
    index: Index,
    beams: Beams,
    postings: Postings,
    reranker: Reranker,
    k: Sequence[int],
    excluded: Sequence[NDArray[np.int64]],
) -> list[Answer]:
    """Of what was fetched each request's k[b] best items that are not excluded[b] (item indices).

    What is excluded is left out before the cut, so it costs no place among the k. Equal scores go by item index.
    """
    assert len(k) == len(excluded) == len(beams.paths)
    items, scores, log_probs, counts = kernels.rerank(
        postings.items,
        postings.lengths,
        np.ascontiguousarray(beams.log_probs),
        index.item_vectors.view(np.uint16),
        index.item_bias,
        np.ascontiguousarray(beams.user),
        reranker.weights,
        reranker.intercept,
        np.array(k, np.int64),
        excluded[0] if len(excluded) == 1 else np.concatenate([np.empty(0, np.int64), *excluded]),
        np.array([0, *accumulate(map(len, excluded))]),
    )
    answers = []
    start = 0
    for end, *others in counts.T.tolist():
        best = slice(start, end)
        answers.append(Answer(items[best], scores[best], log_probs[best], *others))
        start = end
    return answers


def answer(
    session: Any, index: Index, reranker: Reranker, queries: Sequence[Query], longest: int, max_beam: int
) -> list[Answer]:
    """Answer queries that agree in `beam` and `rerank`, all at once.

    One that may widen and finds fewer than k is searched again with twice the beam, as far as `max_beam` and
    Limits.READS let it; where lists are resident, with no more others than may read Limits.READS together. If it then
    still finds fewer than k, the whole catalogue is read, where that has at most Limits.READS items. longest: history
    items the model reads.
    """
    beam = queries[0].beam
    answers = _answer_once(session, index, reranker, queries, longest, beam)
    waiting = [i for i, query in enumerate(queries) if query.widen]
    while beam < max_beam:
        beam = min(2 * beam, max_beam)
        waiting = [
            i for i in waiting if len(answers[i].items) < queries[i].k and beam * queries[i].per_path <= Limits.READS
        ]
        if not waiting:
            break
        # Where lists are remote, waiting for them takes longer than reading many together.
        for group in [waiting] if index.read_paths else _groups(waiting, queries, beam):
            again = _answer_once(session, index, reranker, [queries[i] for i in group], longest, beam)
            for i, found in zip(group, again, strict=True):
                answers[i] = found._replace(read=answers[i].read + found.read)
    if len(index.item_bias) <= Limits.READS:
        for i, query in enumerate(queries):
            if query.widen and len(answers[i].items) < query.k and answers[i].candidates < len(index.item_bias):
                (found,) = _answer_once(session, index, reranker, [query], longest, beam, whole_catalogue=True)
                answers[i] = found._replace(read=answers[i].read + found.read)
    return answers


def _groups(waiting: Sequence[int], queries: Sequence[Query], beam: int) -> Iterator[list[int]]:
    """Those who wait, in order, in groups that read no more than Limits.READS together."""
    group: list[int] = []
    reads = 0
    for i in waiting:
        reads += beam * queries[i].per_path
        if group and reads > Limits.READS:
            yield group
            group, reads = [], beam * queries[i].per_path
        group.append(i)
    yield group


def _answer_once(
    session: Any,
    index: Index,
    reranker: Reranker,
    queries: Sequence[Query],
    longest: int,
    beam: int,
    *,
    whole_catalogue: bool = False,
) -> list[Answer]:
    """whole_catalogue: of one query, also the items that are on no searched path."""
    beams = search(
        session,
        index,
        [query.history for query in queries],
        np.array([query.categories for query in queries], np.int64).reshape(len(queries), -1),
        np.array([query.numbers for query in queries], np.float32).reshape(len(queries), -1),
        beam,
        longest,
    )
    postings = fetch(index, beams, np.array([query.per_path for query in queries]))
    return rerank(
        index,
        beams,
        _with_the_rest(postings, len(index.item_bias)) if whole_catalogue else postings,
        reranker if queries[0].rerank else BY_PATH,
        [query.k for query in queries],
        [query.excluded for query in queries],
    )


def _with_the_rest(postings: Postings, items: int) -> Postings:
    """One beam's postings and all other items, as if they were on the last path that has any: at best they are as
    probable. Where no path has any, on the first.
    """
    found = np.zeros(items, bool)
    found[postings.items] = True
    rest = np.flatnonzero(~found).astype(np.int32)
    lengths = postings.lengths.copy()
    lengths[0, np.flatnonzero(lengths[0])[-1] if lengths.any() else 0] += len(rest)
    return Postings(np.concatenate([postings.items, rest]), lengths)


def search(
    session: Any,
    index: Index,
    histories: Sequence[NDArray[np.int64]],
    categories: NDArray[np.int64],
    numbers: NDArray[np.float32],
    beam: int,
    longest: int,
) -> Beams:
    """Run model.onnx in `session`, an onnxruntime.InferenceSession.

    histories: item indices of B requests, 0 to V - 1, which is not checked here; the last `longest` of each are read.
    categories, numbers: (B, C), (B, M). Raises VersionDamaged if it names a path that is none of the index's.
    """
    histories = [history[-longest:] for history in histories]
    lengths = np.array(list(map(len, histories)))
    items = histories[0] if len(histories) == 1 else np.concatenate(histories)
    feeds = {
        "history": kernels.padded(index.item_vectors.view(np.uint16), items, lengths).view(np.float16),
        "length": lengths,
        "categories": categories,
        "numbers": numbers,
        "beam": np.array(beam),
    }
    beams = Beams(*session.run(["user", "paths", "path_log_probs"], feeds))
    if (
        beams.user.shape != (len(histories), index.item_vectors.shape[1])
        or beams.paths.ndim != 2
        or len(beams.paths) != len(histories)
        or beams.log_probs.shape != beams.paths.shape
        or (beams.user.dtype, beams.paths.dtype, beams.log_probs.dtype) != TYPES
    ):
        raise VersionDamaged("model.onnx answers in other shapes or types than a version's; publish again")
    if not kernels.all_within(beams.paths, -1, len(index.path_ids)):
        raise VersionDamaged("model.onnx names a path that the version has not; publish again")
    return beams
