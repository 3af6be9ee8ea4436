"""Settings of the service. Each is an environment variable with the prefix DR_, four also flags."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Flags win over the environment, the environment over these defaults."""

    model_config = SettingsConfigDict(env_prefix="DR_", frozen=True, extra="ignore")

    store: str = Field(min_length=1, description="store URL: a folder, redis://host:port/db, redis+cluster://host:port")
    store_password: SecretStr | None = Field(None, description="of Redis, where the URL has none")
    residency: Literal["resident", "remote"] = Field(
        "resident", description="path lists: copied to this host (resident), or read from Redis a request (remote)"
    )
    cache: str = Field("~/.cache/deep-retrieval", description="folder that versions of a Redis store are copied to")
    store_timeout_ms: int = Field(100, ge=1, le=60_000, description="remote: how long an answer of Redis may take")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on")
    workers: int = Field(1, ge=1, le=256, description="processes, each with its own beam search")
    admin_token: SecretStr | None = Field(None, description="bearer token of /admin; unset or empty: admin is off")
    poll_seconds: float = Field(0.5, gt=0, le=60, description="between two looks at the store's current version")
    timeout_ms: int = Field(1000, ge=1, le=60_000, description="deadline of a request that names none")
    max_queue: int = Field(
        512,
        ge=1,
        description="requests waiting; one more is answered 429, as is who comes when a batch is waiting and its first "
        "has waited half of DR_TIMEOUT_MS",
    )
    max_batch: int = Field(32, ge=1, le=1024, description="requests searched together")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="longest request body; a longer one is answered 413")
    drain_seconds: float = Field(
        2, ge=0, le=3600, description="after SIGTERM: not ready but answering, before the socket closes"
    )

    @field_validator("admin_token", "store_password")
    @classmethod
    def _no_empty_secret(cls, token: SecretStr | None) -> SecretStr | None:
        return token if token and token.get_secret_value() else None
