"""Routes and the models of what they take and give."""

from __future__ import annotations

import functools
import time
from typing import Annotated, Any, TypedDict

import orjson
from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, FailFast, Field

from index_store.manifest import check_name
from retrieval import query as asked
from retrieval.query import Answer, Limits, Query, Unknown
from service.errors import NotReady
from service.http.guards import AdminRoute, Route
from service.http.problems import Problem
from service.http.values import Body, Context, ItemId, integer
from service.metrics import Metrics
from service.process.draining import Draining
from service.process.settings import Settings
from service.serving.batcher import Batcher
from service.serving.reloader import Reloader
from service.serving.retriever import Retriever


class RetrieveRequest(Body):
    """A user's history and features, and how many candidates are wanted. Everything has a default, as has null.

    Numbers count by value: 3.0 is 3. As an item id a float beyond 2^53 - 1 is refused: it may stand for several.
    """

    history: Annotated[list[ItemId], FailFast()] = Field(
        [], max_length=Limits.HISTORY, description="item ids, oldest first; may be empty"
    )
    context: Context = Field({}, description="the user's features, see /v1/info")
    k: Annotated[int, integer(1, Limits.K)] | None = Field(
        None, description="candidates wanted; default: the version's"
    )
    beam: Annotated[int, integer(1, Limits.BEAM)] | None = Field(
        None, description="paths searched; default: fitting k, wider if short"
    )
    per_path: Annotated[int, integer(1, Limits.PER_PATH)] | None = Field(None, description="items read of each path")
    exclude: Annotated[list[ItemId], FailFast()] = Field(
        [], max_length=Limits.EXCLUDE, description="item ids not to return"
    )
    exclude_history: bool = Field(True, description="do not return items of the history")
    timeout_ms: Annotated[int, integer(1, Limits.TIMEOUT_MS)] | None = Field(
        None, description="searched narrower to meet it, answered 504 after it"
    )
    rerank: bool = Field(True, description="score by the reranker; else by path probability")


class Candidate(BaseModel):
    """score: the reranker's, comparable within one answer.

    path_log_prob: of the searched paths that hold the item; of the last of them where none does.
    """

    item_id: ItemId
    score: float
    path_log_prob: float


class Coverage(BaseModel):
    """What was searched, and what of the request this version does not know.

    paths: searched. items: different ones found on them. unknown_history: ids. unknown_context: features, or values of
    theirs, which count as absent.
    """

    paths: int
    items: int
    unknown_history: int
    unknown_context: int


class Degraded(BaseModel):
    """What the answer falls short in.

    short: fewer than k candidates were found. narrowed: fewer paths were searched than asked for, to be in time.
    """

    short: bool
    narrowed: bool


class RetrieveResponse(BaseModel):
    """Candidates, best first, all from one version."""

    version: str
    request_id: str
    took_ms: float
    candidates: list[Candidate]
    coverage: Coverage
    degraded: Degraded


class BatchRequest(Body):
    """Several users at once. They are admitted together and fail together."""

    requests: Annotated[list[RetrieveRequest], FailFast()] = Field(min_length=1, max_length=Limits.REQUESTS)


class BatchResponse(BaseModel):
    """The answers in the order of the requests, all from one version."""

    responses: list[RetrieveResponse]


class SwapRequest(Body):
    """expected: the swap happens only if that version is current now."""

    version: str = Field(max_length=64)
    expected: str | None = Field(None, max_length=64)


class SwapResponse(BaseModel):
    """version is current and served by this replica; previous was current before."""

    version: str
    previous: str | None


class State(TypedDict):
    """What the lifespan opens, for `request.state`."""

    settings: Settings
    metrics: Metrics
    reloader: Reloader
    batcher: Batcher
    draining: Draining


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"model": Problem, "content": content} for status in statuses}


async def _reloader(request: Request) -> Reloader:
    reloader: Reloader = request.state.reloader
    return reloader


ReloaderDep = Annotated[Reloader, Depends(_reloader)]

#: For the documents only; the route looks at the token.
TOKEN = HTTPBearer(auto_error=False, description="DR_ADMIN_TOKEN")

router = APIRouter(route_class=Route)
admin = APIRouter(prefix="/admin/v1", route_class=AdminRoute, dependencies=[Depends(TOKEN)], tags=["admin"])


@router.post(
    "/v1/retrieve",
    response_model=RetrieveResponse,
    responses=_problems(400, 408, 413, 415, 422, 429, 500, 503, 504),
    tags=["retrieval"],
)
async def retrieve(body: RetrieveRequest, request: Request, reloader: ReloaderDep) -> Response:
    """Candidates for one user, best first."""
    started = time.perf_counter()
    # Taken once: whatever is swapped meanwhile, this request is answered by this version.
    retriever = reloader.retriever
    query, unknown = _prepare(retriever, body)
    gone = functools.partial(_hung_up, request)
    (found,) = await request.state.batcher.submit(retriever, [query], _timeout(request, [body]), gone)
    return _respond(_describe(request, retriever, unknown, found, started))


