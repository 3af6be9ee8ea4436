"""Error answers stay short, however much is wrong with a body, and carry the request id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from index_store.folder.store import FolderStore
from service.http.models import BatchRequest
from tests.test_api import make_app

#: Bodies of nearly a megabyte each. Every error becomes two objects, so all errors would take hundreds of MB.
WRONG: dict[str, list[dict[str, Any]]] = {
    "excluded ids": [{"exclude": [[]] * 10_000}] * 34,
    "ids": [{"history": [[]] * 1000}] * 64,
    "fields": [{f"field{i}": 1 for i in range(60_000)}],
    "features": [{"context": {f"feature{i}": [] for i in range(40_000)}}],
    "features of each": [{"context": {f"feature{i}": [] for i in range(64)}}] * 64,
}


@pytest.mark.parametrize("what", WRONG)
def test_only_a_few_of_a_million_errors_are_collected(what: str) -> None:
    """At most as many errors are collected as the features of one user can have."""
    with pytest.raises(ValidationError) as raised:
        BatchRequest.model_validate({"requests": WRONG[what]})

    assert raised.value.error_count() <= 64 * 5  # one error for each type that a feature may have


def test_an_error_of_the_service_carries_the_request_id(tmp_path: Path) -> None:
    """A 500 has the request id in header and body, because the log has the cause under the same id."""

    class Failing:
        @property
        def retriever(self) -> None:
            raise RuntimeError("s3cret")

    with TestClient(make_app(FolderStore(str(tmp_path))), raise_server_exceptions=False) as client:
        client.app_state["reloader"] = Failing()
        response = client.post("/v1/retrieve", json={}, headers={"x-request-id": "abc"})

    assert response.status_code == 500
    assert response.headers["x-request-id"] == response.json()["request_id"] == "abc"
    assert "s3cret" not in response.text
