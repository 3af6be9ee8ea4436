"""create_app(): the only way to build the service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from index_store.address import folder_of
from index_store.store import IndexStore
from retrieval.query import Limits
from service.errors import NotReady
from service.http import events, items, problems
from service.http import routes as api
from service.http.middleware import RequestMiddleware
from service.http.values import EXACT
from service.metrics import Metrics
from service.process.draining import Draining
from service.process.settings import Settings
from service.serving.batcher import HUNG_SECONDS, Batcher
from service.serving.event_log import EventLog
from service.serving.folding import Folding
from service.serving.reloader import Reloader
from service.serving.writer import Writer

log = logging.getLogger(__name__)

DESCRIPTION = """Candidates for a user from a learned retrieval structure (Deep Retrieval, arXiv 2007.07203).
Every answer comes from one version and names it. Errors are `application/problem+json`."""


FIRST_LOOK_SECONDS = 5.0  # the longest that the start waits for the current version to be loaded
#: The most round trips to a remote store that one search makes: one for each beam of 1, 2, 4, ... 256 paths, and one
#: for the whole catalogue.
SEARCH_ROUND_TRIPS = Limits.BEAM.bit_length() + 1


def create_app(settings: Settings, store: IndexStore) -> FastAPI:
    """The app that serves `store`'s current version. Does not use the store until its lifespan starts."""
    metrics, draining = Metrics(), Draining()
    reloader = Reloader(store, settings.poll_seconds, metrics, settings.new_items)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[api.State]:
        store_seconds = SEARCH_ROUND_TRIPS * settings.store_timeout_ms / 1000 if settings.residency == "remote" else 0
        batcher = Batcher(
            settings.max_queue, settings.max_batch, settings.timeout_ms / 2000, metrics, HUNG_SECONDS + store_seconds
        )
        writer, event_log = Writer(store, reloader.follower), EventLog(store, settings.events)
        password = settings.store_password.get_secret_value() if settings.store_password else None
        folding = Folding(reloader, store, settings.store, password, metrics)
        parts = reloader, reloader.follower, batcher, writer, event_log, folding
        tasks = [asyncio.create_task(run()) for run in (reloader.holding.keep, *(part.run for part in parts))]
        # Usually the current version is loaded before the first request arrives. But /livez must not wait longer than
        # FIRST_LOOK_SECONDS for a long load, or for a store that does not answer.
        with suppress(TimeoutError):
            await asyncio.wait_for(reloader.first_look_done.wait(), FIRST_LOOK_SECONDS)
        log.info("%s", _summary(settings, reloader))
        try:
            with draining.on_signals(settings.drain_seconds):
                yield {
                    "settings": settings,
                    "metrics": metrics,
                    "reloader": reloader,
                    "batcher": batcher,
                    "writer": writer,
                    "event_log": event_log,
                    "folding": folding,
                    "draining": draining,
                }
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended, Exception):  # a bug: no task should end before it is cancelled
                    log.error("a background task failed", exc_info=ended)
            await reloader.holding.release()

    app: FastAPI = FastAPIOffline(
        title="Deep Retrieval",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would lead to the Host header's host, which the client chooses
    )
    app.add_middleware(RequestMiddleware, metrics=metrics, draining=draining, max_body_bytes=settings.max_body_bytes)
    app.include_router(api.router)
    app.include_router(items.router)
    app.include_router(items.reading)
    app.include_router(events.router)
    app.include_router(api.admin)
    problems.install(app)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        for name, example in _examples(reloader).items():
            document["components"]["schemas"][name]["examples"] = [example]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _examples(reloader: Reloader) -> dict[str, dict[str, Any]]:
    """An example of each request body, with item ids of the served version, so that /docs can send it unchanged."""
    request: dict[str, Any] = {"k": 10}
    version = "v1-0123456789ab"
    try:
        retriever = reloader.retriever
    except NotReady:
        pass
    else:
        searcher = retriever.searcher
        ids = searcher.vocabulary.names(np.arange(min(2, retriever.manifest.items)))
        # /docs would round integers above EXACT. Written as strings, they name the same items.
        history = [str(item) if isinstance(item, int) and abs(item) > EXACT else item for item in ids]
        context = {feature.name: None for feature in searcher.schema.features}
        request = {"history": history, "context": context, **request}
        version = retriever.name
    return {"RetrieveRequest": request, "BatchRequest": {"requests": [request]}, "SwapRequest": {"version": version}}


def _summary(settings: Settings, reloader: Reloader) -> str:
    residency = settings.residency if folder_of(settings.store) is None else "resident"  # in a folder they always are
    return (
        f"{reloader}; path lists {residency}; admin {'on' if settings.admin_token else 'off'}; "
        f"writing {'on' if settings.write_token else 'off'}; "
        f"docs at /docs; for {settings.host} port {settings.port}"
    )
