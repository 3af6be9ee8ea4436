"""Bodies as clients of many languages write them: unambiguous ones are answered, others are refused in plain words."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel

from index_store.folder.store import FolderStore
from index_store.version import Version
from service.http.models import BatchRequest, RetrieveRequest, SwapRequest
from tests.conftest import SMALL, Planted, train_planted
from tests.test_api import ADMIN, assert_problem, items_of, make_app

JSON = {"content-type": "application/json"}
ITEM_ID = "expected an item id: an integer or a string of 1 to 256 characters"
#: Each route that takes a body, and a body that it answers.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/retrieve": {"history": [1, 5], "k": 3},
    "/v1/retrieve:batch": {"requests": [{"history": [1, 5], "k": 3}]},
    "/admin/v1/swap": {"version": "v1-000000000000"},
}


@pytest.fixture(scope="module")
def client(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client, with the admin token, of a service of the planted version."""
    with serving(planted.version, tmp_path_factory.mktemp("store")) as opened:
        yield opened


def serving(version: Version, folder: Path) -> TestClient:
    """A service of this version."""
    store = FolderStore(str(folder))
    store.activate(store.publish(version))
    return TestClient(make_app(store), headers=ADMIN)


def answered(route: str, response: Any) -> bool:
    """Whether the body was read; a swap then answers 404, because no version has the name in the body."""
    status: int = response.status_code
    return status == (404 if "swap" in route else 200)


# -- the Content-Type --

READ = ["application/json", "APPLICATION/JSON", "application/json; charset=utf-8", 'application/json;charset="UTF-8"',
        "application/vnd.api+json", "application/problem+json; charset=utf8", "application/json; odata=verbose",
        "application/json; charset=us-ascii"]  # fmt: skip
NOT_READ = ["", "text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
            "application/octet-stream", "application/x-ndjson", "json", "*/*", "\xff/\xfe"]  # fmt: skip


@pytest.mark.parametrize("route", BODIES)
def test_a_body_of_another_type_is_refused_by_its_header(client: TestClient, route: str) -> None:
    """The 415 has the header's name and the option that curl needs; every type that means JSON is accepted."""
    body = json.dumps(BODIES[route]).encode()
    for kind in NOT_READ:
        headers = {b"content-type": kind.encode("latin-1")} if kind else {}
        problem = assert_problem(client.post(route, content=body, headers=headers), 415)
        assert problem["detail"].startswith("Content-Type: expected application/json")
        assert "-H 'content-type: application/json'" in problem["detail"]
    for kind in READ:
        assert answered(route, client.post(route, content=body, headers={"content-type": kind})), kind


@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x-gzip", "GZIP", "gzip, identity"])
def test_a_compressed_body_is_refused_by_its_header(client: TestClient, route: str, encoding: str) -> None:
    """The 415 names the header, and Accept-Encoding the coding to use; nothing is decompressed."""
    body = gzip.compress(json.dumps(BODIES[route]).encode())
    response = client.post(route, content=body, headers=JSON | {"content-encoding": encoding})

    assert assert_problem(response, 415)["detail"].startswith("Content-Encoding: ")
    assert response.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("route", BODIES)
def test_a_body_in_another_charset_is_refused(client: TestClient, route: str) -> None:
    """The header leads to a 415, bytes that are not UTF-8 to a 400; UTF-16 is recognised by its first bytes."""
    text = json.dumps(BODIES[route])
    for charset in ("iso-8859-1", "windows-1252", "utf-7", "nonsense"):
        response = client.post(
            route, content=text.encode(), headers={"content-type": f"application/json; charset={charset}"}
        )
        assert "UTF-8" in assert_problem(response, 415)["detail"]
        assert "accept-encoding" not in response.headers  # it would mean that compression was wrong
    latin = assert_problem(client.post(route, content='{"x": "\xe4"}'.encode("latin-1"), headers=JSON), 400)
    assert latin["detail"] == "the body is not UTF-8"
    headers = {"content-type": "application/json; charset=utf-16", "content-encoding": "identity"}
    assert answered(route, client.post(route, content=text.encode("utf-16"), headers=headers))
    assert assert_problem(client.post(route, content=b"{", headers=JSON), 400)["detail"] == "the body is not valid JSON"


def test_a_missing_token_is_reported_first(client: TestClient) -> None:
    """A client without the token is not told that its body cannot be read."""
    for headers in ({}, JSON, {"content-encoding": "gzip"}):
        response = client.post("/admin/v1/swap", content=b"{", headers={**headers, "authorization": "Bearer no"})
        assert_problem(response, 401)


