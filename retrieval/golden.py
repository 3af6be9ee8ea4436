"""Golden queries: requests with their answers, recorded when a version is made and replayed before it is served.

Golden queries are written in a caller's terms (item ids, feature names, raw values) and are answered like any request.
So they prove that ids, context schema, network, paths, vectors and reranker belong together and work on this machine.
Digests cannot prove this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from index_store.errors import VersionDamaged
from retrieval.query import Request
from retrieval.searcher import Searcher

#: Largest allowed difference of a log-probability or score from the recorded value, which another processor may have
#: computed. Absolute plus relative tolerance of numpy.allclose.
TOLERANCE = 1e-3


def record(searcher: Searcher, requests: Sequence[Request], now: int = 0) -> dict[str, Any]:
    """The content of golden.json: the requests, their answers, and the time of these, because items may expire later.

    Each request must name k, beam and per_path. now: seconds since 1970; 0 for a version of which no item expires.
    """
    searcher = searcher.at(lambda: now)
    return {
        "time": now,
        "requests": [dataclasses.asdict(request) for request in requests],
        "answers": [_answer(searcher, request) for request in requests],
    }


def replay(searcher: Searcher, golden: Any) -> None:
    """Raise VersionDamaged unless the golden queries get their recorded answers.

    Scores are compared rank by rank, and path log-probabilities item by item, within TOLERANCE. A recorded item may be
    missing only if its score equals the lowest recorded score, because another item may tie with it.
    """
    name = searcher.manifest.version
    try:
        recorded = golden["answers"]
        then = float(golden["time"])
        searcher = searcher.at(lambda: then)
        requests = [Request(**request) for request in golden["requests"]]
        if not recorded or len(recorded) != len(requests):
            raise VersionDamaged(f"{name}: {len(recorded)} golden answers for {len(requests)} queries")
        for number, (request, expected) in enumerate(zip(requests, recorded, strict=True)):
            answer = _answer(searcher, request)
            if not _close(expected["scores"], answer["scores"]):
                raise _mismatch(name, number, "scores")
            log_probs = dict(zip(answer["item_ids"], answer["path_log_probs"], strict=True))
            log_prob_of = dict(zip(expected["item_ids"], expected["path_log_probs"], strict=True))
            both = [item for item in expected["item_ids"] if item in log_probs]
            if not _close([log_prob_of[item] for item in both], [log_probs[item] for item in both]):
                raise _mismatch(name, number, "path log-probabilities")
            missing = [item not in log_probs for item in expected["item_ids"]]
            last = min(expected["scores"], default=0.0)
            if not _close(np.array(expected["scores"])[missing], np.full(sum(missing), last)):
                raise _mismatch(name, number, "items")
            if expected["unknown"] != answer["unknown"]:
                raise _mismatch(name, number, "unknown ids or features")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise VersionDamaged(f"{name}: golden.json cannot be replayed ({type(error).__name__})") from None


def _answer(searcher: Searcher, request: Request) -> dict[str, Any]:
    query, unknown = searcher.prepare(request)
    (answer,) = searcher.answer([query])
    return {
        "item_ids": searcher.vocabulary.names(answer.items),
        "scores": answer.scores.astype(float).tolist(),
        "path_log_probs": answer.path_log_probs.astype(float).tolist(),
        "unknown": list(unknown),
    }


def _mismatch(name: str, number: int, field: str) -> VersionDamaged:
    return VersionDamaged(
        f"{name}: golden query {number} has other {field} than recorded; ids, context, model, paths, vectors and "
        "reranker do not belong together, publish again"
    )


def _close(expected: Any, actual: Any) -> bool:
    expected, actual = np.asarray(expected, float), np.asarray(actual, float)
    return expected.shape == actual.shape and bool(
        np.isfinite(actual).all() and np.allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)
    )
