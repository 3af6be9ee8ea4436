"""Errors as `application/problem+json` (RFC 9457). They never repeat input, so they stay short and safe to log."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from index_store import errors as store
from service import errors as service

log = logging.getLogger(__name__)

#: The one table of error and status. A class not in it has the status of its base.
STATUS: dict[type[Exception], int] = {
    service.NotReady: 503,
    service.Overloaded: 429,
    service.DeadlineExceeded: 504,
    service.ClientGone: 499,  # proxies' word for it; nobody hears it
    service.BadQuery: 422,
    service.AdminOff: 403,
    service.Unauthorized: 401,
    service.ServiceError: 500,
    store.VersionNotFound: 404,
    store.PointerMoved: 409,
    store.InvalidName: 422,
    store.VersionDamaged: 422,
    store.VersionIncompatible: 422,
    store.VersionInUse: 409,
    store.StoreUnavailable: 503,
    store.StoreMissing: 503,
    store.CacheUnavailable: 503,
    store.StoreMisconfigured: 503,
    store.StoreFull: 503,
    store.IndexStoreError: 500,
}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}
MAX_ERRORS = 5  # of a body's errors that are listed


class InvalidField(BaseModel):
    """One thing that is wrong with a request's body."""

    field: str
    message: str


class Problem(BaseModel):
    """An error's body. `errors` only for a body that does not fit its schema."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[InvalidField] = []


def problem(request: Request, status: int, detail: str, errors: list[dict[str, str]] | None = None) -> Response:
    """The response for an error."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "request_id": request.scope.get("request_id", ""),
    }
    if errors:
        body["errors"] = errors
    headers = HEADERS.get(status, {})
    return Response(orjson.dumps(body), status, headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Answer every error as a problem."""
    for error in (service.ServiceError, store.IndexStoreError):
        app.add_exception_handler(error, _domain)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(service.ClientGone, _gone)
    app.add_exception_handler(Exception, _unexpected)


def status_of(error: Exception) -> int:
    """The status of the error's class or its nearest base in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


async def _domain(request: Request, error: Exception) -> Response:
    status = status_of(error)
    if isinstance(error, store.VersionNotFound):
        detail = "no such version in the store"  # the error itself repeats what was asked for
    elif isinstance(error, store.IndexStoreError) and not request.scope["path"].startswith("/admin/"):
        detail = HTTPStatus(status).description  # it names folders and versions, which operators may see
    else:
        detail = str(error)
    return problem(request, status, detail)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(entry["type"] == "json_invalid" for entry in found):
        return problem(request, 400, "the body is not valid JSON")
    listed = [{"field": _field(entry), "message": _message(entry)} for entry in found[:MAX_ERRORS]]
    return problem(request, 422, "the body does not fit the schema; see /openapi.json", listed)


def _field(entry: Any) -> str:
    """Where the error is: names of the schema and places in lists, not names that the client made up."""
    if entry["type"] == "extra_forbidden":
        return ".".join(map(str, entry["loc"][1:-1])) or "body"
    place = []
    for part in entry["loc"][1:]:
        place.append(str(part))
        if part == "context":
            break
    # Behind a list's place the rest names a member of a union.
    return ".".join(place[:4]) or "body"


def _message(entry: Any) -> str:
    return "a field that is not in the schema" if entry["type"] == "extra_forbidden" else str(entry["msg"])[:200]


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = problem(request, error.status_code, HTTPStatus(error.status_code).description or "refused")
    response.headers.update(error.headers or {})
    return response


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=STATUS[service.ClientGone])


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("request %s failed", request.scope.get("request_id"), exc_info=error)
    response = problem(request, 500, "an error on our side; the log has it under this request_id")
    response.headers["X-Request-ID"] = request.scope.get("request_id", "")  # it is made outside of the middleware
    return response
