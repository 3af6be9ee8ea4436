"""Settings of the service. Each is an environment variable with the prefix DR_; four are also flags."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from retrieval.query import Limits

#: Variables that Kubernetes and Docker set for a Service called `dr` or `dr-...`.
KUBERNETES_NAME = re.compile(
    r"DR_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
KUBERNETES_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
#: Variables of docker-compose.yml, .env.example and the Makefile that are not settings of the service.
COMPOSE_VARIABLES = {
    "DR_REDIS_PASSWORD", "DR_SERVICE_PASSWORD", "DR_SERVICE_STORE", "DR_TRAINER_STORE", "DR_CHAOS", "DR_SOAK_SECONDS",
}  # fmt: skip
SHOWN = 80  # characters of a wrong value that an error message shows


class Settings(BaseSettings):
    """Flags override environment variables, and environment variables override the defaults.

    White space around a value is stripped; an empty value counts as unset.
    """

    model_config = SettingsConfigDict(env_prefix="DR_", frozen=True, extra="ignore")

    store: str = Field(description="store URL: a folder, redis://host:port/db, redis+cluster://host:port")
    store_password: SecretStr | None = Field(None, description="password of Redis, if the URL has none")
    residency: Literal["resident", "remote"] = Field(
        "resident", description="path lists are copied to this host (resident), or read from Redis per request (remote)"
    )
    cache: str = Field("~/.cache/deep-retrieval", description="folder that versions of a Redis store are copied to")
    store_timeout_ms: int = Field(100, ge=1, le=60_000, description="remote only: longest wait for an answer of Redis")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on")
    workers: int = Field(1, ge=1, le=256, description="processes, each with the network in its own memory")
    admin_token: SecretStr | None = Field(None, description="bearer token for /admin; unset: /admin is off")
    write_token: SecretStr | None = Field(
        None,
        description="bearer token for writing to /v1/items and /v1/events; unset: nothing can be written over HTTP",
    )
    new_items: int = Field(
        100_000,
        ge=1,
        le=10_000_000,
        description="most items that can be put before a new version is made; 400 bytes each, and 12 for each item of "
        "the version",
    )
    events: int = Field(
        100_000,
        ge=1,
        description="most requests to /v1/events that wait for dr-trainer follow to learn from them; 429 beyond it",
    )
    poll_seconds: float = Field(0.5, gt=0, le=60, description="seconds between two reads of `current`")
    timeout_ms: int = Field(1000, ge=1, le=Limits.TIMEOUT_MS, description="deadline of a request without timeout_ms")
    max_queue: int = Field(
        512,
        ge=1,
        description="most requests that wait; 429 beyond it, and when DR_MAX_BATCH wait and the oldest has used half "
        "of DR_TIMEOUT_MS",
    )
    max_batch: int = Field(32, ge=1, le=1024, description="most requests searched together")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="longest request body; 413 for a longer one")
    keep_alive_seconds: int = Field(
        75,
        ge=1,
        le=3600,
        description="an idle connection is closed after this time; longer than the proxy's own (nginx, ALB: 60)",
    )
    drain_seconds: float = Field(
        2, ge=0, le=3600, description="after SIGTERM: time in which /readyz fails, but requests are still answered"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, values: Any) -> Any:
        stripped = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        return {name: value for name, value in stripped.items() if value != ""}

    @field_validator("admin_token", "write_token")
    @classmethod
    def _fits_in_a_header(cls, token: SecretStr | None) -> SecretStr | None:
        if token and not token.get_secret_value().isprintable():
            raise ValueError
        return token


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"DR_{name.upper()}"


def mistakes(error: ValidationError, flags: Collection[str]) -> list[str]:
    """A line for each wrong setting: its flag or variable, the expected and, unless secret, the found value."""
    lines = []
    for entry in error.errors():
        name = str(entry["loc"][0])
        field = Settings.model_fields[name]
        called = f"--{name}" if name in flags else variable(name)
        if entry["type"] == "missing":
            lines.append(f"--{name} ({variable(name)}) is missing: expected a {field.description}")
            continue
        shown = "" if _is_secret(field) else f", found {_shown(entry['input'])}"
        lines.append(f"{called}: expected {_expected(field)}{shown}{_hint(called, entry['input'])}")
    return lines


def unknown(environment: Mapping[str, str]) -> list[str]:
    """A warning for each DR_ variable that is neither a setting nor set by Kubernetes or compose.

    Also warns of a secret in quotation marks, because Docker does not remove quotation marks from an env file.
    """
    known = {variable(name): field for name, field in Settings.model_fields.items()}
    lines = []
    for name, value in sorted(environment.items()):
        upper = name.upper()
        others = upper in COMPOSE_VARIABLES or KUBERNETES_NAME.fullmatch(upper) or KUBERNETES_ADDRESS.match(value)
        if not upper.startswith("DR_") or others:
            continue
        if name in known:
            if _is_secret(known[name]) and re.fullmatch(r"\s*(\"|').*\1\s*", value):
                lines.append(f"{name} is in quotation marks, which count as part of it; remove them")
        elif upper in known:
            lines.append(f"{name} is ignored; settings are written in capitals: {upper}")
        else:
            likely = difflib.get_close_matches(upper.removeprefix("DR_").lower(), Settings.model_fields, 1)
            hint = f"did you mean {variable(likely[0])}?" if likely else "docs/reference.md lists them"
            lines.append(f"{name if name.isprintable() else repr(name)} is not a setting; {hint}")
    return lines


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in (field.annotation, *get_args(field.annotation))


def _expected(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return " or ".join(get_args(field.annotation))
    if _is_secret(field):
        return "text without line breaks and other control characters, as it is sent in a header"
    signs = ("gt", "ge", "le")
    bounds = {sign: getattr(rule, sign) for rule in field.metadata for sign in signs if hasattr(rule, sign)}
    number = "a whole number" if field.annotation is int else "a number"
    if "le" not in bounds:
        return f"{number} of at least {bounds['ge']}"
    if "gt" in bounds:
        return f"{number} above {bounds['gt']} and up to {bounds['le']}"
    return f"{number} from {bounds['ge']} to {bounds['le']}"


def _shown(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def _hint(called: str, value: object) -> str:
    if called != "DR_PORT" or not KUBERNETES_ADDRESS.match(str(value)):
        return ""
    return (
        '; Kubernetes sets it for a Service called "dr": give the Service a different name or set '
        "enableServiceLinks: false"
    )
