"""The HTTP contract, tested with a trained version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index_store.folder.store import FolderStore
from service.http.app import create_app
from service.http.models import RetrieveRequest
from service.process.settings import Settings
from service.serving.pace import Pace
from tests.conftest import SMALL, Planted, train_planted
from tests.planted import GROUPS

TOKEN = "correct horse"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}


def make_app(store: FolderStore, **changes: Any) -> FastAPI:
    """The app on `store`; it polls rarely, because these tests swap by hand."""
    settings = {"store": str(store.folder), "admin_token": TOKEN, "poll_seconds": 60, "timeout_ms": 60_000, **changes}
    return create_app(Settings.model_validate(settings), store)


@pytest.fixture(scope="module")
def client(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service of the planted version."""
    store = FolderStore(str(tmp_path_factory.mktemp("store")))
    store.activate(store.publish(planted.version))
    with TestClient(make_app(store)) as opened:
        yield opened


def assert_problem(response: Any, status: int) -> dict[str, Any]:
    """Require the form that every error has: RFC 9457, short, with a request id."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.content) < 4096
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert set(body) - {"errors"} == {"type", "title", "status", "detail", "request_id"}
    assert body["request_id"] == response.headers["x-request-id"]
    return body


def items_of(response: Any) -> list[Any]:
    """The item ids of an answer."""
    assert response.status_code == 200, response.text
    return [candidate["item_id"] for candidate in response.json()["candidates"]]


def test_an_answer_has_exactly_the_documented_keys(client: TestClient, planted: Planted) -> None:
    """Candidates come best first, from the version that is served."""
    body = client.post("/v1/retrieve", json={"history": [1, 5, 9], "k": 4}).json()

    assert set(body) == {"version", "seq", "request_id", "took_ms", "candidates", "coverage", "degraded"}
    assert body["version"] == f"v1-{planted.version.manifest.fingerprint[:12]}"
    assert [set(candidate) for candidate in body["candidates"]] == [{"item_id", "score", "path_log_prob"}] * 4
    assert body["coverage"]["unknown_history"] == 0
    scores = [candidate["score"] for candidate in body["candidates"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("group", range(GROUPS))
def test_the_planted_group_is_answered(client: TestClient, group: int) -> None:
    """A history of one group gets that group's other items."""
    history = [group + GROUPS * number for number in (0, 3, 5, 7)]

    answer = items_of(client.post("/v1/retrieve", json={"history": history, "k": 5}))

    assert {item % GROUPS for item in answer} == {group}
    assert not set(answer) & set(history)


def test_an_empty_history_is_answered(client: TestClient) -> None:
    """A cold start is no error: k items are answered, also without the field `history`."""
    assert len(items_of(client.post("/v1/retrieve", json={"history": [], "k": 5}))) == 5
    assert len(items_of(client.post("/v1/retrieve", json={}))) == 5


def test_unknown_items_are_counted_and_left_out(client: TestClient) -> None:
    """A history of unknown items is answered as an empty one, a mixed history as its known items alone."""
    unknown = client.post("/v1/retrieve", json={"history": [9999, "no such", -5], "k": 5})
    mixed = client.post("/v1/retrieve", json={"history": [9999, 1, 5], "k": 5})

    assert unknown.json()["coverage"]["unknown_history"] == 3
    assert items_of(unknown) == items_of(client.post("/v1/retrieve", json={"k": 5}))
    assert mixed.json()["coverage"]["unknown_history"] == 1
    assert items_of(mixed) == items_of(client.post("/v1/retrieve", json={"history": [1, 5], "k": 5}))


def test_ids_as_text_name_the_same_items(client: TestClient) -> None:
    """The string "5" names item 5; answers have ids of the trained type."""
    assert items_of(client.post("/v1/retrieve", json={"history": ["1", "5"]})) == items_of(
        client.post("/v1/retrieve", json={"history": [1, 5]})
    )


def test_excluded_items_are_replaced_by_the_next_best(client: TestClient) -> None:
    """The answer still has k items, in the same order."""
    everything = items_of(client.post("/v1/retrieve", json={"history": [1, 5], "k": 8, "beam": 36}))

    answer = items_of(
        client.post("/v1/retrieve", json={"history": [1, 5], "k": 6, "beam": 36, "exclude": everything[:2]})
    )

    assert answer == everything[2:8]


