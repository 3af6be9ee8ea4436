"""Golden queries: recorded when a version is made, replayed before it is served.

They show that model, paths, vectors and reranker belong together and work on this machine, which digests cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.errors import VersionDamaged
from index_store.index import Index, Reranker
from index_store.retrieval import fetch, rerank, search

#: Log-probabilities and scores may differ this much between processors, relative to values above 1.
TOLERANCE = 1e-3


def record(
    session: Any,
    index: Index,
    reranker: Reranker,
    histories: Sequence[NDArray[np.int64]],
    categories: NDArray[np.int64],
    numbers: NDArray[np.float32],
    *,
    beam: int,
    per_path: int,
    k: int,
) -> dict[str, Any]:
    """The content of golden.json: the queries, item indices and codes, and what this version answers."""
    queries = {
        "histories": [history.tolist() for history in histories],
        "categories": categories.tolist(),
        "numbers": numbers.astype(float).tolist(),
        "beam": beam,
        "per_path": per_path,
        "k": k,
    }
    return queries | {"answers": _answers(session, index, reranker, queries)}


def replay(session: Any, index: Index, reranker: Reranker, golden: Any, name: str) -> None:
    """Raise VersionDamaged unless the golden queries get their recorded answers.

    Values are compared rank by rank; an item may differ where its score ties with another's.
    """
    try:
        try:
            found = _answers(session, index, reranker, golden)
        except VersionDamaged as error:
            raise VersionDamaged(f"{name}: {error}") from None
        recorded = golden["answers"]
        if not recorded or len(recorded) != len(found):
            raise VersionDamaged(f"{name}: {len(recorded)} golden answers for {len(found)} queries")
        for number, (expected, got) in enumerate(zip(recorded, found, strict=True)):
            for what in ("log_probs", "scores"):
                if not _close(expected[what], got[what]):
                    raise VersionDamaged(
                        f"{name}: golden query {number} has other {what} than recorded; "
                        "model, paths, vectors and reranker do not belong together, publish again"
                    )
            lost = np.isin(expected["items"], got["items"], invert=True)
            cut = min(expected["scores"], default=0.0)
            if not _close(np.array(expected["scores"])[lost], np.full(lost.sum(), cut)):
                raise VersionDamaged(f"{name}: golden query {number} has other items than recorded; publish again")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise VersionDamaged(f"{name}: golden.json cannot be replayed ({type(error).__name__})") from None


def _answers(session: Any, index: Index, reranker: Reranker, queries: Any) -> list[dict[str, Any]]:
    histories = [np.array(history, np.int64) for history in queries["histories"]]
    if any(len(history) and not 0 <= history.min() <= history.max() < len(index.item_bias) for history in histories):
        raise IndexError
    beams = search(
        session,
        index,
        histories,
        np.array(queries["categories"], np.int64).reshape(len(histories), -1),
        np.array(queries["numbers"], np.float32).reshape(len(histories), -1),
        queries["beam"],
        max(1, *map(len, histories)),
    )
    postings = fetch(index, beams, queries["per_path"])
    answers = rerank(index, beams, postings, reranker, [queries["k"]] * len(histories), histories)
    return [
        {
            "log_probs": log_probs[rows >= 0].astype(float).tolist(),
            "items": answer.items.tolist(),
            "scores": answer.scores.astype(float).tolist(),
        }
        for log_probs, rows, answer in zip(beams.log_probs, beams.paths, answers, strict=True)
    ]


def _close(expected: Any, found: Any) -> bool:
    expected, found = np.asarray(expected, float), np.asarray(found, float)
    return expected.shape == found.shape and bool(
        np.isfinite(found).all() and np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    )
