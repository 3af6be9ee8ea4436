"""Invalid and odd request bodies: the answer is short and documented, and does not repeat the body."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.http.models import RetrieveRequest
from tests.chaos.conftest import Goal, amount
from tests.conftest import SMALL, Planted, train_planted
from tests.fleet import ADMIN
from tests.wire import MARK, Judge, Target, target

LIMIT = 1_048_576  # the default of max_body_bytes
JSON_HEADERS = {"content-type": "application/json"}
RETRIEVE, BATCH, SWAP = "/v1/retrieve", "/v1/retrieve:batch", "/admin/v1/swap"

# -- generated bodies --

TEXTS = st.text(max_size=12).map(lambda text: MARK + text) | st.sampled_from(["item-003", "5", "B", ""])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
ANY_JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
IDS = st.integers(-3, 50) | st.sampled_from(["item-003", "5", "-0", MARK, 2**63 - 1, -(2**63), 2**63, 1.0])
#: Valid and nearly valid values of a field; a field that is not listed here gets any scalar.
NEARLY = {
    "history": st.lists(IDS, max_size=6),
    "context": st.dictionaries(st.sampled_from(["country", "age", MARK]), SCALARS, max_size=3),
    "k": st.integers(-1, 1001),
    "beam": st.integers(0, 257),
    "per_path": st.integers(0, 10_001),
    "exclude": st.lists(IDS, max_size=6),
    "exclude_history": st.booleans() | st.integers(0, 1),
    "timeout_ms": st.sampled_from([0, -1, 60_000, 60_001, 1e4, "10000", None]),  # no deadline that could be missed
    "rerank": st.booleans() | st.none(),
}
REQUESTS = st.fixed_dictionaries(
    {}, optional={name: NEARLY.get(name, SCALARS) for name in RetrieveRequest.model_fields}
)
ODD_FIELD = st.dictionaries(
    st.sampled_from(sorted(RetrieveRequest.model_fields.keys() - {"timeout_ms"} | {MARK})), ANY_JSON, max_size=1
)
BODIES = st.builds(lambda request, odd: request | odd, REQUESTS, ODD_FIELD) | ANY_JSON
BATCHES = st.builds(lambda requests: {"requests": requests}, st.lists(BODIES, max_size=3)) | ANY_JSON


@pytest.fixture(scope="module")
def live(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A process that serves the planted version, whose ids are integers."""
    with target(planted, tmp_path_factory.mktemp("live")) as opened:
        yield opened


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A process that serves a version with text ids and context."""
    folder = tmp_path_factory.mktemp("texts")
    columns = {"user_id": np.arange(120), "country": ["AB"[i % 2] for i in range(120)], "age": np.arange(120.0)}
    pq.write_table(pa.table(columns), folder / "users.parquet")
    config = SMALL.replace(context=("country", "age"), epochs=2, warmup_epochs=1)
    with target(train_planted(folder, config, text_ids=True, users=folder / "users.parquet"), folder) as opened:
        yield opened


def test_generated_bodies(live: Target, texts: Target, goal: Goal) -> None:
    """Promise: hostile input. Nearly valid bodies and arbitrary JSON get documented answers, on both routes."""
    judge = Judge(live.openapi)

    @settings(
        max_examples=amount(50_000, 1500),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from([live, texts]), st.tuples(st.just(RETRIEVE), BODIES) | st.tuples(st.just(BATCH), BATCHES))
    def ask(asked: Target, call: tuple[str, Any]) -> None:
        path, body = call
        content = json.dumps(body).encode()
        response = asked.replica.client.post(path, content=content, headers=JSON_HEADERS)
        judge.see(("POST", path), response.status_code, response.content, content)

    ask()

    live.check_unharmed()
    texts.check_unharmed()
    assert judge.statuses[RETRIEVE] == judge.statuses[BATCH] == {200, 422}
    asked = f"{judge.answers:,} generated bodies: server errors, echoes, bodies over 4 KB, undocumented statuses"
    goal(asked, judge.faults(), judge.content)


# -- hand-made bodies --


def in_history(*values: bytes) -> list[bytes]:
    """Bodies, each with one of the values as the only item of its history."""
    return [b'{"history": [%b]}' % value for value in values]


NUMBERS = (b"1e400", b"-1e400", b"NaN", b"Infinity", b"-Infinity", b"1.5", b"9223372036854775808",
           b"-9223372036854775809", b"1" + b"0" * 400, b"1" * 5000, b"0x10", b"01", b"+1", b"1_000", b".5", b"5.",
           b"1e", b"--1")  # fmt: skip
SURROGATES = (rb'"\ud800"', rb'"\udc00"', rb'"\udc00\ud800"', rb'"m4rk3d-1nput\ud800"')
NOT_UTF_8 = (b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xe2\x82"', b'"\xf4\x90\x80\x80"')
MARKED = json.dumps(MARK).encode()
REFUSED = [
    # not JSON, or incomplete
    b"", b" ", b"{", b"}", b"nul", MARK.encode(), b"\x00", b"\xef\xbb\xbf", b'{"history": [1]', b'{"history": [1}',
    b'{"history": [1],}', b"{'history': [1]}", b"{history: [1]}", b'{"history": [1]} x', b'{"history": [1]}{}',
    b'{"history": [1]}\x00', b'{"history": ["m4rk3d-1nput', b'{"history": ["a\nb"]}', b"//\n{}", b"{} # m4rk3d-1nput",
    # JSON other than a valid object
    b"null", b"true", b"0", MARKED, b"[]", b"[{}]", b"NaN", b"1e400",
    # nesting
    b"[" * 100_000, b'{"m4rk3d-1nput":' * 60_000, b"[" * 900 + b"]" * 900, b"[" * 500_000 + b"]" * 500_000,
    *in_history(b"[" * 500 + b"]" * 500, b'{"a":' * 500 + b"1" + b"}" * 500), b'{"context": {"a": [[[[{}]]]]}}',
    # numbers and text
    *in_history(*NUMBERS, *SURROGATES, *NOT_UTF_8),
    *(b'{"k": %b}' % number for number in NUMBERS),
    *(b'{"context": {"age": %b}}' % value for value in (b"NaN", b"1" + b"0" * 400, b"1e400", rb'"\ud800"', b"[]")),
    rb'{"context": {"\ud800": 1}}',
    # a wrong type, too many values, or a value out of range or too long
    *in_history(b"true", b"null", b"{}", b"[1]", b'""', b'"' + b"m" * 257 + b'"'),
    b'{"history": "m4rk3d-1nput"}', b'{"history": {"0": 1}}', b'{"context": [1]}',
    b'{"k": true}', b'{"k": "5"}', b'{"k": 0}', b'{"k": 1001}', b'{"k": [5]}', b'{"beam": 257}',
    b'{"beam": 256, "per_path": 10000}', b'{"rerank": 1}', b'{"rerank": "true"}',
    b'{"timeout_ms": 0}', b'{"timeout_ms": 60001}', b'{"k": 5, "k": 0}',
    json.dumps({"history": [1] * 1001}).encode(), json.dumps({"exclude": [1] * 10_001}).encode(),
    json.dumps({"context": {f"{MARK}{i}": 1 for i in range(65)}}).encode(),
    json.dumps({"context": {MARK * 20: 1}}).encode(),
    # unknown fields, and bodies as large as allowed or larger
    b'{"m4rk3d-1nput": 1}', b'{"History": [1]}', b'{"__proto__": {"k": 5}}', b'{"k\\u0000": 5}',
    json.dumps({f"{MARK}{i}": 1 for i in range(10_000)}).encode(),
    b'{"history": ["' + (MARK.encode() * 100_000)[: LIMIT - 20] + b'"]}',
    b'{"k": ' + b"9" * (LIMIT - 10) + b"}",
    b'{"history": [' + b"0," * (LIMIT // 2 - 20) + b"0]}",
    MARK.encode() * 100_000, b" " * (LIMIT + 1),
]  # fmt: skip
ANSWERED = [
    b'{"context": {"m4rk3d-1nput": 1}}', b'{"context": {"": ""}}', b'{"context": []}', b'{"history": {}}',
    b'{"history": null, "context": null, "exclude_history": null}', b'{"k": 5.0}',
    b"{}", b"\r\n\t {}\n", b" " * (LIMIT - 2) + b"{}", b'{"k": 0, "k": 5}', b'{"k": null}', b"\xef\xbb\xbf{}",
    '{"k": 5}'.encode("utf-16"), '{"k": 5}'.encode("utf-32-le"),
    *in_history(MARKED, b"-0.0", b"1e3", b"9223372036854775807", b"-9223372036854775808", b'"-0"', b'"007"', b'"1e3"',
                b'"' + b"9" * 256 + b'"', rb'"\u0000"', rb'"\ud83d\ude00"', '"\u0665\u202e\ufeff"'.encode()),
]  # fmt: skip


def test_hand_made_bodies(live: Target, goal: Goal) -> None:
    """Promise: hostile input. Each body goes to three routes; /v1/retrieve must refuse or answer it as listed above."""
    judge = Judge(live.openapi)
    post = live.replica.client.post
    for wanted, bodies in (("refused", REFUSED), ("answered", ANSWERED)):
        for body in bodies:
            for path in (RETRIEVE, BATCH, SWAP):
                response = post(path, content=body, headers=JSON_HEADERS)
                judge.see(("POST", path), response.status_code, response.content, body[:100])
                if path == RETRIEVE:
                    assert ("answered" if response.status_code == 200 else "refused") == wanted, (
                        body[:100],
                        response.text,
                    )

    live.check_unharmed()
    assert judge.statuses[RETRIEVE] == {200, 400, 413, 422}
    asked = f"{len(REFUSED) + len(ANSWERED)} hand-made bodies to 3 routes: server errors, echoes, bodies over 4 KB"
    goal(asked, judge.faults("server error", "echo", "long"), judge.content)


# -- requests generated from the OpenAPI --


def unhurried(body: Any) -> Any:
    """The body without its deadlines, which a busy machine could miss."""
    if isinstance(body, list):
        return [unhurried(entry) for entry in body]
    if not isinstance(body, dict):
        return body
    return {
        name: unhurried(value)
        for name, value in body.items()
        if name != "timeout_ms" or not isinstance(value, int | float)
    }


def test_every_route_answers_as_documented(live: Target, goal: Goal) -> None:
    """Promise: hostile input. Valid and invalid requests that schemathesis makes, with and without the token."""
    judge = Judge(live.openapi)
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
    ]
    routes = 0
    for result in schemathesis.openapi.from_dict(live.openapi).get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        routes += 1
        modes = [schemathesis.GenerationMode.POSITIVE]
        if operation.body:  # only a request with a body can be invalid
            modes.append(schemathesis.GenerationMode.NEGATIVE)
        for mode in modes:

            @settings(
                max_examples=amount(200, 15),
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(generation_mode=mode), st.sampled_from([ADMIN, {}]))
            def ask(case: schemathesis.Case[Any], headers: dict[str, str]) -> None:
                case.body = unhurried(case.body)
                response = case.call(base_url=live.replica.address, headers=headers)
                judge.see((case.method, case.path), response.status_code, response.content, case.body)
                case.validate_response(response, checks=checks)

            ask()

    live.check_unharmed()
    assert routes == sum(map(len, live.openapi["paths"].values()))
    asked = f"schemathesis, {routes} routes, {judge.answers:,} requests: server errors, undocumented statuses or bodies"
    goal(asked, judge.faults("server error", "undocumented"), judge.content)