def test_items_of_the_history_are_answered_on_request(client: TestClient) -> None:
    """With exclude_history = false, what was bought may be bought again."""
    history = [1, 5, 9, 13]
    body = {"history": history, "k": 40, "beam": 36}

    assert set(items_of(client.post("/v1/retrieve", json=body | {"exclude_history": False}))) >= set(history)
    assert not set(items_of(client.post("/v1/retrieve", json=body))) & set(history)


def test_beam_and_per_path_are_honoured(client: TestClient) -> None:
    """One path with one item gives one candidate, and the answer is marked as short."""
    body = client.post("/v1/retrieve", json={"history": [1], "k": 5, "beam": 1, "per_path": 1}).json()

    assert body["coverage"]["paths"] == 1
    assert body["coverage"]["items"] == 1
    assert body["degraded"] == {"short": True, "narrowed": False, "stale": False}


def test_the_default_beam_shrinks_for_a_large_per_path(client: TestClient) -> None:
    """A request that names only per_path is never too large; one that names a large beam too is refused."""
    for per_path in (2700, 10_000):
        assert len(items_of(client.post("/v1/retrieve", json={"history": [1], "per_path": per_path}))) == 5
    assert_problem(client.post("/v1/retrieve", json={"beam": 36, "per_path": 10_000}), 422)


