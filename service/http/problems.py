"""Errors as `application/problem+json` (RFC 9457). Of the input they repeat only version names: safe to log."""

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
from retrieval.query import BadQuery
from service import errors as service

log = logging.getLogger(__name__)

#: The one table of errors and statuses. A class without an entry has the status of its base.
STATUS: dict[type[Exception], int] = {
    service.NotReady: 503,
    service.Overloaded: 429,
    service.DeadlineExceeded: 504,
    service.ClientGone: 499,  # as in nginx; the client has gone, so only metrics show it
    BadQuery: 422,
    service.AdminOff: 403,
    service.WritingOff: 403,
    service.ItemNotFound: 404,
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
    store.FoldRunning: 409,
    store.FoldFailed: 500,
    store.LogBroken: 503,
    store.LogMoved: 500,
    store.LogDamaged: 503,
    store.LogIncompatible: 503,
    store.IndexStoreError: 500,
}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}
MAX_ERRORS = 5  # that are listed for one body
NO_JSON = "the body is not valid JSON"
#: Types of errors whose message `values.py` writes; and the messages for pydantic's own types of errors.
OWN_MESSAGES = {"expected", "too_many", "unknown_field"}
MESSAGES = {
    "missing": "expected, but missing",
    "dict_type": "expected an object",
    "model_attributes_type": "expected an object",
    "model_type": "expected an object",
    "list_type": "expected a list",
    "bool_type": "expected true or false",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "string_type": "expected a string",
    "string_too_long": "expected at most {max_length} characters",
    "string_unicode": "expected a string that is valid Unicode",
    "too_long": "expected at most {max_length} entries",
    "too_short": "expected at least {min_length} entry",
}


class InvalidField(BaseModel):
    """One thing that is wrong with a request's body."""

    field: str
    message: str


class Problem(BaseModel):
    """The body of an error. `errors` is only present if the request's body does not fit its schema."""

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


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route with these statuses, for the OpenAPI document."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"model": Problem, "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Install handlers that answer every error with a problem."""
    for error in (service.ServiceError, store.IndexStoreError, BadQuery):
        app.add_exception_handler(error, _domain)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(service.ClientGone, _gone)
    app.add_exception_handler(Exception, _unexpected)


def status_of(error: Exception) -> int:
    """The status of the error's class, or of its nearest base in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


async def _domain(request: Request, error: Exception) -> Response:
    status = status_of(error)
    if isinstance(error, store.VersionNotFound):
        detail = "no such version in the store; /admin/v1/versions lists them"  # the error's message repeats the name
    elif isinstance(error, store.IndexStoreError) and not request.scope["path"].startswith("/admin/"):
        detail = "the store cannot be read now; try again later"  # the error's own message names folders and versions
    else:
        detail = str(error)
    return problem(request, status, detail)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    entries = error.errors()
    if any(entry["type"] == "json_invalid" for entry in entries):
        return problem(request, 400, NO_JSON)
    listed: dict[str, str] = {}  # one message for each place; all of `context` is one place
    for entry in entries:
        listed.setdefault(_field(entry), _message(entry))
    errors = [{"field": field, "message": message} for field, message in list(listed.items())[:MAX_ERRORS]]
    return problem(request, 422, "the body does not fit the schema; see /openapi.json", errors)


def _field(entry: Any) -> str:
    """The place of the error: names of the schema and positions in lists, but no names that the client chose."""
    place = [str(part) for part in entry["loc"][1:]]
    if "context" in place:
        place = place[: place.index("context") + 1]
    return ".".join(place) or "body"


def _message(entry: Any) -> str:
    if entry["type"] in OWN_MESSAGES:
        return str(entry["msg"])
    return MESSAGES.get(entry["type"], "expected a value that fits the schema").format(**entry.get("ctx", {}))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status, detail, headers = error.status_code, error.detail, dict(error.headers or {})
    if status == HTTPStatus.BAD_REQUEST:  # FastAPI could not decode the body
        cause = error.__cause__
        detail = "the body is not UTF-8" if isinstance(cause, UnicodeDecodeError) else NO_JSON
        if isinstance(cause, ValueError) and "digits" in str(cause):
            detail = "the body has a number with thousands of digits"
    elif status == HTTPStatus.NOT_FOUND:
        detail = "no such route; /docs lists all routes"
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        methods = set(headers.get("Allow", "GET").split(", "))
        headers["Allow"] = ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))
        detail = f"this route takes {headers['Allow']} only"
    response = problem(request, status, detail)
    response.headers.update(headers)
    return response


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=STATUS[service.ClientGone])


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("request %s failed", request.scope.get("request_id"), exc_info=error)
    response = problem(request, 500, "an error of the service; its log has the cause under this request_id")
    response.headers["X-Request-ID"] = request.scope.get("request_id", "")  # the middleware does not see this response
    return response
