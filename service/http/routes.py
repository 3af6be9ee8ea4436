"""The routes. models.py has their bodies; guards.py has the checks that run before a body is read."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

import orjson
from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPBearer

from index_store.manifest import check_name
from retrieval.query import Limits
from service.errors import NotReady
from service.http.guards import AdminRoute, Route
from service.http.models import (
    BatchRequest,
    BatchResponse,
    FoldResponse,
    RetrieveRequest,
    RetrieveResponse,
    SwapRequest,
    SwapResponse,
)
from service.http.problems import described
from service.metrics import Metrics
from service.process.draining import Draining
from service.process.settings import Settings
from service.serving.batcher import Batcher
from service.serving.event_log import EventLog
from service.serving.folding import Folding
from service.serving.reloader import Reloader
from service.serving.writer import Writer


class State(TypedDict):
    """The objects that the app's lifespan makes; a route reads them from `request.state`."""

    settings: Settings
    metrics: Metrics
    reloader: Reloader
    batcher: Batcher
    writer: Writer
    event_log: EventLog
    folding: Folding
    draining: Draining


async def _reloader(request: Request) -> Reloader:
    reloader: Reloader = request.state.reloader
    return reloader


ReloaderDep = Annotated[Reloader, Depends(_reloader)]

#: Only for the OpenAPI document; AdminRoute checks the token.
TOKEN = HTTPBearer(auto_error=False, description="DR_ADMIN_TOKEN")

#: The share of a request's timeout in which it waits for the records up to `min_seq`.
WAIT_FOR_LOG = 0.8

router = APIRouter(route_class=Route)
admin = APIRouter(prefix="/admin/v1", route_class=AdminRoute, dependencies=[Depends(TOKEN)], tags=["admin"])


@router.post(
    "/v1/retrieve",
    response_model=RetrieveResponse,
    responses=described(400, 408, 413, 415, 422, 429, 500, 503, 504),
    tags=["retrieval"],
)
async def retrieve(body: RetrieveRequest, request: Request, reloader: ReloaderDep) -> Response:
    """Candidates for one user, best first."""
    (response,) = await _answer([body], request, reloader)
    return _json(response)


@router.post(
    "/v1/retrieve:batch",
    response_model=BatchResponse,
    responses=described(400, 408, 413, 415, 422, 429, 500, 503, 504),
    tags=["retrieval"],
)
async def retrieve_batch(body: BatchRequest, request: Request, reloader: ReloaderDep) -> Response:
    """Candidates for several users. The longest timeout_ms of all requests is the deadline."""
    return _json({"responses": await _answer(body.requests, request, reloader)})


@router.get("/v1/info", responses=described(500, 503), tags=["retrieval"])
async def info(request: Request, reloader: ReloaderDep) -> dict[str, Any]:
    """The version served, its shape, defaults and context features, and the limits of a request."""
    retriever = reloader.retriever
    limits = {
        "history": Limits.HISTORY,
        "exclude": Limits.EXCLUDE,
        "k": Limits.K,
        "beam": min(Limits.BEAM, retriever.max_beam),
        "per_path": Limits.PER_PATH,
        "requests": Limits.REQUESTS,
        "body_bytes": request.state.settings.max_body_bytes,
        "timeout_ms": Limits.TIMEOUT_MS,
    }
    return {**retriever.info(), "limits": limits}


@router.get("/livez", tags=["health"])
async def livez() -> dict[str, str]:
    """The process is up. Depends on nothing else."""
    return {"status": "ok"}


@router.get("/readyz", responses=described(500, 503), tags=["health"])
async def readyz(request: Request, reloader: ReloaderDep) -> dict[str, str]:
    """A version is loaded, verified and warm, no search hangs, and the process is not shutting down."""
    if request.state.draining.begun:
        raise NotReady("the process is shutting down")
    if request.state.batcher.hung:
        raise NotReady("a search hangs")
    return {"status": "ok", "version": reloader.retriever.name}


@router.get("/metrics", response_class=Response, tags=["health"])
async def metrics(request: Request) -> Response:
    """Prometheus text format."""
    return Response(request.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@admin.get("/versions", responses=described(401, 403, 500, 503))
async def versions(reloader: ReloaderDep) -> dict[str, Any]:
    """All versions in the store, each with its state in this replica."""
    return await reloader.versions()


@admin.post(
    "/swap",
    response_model=SwapResponse,
    responses=described(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503),
)
async def swap(body: SwapRequest, reloader: ReloaderDep) -> dict[str, Any]:
    """Load and verify a version, make it current, serve it. Answered once this replica serves it."""
    for name in (body.version, body.expected):
        if name is not None:
            check_name(name)
    return await reloader.swap(body.version, ... if body.expected is None else body.expected)


@admin.post("/rollback", response_model=SwapResponse, responses=described(401, 403, 404, 409, 422, 500, 503))
async def rollback(reloader: ReloaderDep) -> dict[str, Any]:
    """Swap to the previous version, the network before this one. A second rollback undoes the first."""
    return await reloader.rollback()


@admin.post("/fold", response_model=FoldResponse, responses=described(401, 403, 409, 422, 500, 503))
async def fold(request: Request) -> dict[str, Any]:
    """Make a new version of the current one and all records of the log, and swap to it. It answers as before."""
    folded: dict[str, Any] = await request.state.folding.fold()
    return folded


async def _answer(bodies: Sequence[RetrieveRequest], request: Request, reloader: Reloader) -> list[dict[str, Any]]:
    """The contents of a RetrieveResponse for each body, all from one version."""
    started = time.perf_counter()
    settings, counts, batcher = request.state.settings, request.state.metrics, request.state.batcher
    timeout = max(body.timeout_ms or settings.timeout_ms for body in bodies) / 1000
    if wanted := max(body.min_seq or 0 for body in bodies):
        await reloader.follower.wait_for(wanted, WAIT_FOR_LOG * timeout)
        timeout -= time.perf_counter() - started
    # Read once, so that this version answers even if another version is swapped in meanwhile.
    retriever = reloader.retriever
    searcher = retriever.searcher
    prepared = [searcher.prepare(body.to_request()) for body in bodies]
    gone = functools.partial(_hung_up, request)
    answers = await batcher.submit(retriever, [query for query, _ in prepared], timeout, gone)
    responses = []
    for body, (_, unknown), answer in zip(bodies, prepared, answers, strict=True):
        described = body.to_response(unknown, answer, searcher.vocabulary)
        counts.answered(answer.read, short=answer.short, narrowed=answer.narrowed)
        responses.append(
            {
                "version": retriever.name,
                "seq": answer.seq,
                "request_id": request.scope["request_id"],
                "took_ms": round((time.perf_counter() - started) * 1000, 3),
                **described,
            }
        )
    return responses


async def _hung_up(request: Request) -> None:
    """Return when the client has closed the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(content: dict[str, Any]) -> Response:
    # The response model only documents the content. To validate the content would take longer than the search.
    return Response(orjson.dumps(content), media_type="application/json")
