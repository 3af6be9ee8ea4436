"""What /livez and /readyz say: a replica that cannot answer gets no requests, and lives as long as it may recover."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from index_store.folder.store import FolderStore
from service.serving.batcher import Batcher
from tests.conftest import Planted
from tests.test_api import assert_problem, make_app


@pytest.fixture
def client(planted: Planted, tmp_path: Path) -> Iterator[TestClient]:
    """A service that is ready."""
    store = FolderStore(str(tmp_path))
    store.activate(store.publish(planted.version))
    with TestClient(make_app(store)) as client:
        assert client.get("/readyz").status_code == 200
        yield client


def test_without_a_version_it_lives_but_is_not_ready(tmp_path: Path) -> None:
    """Livez 200, readyz and retrieve 503 with Retry-After."""
    with TestClient(make_app(FolderStore(str(tmp_path / "empty")))) as client:
        assert client.get("/livez").status_code == 200
        for response in (client.get("/readyz"), client.post("/v1/retrieve", json={}), client.get("/v1/info")):
            assert_problem(response, 503)
            assert response.headers["retry-after"] == "1"


def test_a_search_that_does_not_end_is_not_ready(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alive, and ready again as soon as it ends after all."""
    retriever, batcher = client.app_state["reloader"].retriever, client.app_state["batcher"]
    began, gate, answer = threading.Event(), threading.Event(), retriever.answer

    def hang(queries: Any) -> Any:
        began.set()
        assert gate.wait(30)
        return answer(queries)

    monkeypatch.setattr(retriever, "answer", hang)
    monkeypatch.setattr(retriever, "remote", True)  # searched in a thread, though alone
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(client.post, "/v1/retrieve", json={"timeout_ms": 60_000})
        assert began.wait(30)
        try:
            batcher._longest_search = 60.0
            assert client.get("/readyz").status_code == 200
            batcher._longest_search = 0.0
            assert_problem(client.get("/readyz"), 503)
            assert client.get("/livez").status_code == 200
        finally:
            gate.set()

    assert asked.result().status_code == 200
    assert client.get("/readyz").status_code == 200


def test_a_fault_of_our_own_is_told_and_passes(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever waited is told at once, it is logged, and the next is searched."""

    def fail(_: Batcher) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(Batcher, "_take", fail)
        with pytest.raises(ZeroDivisionError):  # the test client's way of a 500
            client.post("/v1/retrieve", json={"timeout_ms": 60_000})

    assert "the queue is emptied" in caplog.text
    assert client.post("/v1/retrieve", json={}).status_code == 200
    assert client.get("/readyz").status_code == 200