def test_every_refusal_says_what_happened(client: TestClient, planted: Planted, tmp_path: Path) -> None:
    """Every detail says more than its status: which routes there are, which limit was exceeded, what to do."""
    too_long = client.post("/v1/retrieve", content=b" " * 1_048_577, headers=JSON)
    arriving = client.post("/v1/retrieve", content=iter([b" " * 1_048_577]), headers=JSON)
    other = client.post("/livez")

    assert "/docs" in assert_problem(client.get("/nowhere"), 404)["detail"]
    assert "/docs" in assert_problem(client.get("/static-offline-docs/nothing"), 404)["detail"]
    assert assert_problem(client.get("/v1/retrieve"), 405)["detail"] == "this route takes POST only"
    assert assert_problem(other, 405)["detail"] == "this route takes GET, HEAD only"
    assert other.headers["allow"] == "GET, HEAD"
    assert client.post("/static-offline-docs/x").headers["allow"] == "GET, HEAD"
    for response in (too_long, arriving):
        assert "1048576 bytes" in assert_problem(response, 413)["detail"]


# -- numbers --


def test_numbers_count_by_value(client: TestClient) -> None:
    """Wherever an integer is expected, 1.0 counts as 1, as pandas, Lua and PHP write it."""
    floats = (
        b'{"history": [1.0, 5.0, 9e0], "exclude": [13.0, -0.0, 17], "k": 5.0, "beam": 3.0, "per_path": 1e1, '
        b'"timeout_ms": 60000.0}'
    )
    integers = {"history": [1, 5, 9], "exclude": [13, 0, 17], "k": 5, "beam": 3, "per_path": 10, "timeout_ms": 60_000}
    wanted = client.post("/v1/retrieve", json=integers)
    single = client.post("/v1/retrieve", content=floats, headers=JSON)
    batch = client.post("/v1/retrieve:batch", content=b'{"requests": [%b]}' % floats, headers=JSON).json()

    assert items_of(single) == items_of(wanted)
    assert single.json()["coverage"] == wanted.json()["coverage"]
    assert [c["item_id"] for c in batch["responses"][0]["candidates"]] == items_of(wanted)


@pytest.mark.parametrize("number", ["3.5", "1e400", "-1e400", "NaN", "Infinity", "true", "false", "null", "[]", "{}"])
def test_an_invalid_id_is_refused(client: TestClient, number: str) -> None:
    """The answer has one error, for the first such id, in plain words."""
    for name in ("history", "exclude"):
        body = f'{{"{name}": [1, {number}, {number}]}}'
        problem = assert_problem(client.post("/v1/retrieve", content=body, headers=JSON), 422)
        (error,) = problem["errors"]
        assert error["field"] == f"{name}.1"
        assert error["message"].startswith(ITEM_ID)


@pytest.mark.parametrize("number", ["9007199254740992.0", "-9007199254740993.0", "1e20", "9223372036854775808"])
def test_a_float_that_may_stand_for_several_integers_is_refused(client: TestClient, number: str) -> None:
    """Floats beyond 2^53 - 1 are not exact; integers may have 64 bits."""
    problem = assert_problem(client.post("/v1/retrieve", content=f'{{"history": [{number}]}}', headers=JSON), 422)
    assert problem["errors"][0]["field"] == "history.0"
    for exact in ("9007199254740991.0", "-9007199254740991.0", "9223372036854775807", "-9223372036854775808"):
        answer = client.post("/v1/retrieve", content=f'{{"history": [{exact}]}}', headers=JSON)
        assert answer.json()["coverage"]["unknown_history"] == 1


@pytest.mark.parametrize(("name", "most"), [("k", 1000), ("beam", 256), ("per_path", 10_000), ("timeout_ms", 60_000)])
def test_one_message_for_each_number(client: TestClient, name: str, most: int) -> None:
    """Each field has the same message, whatever was sent instead of its number."""
    for value in ("0", "-1", str(most + 1), f"{most}.5", "true", '"5"', "NaN", "1e400", "[]", "{}", "9" * 400):
        problem = assert_problem(client.post("/v1/retrieve", content=f'{{"{name}": {value}}}', headers=JSON), 422)
        assert problem["errors"] == [{"field": name, "message": f"expected an integer from 1 to {most}"}]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "[]", "{}", '"' + "x" * 257 + '"', "1e400"])
def test_one_message_for_a_context(client: TestClient, value: str) -> None:
    """One or several values that no feature can have give one error for the whole context."""
    body = f'{{"context": {{"s3cret": {value}, "another": {value}}}}}'
    problem = assert_problem(client.post("/v1/retrieve", content=body, headers=JSON), 422)

    message = "expected a finite number, a string of at most 256 characters, true, false or null"
    assert problem["errors"] == [{"field": "context", "message": message}]


