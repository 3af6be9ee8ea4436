"""Refuses a request by its head, before its body is read: admin routes without the token, bodies that are not JSON."""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.exceptions import HTTPException

from service.errors import AdminOff, Unauthorized, WritingOff

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

#: Charsets that a JSON decoder recognises by the first bytes of a body.
CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii"} | {f"utf-{n}{end}" for n in (16, 32) for end in ("", "le", "be")}
MAX_TYPE = 256  # characters of a Content-Type that are parsed
WRONG_TYPE = "Content-Type: expected application/json; with curl, add -H 'content-type: application/json'"
WRONG_CHARSET = "Content-Type: expected JSON in UTF-8, with charset=utf-8 or without a charset"
COMPRESSED = "expected a body that is not compressed; send it without this header"
ALLOWED_CODINGS = {"Content-Encoding": {"", "identity"}, "Transfer-Encoding": {"", "identity", "chunked"}}


class Route(APIRoute):
    """A route whose body, if the route has one, must be JSON."""

    def get_route_handler(self) -> Handler:
        """Called once, by FastAPI."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            if self.body_field:
                _require_json(request)
            return await handle(request)

        return checked


class AdminRoute(Route):
    """A route that needs the admin token. The token is checked before the body."""

    def get_route_handler(self) -> Handler:
        """Called once, by FastAPI."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            token = request.state.settings.admin_token
            if token is None:
                raise AdminOff("the admin endpoint is off; set DR_ADMIN_TOKEN to open it")
            _require_token(request, token, "the admin token")
            return await handle(request)

        return checked


class WriteRoute(Route):
    """A route that needs the write token. The token is checked before the body."""

    def get_route_handler(self) -> Handler:
        """Called once, by FastAPI."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            token = request.state.settings.write_token
            if token is None:
                raise WritingOff("the catalogue cannot be changed here; set DR_WRITE_TOKEN to allow it")
            _require_token(request, token, "the write token")
            return await handle(request)

        return checked


def _require_json(request: Request) -> None:
    for name, known in ALLOWED_CODINGS.items():
        codings = ",".join(request.headers.getlist(name)).lower().split(",")
        if {coding.strip() for coding in codings} <= known:
            continue
        # The answer's header Accept-Encoding shows a client that the coding is wrong and not the type (RFC 9110,
        # 12.5.3).
        raise HTTPException(415, f"{name}: {COMPRESSED}", {"Accept-Encoding": "identity"})
    wrong = _wrong_type(request.headers.get("content-type", "")[:MAX_TYPE])
    if wrong:
        raise HTTPException(415, wrong)


@functools.lru_cache(maxsize=64)
def _wrong_type(content_type: str) -> str | None:
    """The detail of the 415 for this Content-Type, or None."""
    message = Message()
    message["content-type"] = content_type
    kind, subtype = message.get_content_maintype(), message.get_content_subtype()
    if kind != "application" or not (subtype == "json" or subtype.endswith("+json")):
        return WRONG_TYPE
    try:
        return None if message.get_content_charset("utf-8") in CHARSETS else WRONG_CHARSET
    except ValueError:  # a charset written in the style of RFC 2231 that cannot be decoded
        return WRONG_CHARSET


def _require_token(request: Request, token: SecretStr, called: str) -> None:
    """Raise Unauthorized unless the request has the token.

    Digests are compared in constant time, so response times do not reveal the token's length or a prefix of it.
    """
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    wanted = hashlib.sha256(token.get_secret_value().encode()).digest()
    digest = hashlib.sha256(given.strip(" \t").encode("latin-1")).digest()
    if not hmac.compare_digest(wanted, digest) or scheme.lower() != "bearer":
        raise Unauthorized(f"send Authorization: Bearer and {called}")
