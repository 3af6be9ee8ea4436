"""From a beam to an answer: fetch the items on its paths, score each once, keep the best k.

The trainer measures with this and the service answers with it, so that what is measured is what is served. All
of it works on B requests at once and is linear in the items read; no loop runs over paths or items.

Shapes: B requests, W paths a request, n items a path, N candidates of all requests, E embedding, V items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index_store.errors import StoreUnavailable, VersionDamaged

#: Most items one request may read: beam times items per path.
MAX_READS = 50_000
#: What the reranker sees of a candidate, in this order.
FEATURES = ("logit", "bias", "path_log_prob", "paths")


class Postings(NamedTuple):
    """The items of some paths, end to end.

    items: int32 (total,), the first path's items, then the second's, ...
    lengths: int64 (len(path_ids),), how many of them belong to each path; 0 for a path not in use.
    """

    items: NDArray[np.int32]
    lengths: NDArray[np.int64]


#: Reads path lists where they are kept, if not here: (path_ids int64 (W,), all in use, lengths int64 (W,)) to the
#: first lengths[w] items of each path, end to end, int32.
PathReader = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int32]]


@dataclass(frozen=True)
class Index:
    """The path lists and what is needed to score an item. See version.py for the arrays."""

    path_ids: NDArray[np.int64]  # (P,) ascending
    path_offsets: NDArray[np.int64]  # (P + 1,)
    path_items: NDArray[np.int32]  # (postings,); (0,) where `read_paths` reads them
    item_vectors: NDArray[np.float16]  # (V, E)
    item_bias: NDArray[np.float32]  # (V,)
    read_paths: PathReader | None = None

    def lookup(self, path_ids: NDArray[np.int64], n: int | NDArray[np.int64]) -> Postings:
        """The first `n` items of each of `path_ids`, int64 (W,); a path not in use has none. n: one, or (W,)."""
        rows = np.minimum(np.searchsorted(self.path_ids, path_ids), len(self.path_ids) - 1)
        return self.read(np.where(self.path_ids[rows] == path_ids, rows, -1), n)

    def read(self, rows: NDArray[np.integer[Any]], n: int | NDArray[np.int64]) -> Postings:
        """The first `n` items of each of the paths in these rows, (W,); -1 is no path and has none. n: one, or (W,)."""
        starts = self.path_offsets[rows]
        lengths = np.minimum(self.path_offsets[rows + 1] - starts, n)
        np.maximum(lengths, 0, out=lengths)  # of -1: first offset less last
        if self.read_paths:
            used = lengths > 0
            items = self.read_paths(self.path_ids[rows[used]], lengths[used])
            if len(items) and (items.min() < 0 or items.max() >= len(self.item_bias)):
                raise StoreUnavailable(f"a path list names an item outside 0..{len(self.item_bias) - 1}; publish again")
            return Postings(items, lengths)
        ends = np.cumsum(lengths)
        # Each output slot is its path's start plus its place within the path.
        slots = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
        return Postings(self.path_items[slots], lengths)


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

    @property
    def path_log_prob(self) -> NDArray[np.float32]:
        return self.features[:, 2]


@dataclass(frozen=True)
class Reranker:
    """A linear score of a candidate's features: the fitted logistic regression's, or the softmax head's logit."""

    kind: str  # "lr" or "softmax"
    weights: NDArray[np.float32]  # (4,)
    intercept: float

    def scores(self, candidates: Candidates) -> NDArray[np.float32]:
        """(N,), higher is better. lr: log-odds of a click; softmax: the unnormalised log-probability."""
        return candidates.features @ self.weights + np.float32(self.intercept)

    def to_json(self) -> dict[str, Any]:
        weights = dict(zip(FEATURES, map(float, self.weights), strict=True))
        return {"kind": self.kind, "weights": weights, "intercept": self.intercept}

    @classmethod
    def from_json(cls, document: Any) -> Reranker:
        """Raises VersionDamaged for other features or numbers that are not finite."""
        try:
            weights = np.array([document["weights"][name] for name in FEATURES], np.float32)
            reranker = cls(document["kind"], weights, float(document["intercept"]))
        except (KeyError, TypeError, ValueError):
            raise VersionDamaged(f"reranker.json: expected weights of {', '.join(FEATURES)}") from None
        if not np.isfinite(weights).all() or not np.isfinite(reranker.intercept):
            raise VersionDamaged("reranker.json: a weight is not finite")
        return reranker