WRONG: list[Any] = [None, True, 0, -1, 10**30, 1.5, "", "s3cret", "s" * 300, [], [[]], [None], [True], {}, {"a": []},
                    [""] * 1001, [1] * 10_001, {"": 1}, {"s3cret" * 30: 1}, {f"s3cret{i}": 1 for i in range(65)},
                    "\ud800", ["\ud800"], {"\ud800": "\ud800"}, [{}], [{"k": 0}], [{}] * 65]  # fmt: skip


def test_no_message_comes_from_a_library(client: TestClient) -> None:
    """Whatever is wrong in a field, or in place of a body, each place has one error in the service's own words."""
    models: dict[str, type[BaseModel]] = {
        "/v1/retrieve": RetrieveRequest,
        "/v1/retrieve:batch": BatchRequest,
        "/admin/v1/swap": SwapRequest,
    }
    for route, model in models.items():
        bodies = [BODIES[route] | {name: value} for name in model.model_fields for value in WRONG]
        bodies += [{"requests": [{}, {name: value}]} for name in RetrieveRequest.model_fields for value in WRONG]
        for body in [*bodies, *(value for value in WRONG if not isinstance(value, dict))]:
            response = client.post(route, content=json.dumps(body), headers=JSON)
            if response.status_code != 422:
                assert response.status_code in {200, 404, 409}, body
                continue
            errors = assert_problem(response, 422).get("errors", [])
            assert len({error["field"] for error in errors}) == len(errors)
            for error in errors:
                assert error["message"].startswith(("expected", "unknown field; expected only "))
                assert "s3cret" not in response.text


def test_unusual_headers_are_refused_by_name(client: TestClient) -> None:
    """A charset that cannot be decoded, a second coding, a transfer coding; and a body with too long a number."""
    json_type = ("content-type", "application/json")
    for headers, name in (
        ([("content-type", "application/json; charset*=%00''x")], "Content-Type"),
        ([json_type, ("content-encoding", "identity"), ("content-encoding", "gzip")], "Content-Encoding"),
        ([json_type, ("transfer-encoding", "gzip, chunked")], "Transfer-Encoding"),
    ):
        problem = assert_problem(client.post("/v1/retrieve", content=b"{}", headers=headers), 415)
        assert name in problem["detail"]
    digits = b'{"history": [' + b"9" * 5000 + b"]}"
    problem = assert_problem(client.post("/v1/retrieve", content=digits, headers=[json_type]), 400)
    assert problem["detail"] == "the body has a number with thousands of digits"


# -- null, and other names --


def test_null_counts_as_left_out(client: TestClient) -> None:
    """Every optional field may be null, alone or with all others, as Go writes a slice that is not set."""
    wanted = items_of(client.post("/v1/retrieve", json={}))
    all_null: dict[str, None] = dict.fromkeys(RetrieveRequest.model_fields)
    for body in [{name: None} for name in all_null] + [all_null]:
        assert items_of(client.post("/v1/retrieve", json=body)) == wanted, body
        batch = client.post("/v1/retrieve:batch", json={"requests": [body]}).json()
        assert [c["item_id"] for c in batch["responses"][0]["candidates"]] == wanted, body
    served = client.get("/v1/info").json()["version"]
    assert client.post("/admin/v1/swap", json={"version": served, "expected": None}).status_code == 200


def test_an_empty_list_and_an_empty_object_are_the_same(client: TestClient) -> None:
    """PHP writes [] for an empty object, Lua {} for an empty list; all other values of the wrong kind are refused."""
    wanted = items_of(client.post("/v1/retrieve", json={}))
    empties: list[dict[str, object]] = [{"context": []}, {"history": {}}, {"exclude": {}}]
    for body in [*empties, {"context": [], "history": {}, "exclude": {}}]:
        assert items_of(client.post("/v1/retrieve", json=body)) == wanted, body
    full: list[dict[str, object]] = [{"context": [1]}, {"history": {"0": 1}}, {"k": []}, {"rerank": {}}]
    for body in full:
        assert_problem(client.post("/v1/retrieve", json=body), 422)


def test_null_is_no_item_and_no_required_field(client: TestClient) -> None:
    """Only optional fields may be null."""
    for route, body, field in (
        ("/v1/retrieve", {"history": [None]}, "history.0"),
        ("/v1/retrieve", None, "body"),
        ("/v1/retrieve:batch", {"requests": None}, "requests"),
        ("/v1/retrieve:batch", {"requests": [None]}, "requests.0"),
        ("/admin/v1/swap", {"version": None}, "version"),
    ):
        problem = assert_problem(client.post(route, content=json.dumps(body), headers=JSON), 422)
        assert [error["field"] for error in problem["errors"]] == [field]


