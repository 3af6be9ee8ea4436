"""/livez and /readyz: a replica that cannot answer gets no requests, and is not restarted while it may recover."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from index_store.folder.store import FolderStore
from service.serving.pace import Pace
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


def test_without_a_version_the_service_is_alive_but_not_ready(tmp_path: Path) -> None:
    """/livez answers 200; /readyz, /v1/retrieve and /v1/info answer 503 with Retry-After."""
    with TestClient(make_app(FolderStore(str(tmp_path / "empty")))) as client:
        assert client.get("/livez").status_code == 200
        for response in (client.get("/readyz"), client.post("/v1/retrieve", json={}), client.get("/v1/info")):
            assert_problem(response, 503)
            assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(("seconds", "status"), [(60.0, 200), (0.0, 503)])
def test_a_service_whose_search_hangs_is_not_ready(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, status: int
) -> None:
    """After HUNG_SECONDS of a search, /readyz answers 503 until the search ends; /livez answers 200 throughout."""
    monkeypatch.setattr("service.http.app.HUNG_SECONDS", seconds)
    store = FolderStore(str(tmp_path))
    store.activate(store.publish(planted.version))
    with TestClient(make_app(store)) as client, ThreadPoolExecutor(1) as thread:
        retriever = client.app_state["reloader"].retriever
        began, gate, answer = threading.Event(), threading.Event(), retriever.searcher.answer_once

        def hang(queries: Any) -> Any:
            began.set()
            assert gate.wait(30)
            return answer(queries)

        monkeypatch.setattr(retriever.searcher, "answer_once", hang)
        # Two requests are searched in a thread, so that the event loop goes on.
        asked = thread.submit(
            client.post, "/v1/retrieve:batch", json={"requests": [{"timeout_ms": 60_000}, {"timeout_ms": 60_000}]}
        )
        assert began.wait(30)
        try:
            assert client.get("/readyz").status_code == status
            assert client.get("/livez").status_code == 200
        finally:
            gate.set()

        assert asked.result().status_code == 200
        assert client.get("/readyz").status_code == 200


def test_the_service_recovers_from_a_bug_in_batching(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The waiting request fails at once, the error is logged, and the next request is searched."""

    def fail(*_: object) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(Pace, "affordable", fail)
        with pytest.raises(ZeroDivisionError):  # the test client raises the error instead of answering 500
            client.post("/v1/retrieve", json={"timeout_ms": 60_000})

    assert "a batch could not be taken from the queue; all waiting requests fail" in caplog.text
    assert client.post("/v1/retrieve", json={}).status_code == 200
    assert client.get("/readyz").status_code == 200