@router.post(
    "/v1/retrieve:batch",
    response_model=BatchResponse,
    responses=_problems(400, 408, 413, 415, 422, 429, 500, 503, 504),
    tags=["retrieval"],
)
async def retrieve_batch(body: BatchRequest, request: Request, reloader: ReloaderDep) -> Response:
    """Candidates for several users. The longest timeout_ms among them counts."""
    started = time.perf_counter()
    retriever = reloader.retriever
    prepared = [_prepare(retriever, one) for one in body.requests]
    timeout = _timeout(request, body.requests)
    queries, gone = [query for query, _ in prepared], functools.partial(_hung_up, request)
    found = await request.state.batcher.submit(retriever, queries, timeout, gone)
    responses = [
        _describe(request, retriever, unknown, one, started) for (_, unknown), one in zip(prepared, found, strict=True)
    ]
    return _respond({"responses": responses})


@router.get("/v1/info", responses=_problems(500, 503), tags=["retrieval"])
async def info(request: Request, reloader: ReloaderDep) -> dict[str, Any]:
    """The version served, its shape, defaults and context features, and the limits of a request."""
    limits = {
        "history": Limits.HISTORY,
        "exclude": Limits.EXCLUDE,
        "k": Limits.K,
        "beam": min(Limits.BEAM, reloader.retriever.max_beam),
        "per_path": Limits.PER_PATH,
        "requests": Limits.REQUESTS,
        "body_bytes": request.state.settings.max_body_bytes,
        "timeout_ms": Limits.TIMEOUT_MS,
    }
    return {**reloader.retriever.info(), "limits": limits}


@router.get("/livez", tags=["health"])
async def livez() -> dict[str, str]:
    """The process is up. Depends on nothing else."""
    return {"status": "ok"}


@router.get("/readyz", responses=_problems(500, 503), tags=["health"])
async def readyz(request: Request, reloader: ReloaderDep) -> dict[str, str]:
    """A version is loaded, verified and warm, searches end, and the process is not about to."""
    if request.state.draining.begun:
        raise NotReady("the process is about to end")
    if request.state.batcher.stuck:
        raise NotReady("a search does not end")
    return {"status": "ok", "version": reloader.retriever.name}


@router.get("/metrics", response_class=Response, tags=["health"])
async def metrics(request: Request) -> Response:
    """Prometheus text format."""
    return Response(request.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@admin.get("/versions", responses=_problems(401, 403, 500, 503))
async def versions(reloader: ReloaderDep) -> dict[str, Any]:
    """All versions in the store and what this replica makes of each."""
    return await reloader.versions()


@admin.post(
    "/swap",
    response_model=SwapResponse,
    responses=_problems(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503),
)
async def swap(body: SwapRequest, reloader: ReloaderDep) -> dict[str, Any]:
    """Load and verify a version, make it current, serve it. Answered once this replica serves it."""
    for name in (body.version, body.expected):
        if name is not None:
            check_name(name)
    return await reloader.swap(body.version, ... if body.expected is None else body.expected)


@admin.post("/rollback", response_model=SwapResponse, responses=_problems(401, 403, 404, 409, 422, 500, 503))
async def rollback(reloader: ReloaderDep) -> dict[str, Any]:
    """Swap to the version that was current before. A second rollback undoes the first."""
    return await reloader.rollback()


def _prepare(retriever: Retriever, body: RetrieveRequest) -> tuple[Query, Unknown]:
    return retriever.searcher.prepare(
        asked.Request(
            body.history,
            body.context,
            body.k,
            body.beam,
            body.per_path,
            body.exclude,
            body.exclude_history,
            body.rerank,
        )
    )


async def _hung_up(request: Request) -> None:
    """Return when the client has gone; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _timeout(request: Request, bodies: list[RetrieveRequest]) -> float:
    default = request.state.settings.timeout_ms
    return max(body.timeout_ms or default for body in bodies) / 1000


def _describe(
    request: Request, retriever: Retriever, unknown: Unknown, found: Answer, started: float
) -> dict[str, Any]:
    """The content of a RetrieveResponse."""
    request.state.metrics.items_read.observe(found.read)
    if found.short:
        request.state.metrics.short.inc()
    if found.narrowed:
        request.state.metrics.narrowed.inc()
    return {
        "version": retriever.name,
        "request_id": request.scope["request_id"],
        "took_ms": round((time.perf_counter() - started) * 1000, 3),
        "candidates": [
            {"item_id": item, "score": score, "path_log_prob": log_prob}
            for item, score, log_prob in zip(
                retriever.searcher.vocabulary.names(found.items),
                found.scores.tolist(),
                found.path_log_probs.tolist(),
                strict=True,
            )
        ],
        "coverage": {
            "paths": found.paths,
            "items": found.candidates,
            "unknown_history": unknown.history,
            "unknown_context": unknown.context,
        },
        "degraded": {"short": found.short, "narrowed": found.narrowed},
    }


def _respond(body: dict[str, Any]) -> Response:
    # The models above document the answer; building them for each candidate would cost more than the search.
    return Response(orjson.dumps(body), media_type="application/json")