def test_the_openapi_says_what_may_be_null(client: TestClient) -> None:
    """Exactly the fields that are not required may be null."""
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("RetrieveRequest", "BatchRequest", "SwapRequest"):
        for field, about in schemas[name]["properties"].items():
            required = field in schemas[name].get("required", [])
            assert ({"type": "null"} in about.get("anyOf", [])) == (not required), (name, field)


@pytest.mark.parametrize(
    "odd", [{"user_id": 1}, {"History": []}, {"s3cret": None}, {f"s3cret{i}": 1 for i in range(99)}]
)
def test_an_unknown_field_is_answered_with_the_known_ones(client: TestClient, odd: dict[str, Any]) -> None:
    """The error lists the fields of the schema, and does not repeat the name that the client sent."""
    known = ", ".join(RetrieveRequest.model_fields)
    single = client.post("/v1/retrieve", json=odd)
    third = client.post("/v1/retrieve:batch", json={"requests": [{}, {}, odd]})
    batch = client.post("/v1/retrieve:batch", json={"requests": [{}]} | odd)
    swap = client.post("/admin/v1/swap", json={"version": "v1-000000000000"} | odd)
    for response, field, expected in (
        (single, "body", known),
        (third, "requests.2", known),
        (batch, "body", "requests"),
        (swap, "body", "version, expected"),
    ):
        message = f"unknown field; expected only {expected}"
        assert assert_problem(response, 422)["errors"] == [{"field": field, "message": message}]
        assert "s3cret" not in response.text


# -- the page /docs, where each route can be tried --


def versions(planted: Planted, folder: Path) -> Iterator[Version]:
    """A version with integer ids, and a version with string ids and context."""
    users = folder / "users.parquet"
    columns = {"user_id": np.arange(120), "country": ["AB"[i % 2] for i in range(120)], "age": np.arange(120.0)}
    pq.write_table(pa.table(columns), users)
    quick = SMALL.replace(epochs=2, warmup_epochs=1)
    yield planted.version
    with_context = quick.replace(context=("country", "age"))
    yield train_planted(folder / "context", with_context, text_ids=True, users=users).version


def test_the_example_works_on_every_version(planted: Planted, tmp_path: Path) -> None:
    """The example of each body is answered and names known items; so is the example shown while there is no version."""
    with TestClient(make_app(FolderStore(str(tmp_path / "none")))) as client:
        fallback = client.get("/openapi.json").json()["components"]["schemas"]["RetrieveRequest"]["examples"]
    for number, version in enumerate(versions(planted, tmp_path)):
        with serving(version, tmp_path / str(number)) as client:
            schemas = client.get("/openapi.json").json()["components"]["schemas"]
            (single,) = schemas["RetrieveRequest"]["examples"]
            (batch,) = schemas["BatchRequest"]["examples"]
            (swap,) = schemas["SwapRequest"]["examples"]
            answer = client.post("/v1/retrieve", json=single)

            assert len(single["history"]) == 2
            assert list(single["context"]) == (["country", "age"] if number else [])
            assert len(items_of(answer)) == 10
            assert answer.json()["coverage"]["unknown_history"] == 0
            assert client.post("/v1/retrieve:batch", json=batch).status_code == 200
            assert client.post("/admin/v1/swap", json=swap).status_code == 200
            assert [client.post("/v1/retrieve", json=body).status_code for body in fallback] == [200]


WRITING = ("/v1/items", "/v1/items:delete", "/v1/events")


def test_the_page_asks_for_the_token(client: TestClient) -> None:
    """Only the routes for admin and for writing name a bearer token, which makes the page show its Authorize button."""
    document = client.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]

    assert [(scheme["type"], scheme["scheme"]) for scheme in schemes.values()] == [("http", "bearer")] * 2
    for path, operations in document["paths"].items():
        token = "HTTPBearer" if "/admin/" in path else "WriteToken" if path in WRITING or "/v1/items/" in path else None
        for method, operation in operations.items():
            reads_item = method == "get" and path.startswith("/v1/items/")
            assert operation.get("security") == ([{token: []}] if token and not reads_item else None)


def test_the_openapi_names_the_status_for_other_bodies(client: TestClient) -> None:
    """A 415 is documented wherever a body is taken."""
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for operation in operations.values():
            assert ("415" in operation["responses"]) == ("requestBody" in operation), path