#: The softmax head alone: its logit is the score.
SOFTMAX = Reranker("softmax", np.array([1, 0, 0, 0], np.float32), 0.0)
#: No rerank: the most probable paths' items first.
BY_PATH = Reranker("path", np.array([0, 0, 1, 0], np.float32), 0.0)


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
    before included; candidates: how many different ones.
    """

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    path_log_probs: NDArray[np.float32]
    paths: int
    read: int
    candidates: int


def fetch(index: Index, beams: Beams, n: int | NDArray[np.int64]) -> tuple[Candidates, NDArray[np.int64]]:
    """The candidates of B beams, and how many items each request read, (B,)."""
    batch, width = beams.paths.shape
    postings = index.read(beams.paths.ravel(), n if isinstance(n, int) else np.repeat(n, width))
    slot = np.repeat(np.arange(batch * width), postings.lengths)
    # An item found on several paths becomes one candidate: sort by (request, item), then sum over equal ones.
    items = len(index.item_bias)
    key = slot // width * items + postings.items
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])[: len(key)])
    found = key[first]
    request = found // items
    item = found - request * items
    features = np.empty((len(first), len(FEATURES)), np.float32)
    bias = index.item_bias[item]
    vectors = index.item_vectors[item].astype(np.float32)
    np.add(np.einsum("ne,ne->n", vectors, beams.user[request]), bias, out=features[:, 0])
    features[:, 1] = bias
    if len(first):
        np.logaddexp.reduceat(beams.log_probs.ravel()[slot[order]], first, out=features[:, 2])
        features[:-1, 3] = first[1:] - first[:-1]
        features[-1, 3] = len(key) - first[-1]
    read = postings.lengths.reshape(batch, width).sum(axis=1)
    return Candidates(request, item, features), read


def rerank(
    candidates: Candidates,
    paths: NDArray[np.int64],
    read: NDArray[np.int64],
    reranker: Reranker,
    k: Sequence[int],
    excluded: Sequence[NDArray[np.int64]],
    items: int,
) -> list[Answer]:
    """Each request's k[b] best candidates that are not excluded[b] (item indices). items: V; paths, read: see Answer.

    What is excluded is left out before the cut, so it costs no place among the k. Equal scores go by item index.
    """
    batch = len(k)
    request, item = candidates.request, candidates.item
    scores = reranker.scores(candidates)
    # Candidates lie by request and item, so what is not wanted is found by bisection.
    key = request * items + item
    unwanted = np.concatenate([b * items + e for b, e in enumerate(excluded)]) if batch else np.empty(0, np.int64)
    place = np.searchsorted(key, unwanted)
    place = place[np.append(key, -1)[place] == unwanted]
    keep = np.ones(len(key), bool)
    keep[place] = False
    order = np.flatnonzero(keep)
    order = order[np.lexsort((-scores[order], request[order]))]
    bounds = np.searchsorted(request[order], np.arange(batch + 1))
    found = np.bincount(candidates.request, minlength=batch)
    answers = []
    for b in range(batch):
        best = order[bounds[b] : min(bounds[b] + k[b], bounds[b + 1])]
        answers.append(
            Answer(
                candidates.item[best],
                scores[best],
                candidates.path_log_prob[best],
                int(paths[b]),
                int(read[b]),
                int(found[b]),
            )
        )
    return answers


def answer(
    session: Any, index: Index, reranker: Reranker, queries: Sequence[Query], longest: int, max_beam: int
) -> list[Answer]:
    """Answer queries that agree in `beam` and `rerank`, all at once.

    One that may widen and finds fewer than k is searched again with twice the beam, as far as `max_beam` and MAX_READS
    let it. longest: history items the model reads.
    """
    beam = queries[0].beam
    answers = _answer_once(session, index, reranker, queries, longest, beam)
    waiting = [i for i, query in enumerate(queries) if query.widen]
    while beam < max_beam:
        beam = min(2 * beam, max_beam)
        waiting = [
            i for i in waiting if len(answers[i].items) < queries[i].k and beam * queries[i].per_path <= MAX_READS
        ]
        if not waiting:
            break
        again = _answer_once(session, index, reranker, [queries[i] for i in waiting], longest, beam)
        for i, found in zip(waiting, again, strict=True):
            answers[i] = found._replace(read=answers[i].read + found.read)
    return answers


def _answer_once(
    session: Any, index: Index, reranker: Reranker, queries: Sequence[Query], longest: int, beam: int
) -> list[Answer]:
    beams = search(
        session,
        index,
        pad_histories([query.history for query in queries], longest),
        np.array([query.categories for query in queries], np.int64).reshape(len(queries), -1),
        np.array([query.numbers for query in queries], np.float32).reshape(len(queries), -1),
        beam,
    )
    candidates, read = fetch(index, beams, np.array([query.per_path for query in queries]))
    return rerank(
        candidates,
        (beams.paths >= 0).sum(axis=1),
        read,
        reranker if queries[0].rerank else BY_PATH,
        [query.k for query in queries],
        [query.excluded for query in queries],
        len(index.item_bias),
    )


def pad_histories(histories: Sequence[NDArray[np.int64]], longest: int) -> NDArray[np.int64]:
    """The last `longest` items of each history, (B, T), -1 after its end. T is the longest there is, at least 1."""
    histories = [history[-longest:] for history in histories]
    lengths = np.array([len(history) for history in histories])
    padded = np.full((len(histories), max(1, lengths.max(initial=0))), -1, np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate([*histories, np.empty(0, np.int64)])
    return padded


def search(
    session: Any,
    index: Index,
    histories: NDArray[np.int64],
    categories: NDArray[np.int64],
    numbers: NDArray[np.float32],
    beam: int,
) -> Beams:
    """Run model.onnx in `session`, an onnxruntime.InferenceSession. Shapes (B, T), (B, C), (B, M).

    Raises VersionDamaged if it names a path that is none of the index's.
    """
    there = histories >= 0
    vectors = index.item_vectors[histories]
    if not there.all():
        vectors[~there] = 0
    feeds = {
        "history": vectors,
        "length": there.sum(axis=1),
        "categories": categories,
        "numbers": numbers,
        "beam": np.array(beam),
    }
    beams = Beams(*session.run(["user", "paths", "path_log_probs"], feeds))
    if beams.paths.min() < -1 or beams.paths.max() >= len(index.path_ids):
        raise VersionDamaged("model.onnx names a path that the version has not; publish again")
    return beams
