"""The bodies of requests and answers. The models validate requests, and /openapi.json documents all of them.

docs/architecture.md has the steps to add a field to a request or to an answer ("Changing things").
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import BaseModel, FailFast, Field

from retrieval.query import Answer, Limits, Request, Unknown
from retrieval.vocabulary import Vocabulary
from service.http.values import EXACT, Body, Context, ItemId, integer

#: Fields of a retrieve request that the search needs; the service itself uses the other fields.
SEARCH_FIELDS = [field.name for field in dataclasses.fields(Request)]


class RetrieveRequest(Body):
    """A user's history and features, and how many candidates are wanted. Every field is optional and may be null.

    Numbers count by value: 3.0 is 3. A float beyond 2^53 - 1 is refused as an item id, because it may stand for several
    integers.
    """

    history: Annotated[list[ItemId], FailFast()] = Field(
        [], max_length=Limits.HISTORY, description="item ids, oldest first; may be empty"
    )
    context: Context = Field({}, description="the user's features, see /v1/info")
    k: Annotated[int, integer(1, Limits.K)] | None = Field(
        None, description="candidates wanted; default: the version's"
    )
    beam: Annotated[int, integer(1, Limits.BEAM)] | None = Field(
        None, description="paths searched; default: chosen for k, and widened if too few candidates are found"
    )
    per_path: Annotated[int, integer(1, Limits.PER_PATH)] | None = Field(
        None, description="items read of each path; default: chosen for k"
    )
    exclude: Annotated[list[ItemId], FailFast()] = Field(
        [], max_length=Limits.EXCLUDE, description="item ids not to return"
    )
    exclude_history: bool = Field(True, description="do not return items of the history")
    timeout_ms: Annotated[int, integer(1, Limits.TIMEOUT_MS)] | None = Field(
        None,
        description="deadline: the search is narrowed to meet it; a request that misses it is answered 504 (503 with "
        "remote path lists)",
    )
    min_seq: Annotated[int, integer(0, EXACT)] | None = Field(
        None,
        description="the answer has the changes of the catalogue up to this record, as the answer to a write names it; "
        "the request waits for them in up to 0.8 of its timeout_ms",
    )
    rerank: bool = Field(True, description="order by the reranker's score; else by path probability")

    def to_request(self) -> Request:
        """The part of the request that the search needs."""
        return Request(**{name: getattr(self, name) for name in SEARCH_FIELDS})

    def to_response(self, unknown: Unknown, answer: Answer, vocabulary: Vocabulary) -> dict[str, Any]:
        """The `candidates`, `coverage` and `degraded` of the RetrieveResponse to this request.

        unknown: how much of the request the version does not know. vocabulary: the version's item ids.
        """
        ids = vocabulary.names(answer.items)
        scores, log_probs = answer.scores.tolist(), answer.path_log_probs.tolist()
        return {
            # Dicts, not Candidates: to make a model of each candidate would take longer than the search.
            "candidates": [
                {"item_id": item, "score": score, "path_log_prob": log_prob}
                for item, score, log_prob in zip(ids, scores, log_probs, strict=True)
            ],
            "coverage": {
                "paths": answer.paths,
                "items": answer.candidates,
                "unknown_history": unknown.history,
                "unknown_context": unknown.context,
            },
            "degraded": {
                "short": answer.short,
                "narrowed": answer.narrowed,
                "stale": answer.seq < (self.min_seq or 0),
            },
        }


class Candidate(BaseModel):
    """An item and its score.

    score: the reranker's score; compare scores within one answer only. path_log_prob: natural log of the summed
    probability of the searched paths from which the item was read. If too few items are found, the whole catalogue is
    scored; an item that only this finds has the path_log_prob of the last searched path with items.
    """

    item_id: ItemId
    score: float
    path_log_prob: float


class Coverage(BaseModel):
    """How much was searched, and how much of the request this version does not know.

    paths: how many paths were searched. items: how many different items were scored. unknown_history: how many ids of
    the history are unknown. unknown_context: how many features are unknown or have an unknown value. Unknown ids and
    features count as absent.
    """

    paths: int
    items: int
    unknown_history: int
    unknown_context: int


class Degraded(BaseModel):
    """Whether the request got less than it asked for.

    short: the answer has fewer than k candidates. narrowed: fewer paths were searched, to meet the deadline. stale: the
    replica did not have the record `min_seq` in time.
    """

    short: bool
    narrowed: bool
    stale: bool


class RetrieveResponse(BaseModel):
    """Candidates, best first, all from one version. seq: the last change of the catalogue that the search saw."""

    version: str
    seq: int
    request_id: str
    took_ms: float
    candidates: list[Candidate]
    coverage: Coverage
    degraded: Degraded


class BatchRequest(Body):
    """Requests of several users. They are admitted together and fail together."""

    requests: Annotated[list[RetrieveRequest], FailFast()] = Field(
        min_length=1, max_length=Limits.REQUESTS, description="one per user"
    )


class BatchResponse(BaseModel):
    """The answers in the order of the requests, all from one version."""

    responses: list[RetrieveResponse]


class SwapRequest(Body):
    """The version to serve. With `expected`, the swap happens only if that version is current now."""

    version: str = Field(max_length=64, description="full name of a published version")
    expected: str | None = Field(None, max_length=64, description="default: swap whichever version is current")


class FoldResponse(BaseModel):
    """`version` is current now: `previous` and so many records of the log. It is `previous` if there were none."""

    version: str
    previous: str
    records: int
    seconds: float


class SwapResponse(BaseModel):
    """`version` is current now and this replica serves it; `previous` was current before."""

    version: str
    previous: str | None
