"""Readiness: ready replicas answer, and a replica that cannot answer is not ready."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from index_store.folder.store import FolderStore
from index_store.store import open_store
from tests.chaos.conftest import Goal, amount
from tests.chaos.traffic import BODIES, answers_of
from tests.conftest import Planted
from tests.fleet import Candidates, Replica, same
from tests.test_api import make_app

AT_ONCE = 5  # replicas that start together
PATIENCE = 60.0  # s
NOT_READY_SECONDS = 2.0


def first_answer(replica: Replica, wanted: Candidates, refused: threading.Event) -> tuple[bool, float]:
    """Whether the first request after the first "ready" was answered rightly, and its seconds.

    refused: set when the replica has answered that it is not ready.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=PATIENCE)
        try:
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                started = time.monotonic()
                body = json.dumps(BODIES[0])
                connection.request("POST", "/v1/retrieve", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = json.loads(response.read())
                seconds = time.monotonic() - started
                return response.status == 200 and same(answer["candidates"], wanted), seconds
            assert response.status == 503
            refused.set()
        except ConnectionError:  # the replica does not listen yet
            pass
        finally:
            connection.close()
        time.sleep(0.005)
    raise AssertionError(replica.log())


def test_a_ready_replica_answers(goal: Goal, planted: Planted, tmp_path: Path) -> None:
    """Promise: readiness. Replicas start without a version; their first request after "ready" is answered rightly."""
    (wanted, *_) = answers_of(planted.version)
    outcomes = []
    for number in range(amount(50) // AT_ONCE):
        folder = tmp_path / str(number)
        store = open_store(str(folder / "store"))
        name = store.publish(planted.version)
        refused = [threading.Event() for _ in range(AT_ONCE)]
        with contextlib.ExitStack() as stack:
            threads = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
            replicas = [Replica(folder / str(i), str(folder / "store")) for i in range(AT_ONCE)]
            for replica in replicas:
                stack.callback(replica.stop)
                replica.start()
            asked = threads.map(first_answer, replicas, [wanted] * AT_ONCE, refused)
            assert all(event.wait(PATIENCE) for event in refused)
            store.activate(name)
            outcomes += list(asked)
    goal(
        f"{len(outcomes)} replicas: wrong first answers after /readyz turned 200; median time of the first answer",
        f"{[right for right, _ in outcomes].count(False)}; "
        f"{1000 * float(np.median([seconds for _, seconds in outcomes])):.0f} ms",
        reached=all(right for right, _ in outcomes),
    )


def test_a_replica_that_does_not_answer_is_not_ready(
    goal: Goal, planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: readiness.

    While a search hangs, /readyz soon answers 503 and /livez 200; afterwards the replica is ready again.
    """
    store = FolderStore(str(tmp_path))
    store.activate(store.publish(planted.version))
    with TestClient(make_app(store)) as client, ThreadPoolExecutor(1) as thread:
        retriever = client.app_state["reloader"].retriever
        began, gate, answer = threading.Event(), threading.Event(), retriever.searcher.answer_once

        def hang(queries: Any) -> Any:
            began.set()
            assert gate.wait(PATIENCE)
            return answer(queries)

        monkeypatch.setattr(retriever.searcher, "answer_once", hang)
        asked = thread.submit(client.post, "/v1/retrieve:batch", json={"requests": [{}, {}]})
        assert began.wait(PATIENCE)
        started, statuses = time.monotonic(), []
        try:
            while client.get("/readyz").status_code == 200 and time.monotonic() < started + PATIENCE:
                statuses.append(client.get("/livez").status_code)
            seconds = time.monotonic() - started
            statuses.append(client.get("/livez").status_code)
        finally:
            gate.set()
        assert asked.result().status_code == 200
        after = client.get("/readyz").status_code
    goal(
        f"a search hangs: not ready within {NOT_READY_SECONDS:.0f} s, alive all the while, ready when it ends",
        f"{seconds:.2f} s, {set(statuses) == {200}}, {after == 200}",
        reached=seconds < PATIENCE and set(statuses) == {200} and after == 200,
    )
    goal("/readyz fails within 2 s of a hanging search", f"{seconds:.2f} s", seconds <= NOT_READY_SECONDS, timing=True)
