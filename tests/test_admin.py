"""The door of /admin: closed unless a token is set, and to everyone without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from index_store.folder.store import FolderStore
from service.http.app import create_app
from service.process.settings import Settings
from tests.test_api import ADMIN, TOKEN, assert_problem, make_app


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer \xe9".encode("latin-1")},
    ],
)
def test_admin_needs_the_token(tmp_path: Path, headers: Any) -> None:
    """Anything else is 401, whatever the bytes."""
    with TestClient(make_app(FolderStore(str(tmp_path)))) as client:
        for method, path in (("GET", "versions"), ("POST", "swap"), ("POST", "rollback")):
            response = client.request(method, f"/admin/v1/{path}", headers=headers)
            assert_problem(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("token", [None, ""])
def test_admin_is_off_without_a_token(tmp_path: Path, token: str | None) -> None:
    """Not open: 403, even for an empty credential."""
    store = FolderStore(str(tmp_path))
    with TestClient(
        create_app(Settings.model_validate({"store": str(tmp_path), "admin_token": token}), store)
    ) as client:
        for headers in ({}, {"Authorization": "Bearer "}, ADMIN):
            assert_problem(client.get("/admin/v1/versions", headers=headers), 403)