def test_a_narrowed_answer_is_marked_and_counted(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request asks for five paths, and its time allows two."""
    monkeypatch.setattr(Pace, "affordable", lambda _self, _queries, beam, _left: min(beam, 2))

    body = client.post("/v1/retrieve", json={"history": [1], "k": 1, "beam": 5}).json()

    assert body["coverage"]["paths"] == 2
    assert body["degraded"] == {"short": False, "narrowed": True, "stale": False}
    assert "deepretrieval_narrowed_answers_total 1.0" in client.get("/metrics").text


def test_an_answer_too_short_is_searched_wider(client: TestClient) -> None:
    """If the request names no beam, the search goes on until k items are found: 36 of 40, as 4 are in the history."""
    body = client.post("/v1/retrieve", json={"history": [1, 5, 9, 13], "k": 36}).json()

    assert len(body["candidates"]) == 36
    assert body["degraded"] == {"short": False, "narrowed": False, "stale": False}
    assert client.post("/v1/retrieve", json={"history": [1], "k": 1000}).json()["degraded"]["short"] is True


def test_without_rerank_paths_decide(client: TestClient) -> None:
    """The score of an item is the log-probability of its path."""
    body = client.post("/v1/retrieve", json={"history": [1, 5], "rerank": False}).json()

    assert all(candidate["score"] == candidate["path_log_prob"] for candidate in body["candidates"])


def test_batched_answers_equal_single_ones(client: TestClient) -> None:
    """Requests of different lengths, beams and sizes get the same answers in a batch as one by one."""
    mixed: list[tuple[int, int, int, dict[str, Any]]] = [
        (0, 0, 3, {}),
        (1, 1, 5, {}),
        (2, 6, 4, {"beam": 2}),
        (3, 9, 5, {"rerank": False}),
        (0, 3, 36, {"exclude": [0, 1, 2]}),
        (1, 2, 5, {"per_path": 1, "beam": 2}),
    ]
    requests = [{"history": list(range(group, group + 4 * n, 4)), "k": k, **more} for group, n, k, more in mixed]

    together = client.post("/v1/retrieve:batch", json={"requests": requests}).json()["responses"]

    for request, batched in zip(requests, together, strict=True):
        single = client.post("/v1/retrieve", json=request).json()
        assert [c["item_id"] for c in batched["candidates"]] == [c["item_id"] for c in single["candidates"]]
        assert [c["score"] for c in batched["candidates"]] == pytest.approx(
            [c["score"] for c in single["candidates"]], abs=1e-4
        )
        assert batched["coverage"] == single["coverage"]


def test_the_service_gives_the_answers_that_were_measured(client: TestClient, planted: Planted) -> None:
    """For held-out users the service answers what the evaluation has counted."""
    from tests.silent_progress import SilentProgress
    from trainer.data.requests import held_out_requests
    from trainer.evaluate.evaluate import MeasuredVersion

    requests, facts = held_out_requests(planted.dataset, planted.split), planted.searcher.facts
    measured = MeasuredVersion(planted.searcher, requests, 5, SilentProgress())
    expected = measured.retrieval(5, facts.beam, facts.per_path, SilentProgress())
    for history, items in zip(requests.histories, expected.filtered, strict=True):
        body = {"history": planted.dataset.item_ids[history].tolist(), "k": 5}

        assert items_of(client.post("/v1/retrieve", json=body)) == planted.dataset.item_ids[items].tolist()


def test_info_gives_limits_and_defaults(client: TestClient) -> None:
    """/v1/info gives the limits and defaults that a client needs."""
    info = client.get("/v1/info").json()

    assert info["version"].startswith("v1-")
    assert info["model"]["items"] == 40
    assert info["model"]["item_id_type"] == "integer"
    assert info["defaults"]["k"] == 5
    assert info["limits"]["beam"] == 256


BAD_BODIES: list[tuple[str | bytes, int]] = [
    (b"", 422),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b"[" * 100_000, 400),
    (b"[]", 422),
    (b"null", 422),
    ('{"history": 5}', 422),
    ('{"history": [1.5]}', 422),
    ('{"history": [true]}', 422),
    ('{"history": [null]}', 422),
    ('{"history": [[1]]}', 422),
    ('{"history": [9223372036854775808]}', 422),
    ('{"history": [1e400]}', 422),
    ('{"history": [NaN]}', 422),
    ('{"history": ["\\ud800"]}', 422),
    ('{"history": [""]}', 422),
    (json.dumps({"history": ["x" * 257]}), 422),
    (json.dumps({"history": list(range(10_000))}), 422),
    ('{"k": 0}', 422),
    ('{"k": 1000000000}', 422),
    ('{"k": "5"}', 422),
    ('{"k": NaN}', 422),
    ('{"beam": 257}', 422),
    ('{"beam": 0}', 422),
    ('{"beam": 256, "per_path": 10000}', 422),
    ('{"timeout_ms": 0}', 422),
    ('{"rerank": 1}', 422),
    ('{"no_such_field_s3cret": 1}', 422),
    ('{"context": {"a": NaN}}', 422),
    ('{"context": {"a": [1]}}', 422),
    ('{"context": {"\\ud800": 1}}', 422),
    (json.dumps({"history": ["s3cret" * 800_000]}), 413),
]


@pytest.mark.parametrize(("body", "status"), BAD_BODIES, ids=[str(i) for i in range(len(BAD_BODIES))])
def test_hostile_bodies_get_a_short_problem(client: TestClient, body: str | bytes, status: int) -> None:
    """The answer is never a 5xx and never echoes the body."""
    response = client.post("/v1/retrieve", content=body, headers={"content-type": "application/json"})

    assert_problem(response, status)
    assert "s3cret" not in response.text


def test_a_body_is_cut_off_while_it_arrives(client: TestClient) -> None:
    """Without a Content-Length the limit counts the bytes that arrive."""
    response = client.post(
        "/v1/retrieve", content=(b" " * 65_536 for _ in range(100)), headers={"content-type": "application/json"}
    )

    assert_problem(response, 413)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
#: Every field of the model but timeout_ms, whose deadline could be missed (504), and a field that it does not have.
FIELDS = sorted(RetrieveRequest.model_fields.keys() - {"timeout_ms"} | {"x"})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=JSON | st.dictionaries(st.sampled_from(FIELDS), JSON | st.lists(st.integers(-3, 50)), max_size=6))
def test_any_json_is_answered_or_refused(client: TestClient, body: Any) -> None:
    """Any JSON value gets 200 or a 4xx problem."""
    response = client.post(
        "/v1/retrieve", content=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )

    if response.status_code != 200:
        assert 400 <= response.status_code < 500, body
        assert_problem(response, response.status_code)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/retrieve", 405)])
def test_unknown_routes_and_methods_are_problems(client: TestClient, method: str, path: str, status: int) -> None:
    """The body is not the framework's own."""
    assert_problem(client.request(method, path), status)


def test_a_request_id_is_kept_if_it_is_valid(client: TestClient) -> None:
    """The id comes back in header and body; an id with odd characters is replaced."""
    kept = client.post("/v1/retrieve", json={}, headers={"x-request-id": "abc-123"})
    replaced = client.post("/v1/retrieve", json={}, headers={"x-request-id": "a b\tc"})

    assert kept.json()["request_id"] == kept.headers["x-request-id"] == "abc-123"
    assert replaced.json()["request_id"] == replaced.headers["x-request-id"] != "a b\tc"


def test_the_openapi_names_every_status_and_route(client: TestClient) -> None:
    """The OpenAPI schema names problem+json for each error and the models for the answers."""
    schema = client.get("/openapi.json").json()

    retrieve = schema["paths"]["/v1/retrieve"]["post"]["responses"]
    assert set(retrieve) == {"200", "400", "408", "413", "415", "422", "429", "500", "503", "504"}
    for status in set(retrieve) - {"200"}:
        assert "application/problem+json" in retrieve[status]["content"]
    assert set(schema["paths"]) == {
        "/v1/retrieve", "/v1/retrieve:batch", "/v1/info", "/livez", "/readyz", "/metrics",
        "/admin/v1/versions", "/admin/v1/swap", "/admin/v1/rollback", "/admin/v1/fold", "/v1/items",
        "/v1/items:delete", "/v1/items/{item_id}", "/v1/events",
    }  # fmt: skip


def test_the_docs_need_no_network(client: TestClient) -> None:
    """Everything that the page loads comes from this service."""
    page = client.get("/docs").text

    assert "https://" not in page
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


def test_metrics_count_answers_by_route_and_status(planted: Planted, tmp_path: Path) -> None:
    """The version served is a label; a path that does not exist makes no new label."""
    store = FolderStore(str(tmp_path))
    store.activate(store.publish(planted.version))
    with TestClient(make_app(store)) as client:
        for _ in range(3):
            client.post("/v1/retrieve", json={"k": 2})
        client.post("/v1/retrieve", json={"k": 0})
        client.get("/made/up")
        text = client.get("/metrics").text

    assert 'deepretrieval_requests_total{code="200",route="/v1/retrieve"} 3.0' in text
    assert 'deepretrieval_requests_total{code="422",route="/v1/retrieve"} 1.0' in text
    assert 'deepretrieval_requests_total{code="404",route="unmatched"} 1.0' in text
    assert f'deepretrieval_index_info{{version="{store.current()}"}} 1.0' in text
    assert "made" not in text


def test_string_ids_and_context_end_to_end(tmp_path: Path) -> None:
    """String ids come back as strings; context decides which items are answered, and odd values are accepted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    config = SMALL.replace(context=("country", "age"), test_users=5)
    users = tmp_path / "users.parquet"
    pq.write_table(
        pa.table(
            {
                "user_id": np.arange(120),
                "country": ["ABCD"[u % GROUPS] for u in range(120)],
                "age": [20.0 + u % GROUPS for u in range(120)],
            }
        ),
        users,
    )
    planted = train_planted(tmp_path / "run", config, text_ids=True, users=users)
    store = FolderStore(str(tmp_path / "store"))
    store.activate(store.publish(planted.version))
    with TestClient(make_app(store)) as client:
        info = client.get("/v1/info").json()
        assert info["model"]["item_id_type"] == "string"
        assert info["context"] == {"categorical": {"country": 4}, "numeric": ["age"]}
        right = 0
        for group, country in enumerate("ABCD"):
            body = {"context": {"country": country, "age": 20 + group}, "k": 3}
            answer = items_of(client.post("/v1/retrieve", json=body))
            right += sum(int(item.removeprefix("item-")) % GROUPS == group for item in answer)
        assert right >= 8  # of 12; without the context it would be 3
        assert len(items_of(client.post("/v1/retrieve", json={"context": {"country": "Z", "age": None}}))) == 5
        assert len(items_of(client.post("/v1/retrieve", json={"context": {"age": 1e300}}))) == 5
