"""The same user gives the network the same numbers, whether a file or a request describes the user.

The service's answer to raw values is compared with what torch computes from training's arrays.
"""

from __future__ import annotations

import csv
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from index_store.folder.store import FolderStore
from index_store.version import Version
from retrieval.context import Category, ContextSchema, Number
from service.http.app import create_app
from service.process.settings import Settings
from tests.conftest import SMALL, Planted, train_planted
from tests.planted import write_interactions
from trainer.data.dataset import load_dataset
from trainer.errors import DataError

TINY = SMALL.replace(epochs=2, warmup_epochs=1, reassignments=0, rerank="softmax", embedding=8, hidden=8, test_users=5)


def write_users(folder: Path, columns: Mapping[str, Sequence[str]]) -> Path:
    """Write users.csv with these cells for users 0, 1, ...."""
    file = folder / "users.csv"
    with file.open("w", newline="") as text:
        rows = csv.writer(text)
        rows.writerow(["user_id", *columns])
        rows.writerows([user, *cells] for user, cells in enumerate(zip(*columns.values(), strict=True)))
    return file


def train(folder: Path, columns: Mapping[str, Sequence[str]], context: Sequence[str]) -> Planted:
    """A version whose context features are those columns."""
    folder.mkdir(parents=True, exist_ok=True)
    return train_planted(folder, TINY.replace(context=tuple(context)), users=write_users(folder, columns))


def ask(folder: Path, version: Version, bodies: Sequence[Any]) -> list[Any]:
    """The answers of a service of this version."""
    store = FolderStore(str(folder / "store"))
    store.activate(store.publish(version))
    settings = {"store": str(folder / "store"), "timeout_ms": 60_000}  # a busy machine misses the default deadline
    app = create_app(Settings.model_validate(settings), store)
    with TestClient(app) as client:
        replies = [client.post("/v1/retrieve", json=body) for body in bodies]
        assert {reply.status_code for reply in replies} == {200}, [reply.text for reply in replies]
        return [reply.json() for reply in replies]


def torch_scores(planted: Planted, categories: Sequence[int], numbers: Sequence[float]) -> dict[int, float]:
    """The logit of each item from the softmax head, for a user without history, computed in torch alone."""
    model = planted.trained.model
    with torch.inference_mode():
        user = model.encoder(
            torch.full((1, 1), -1),
            torch.tensor(np.array([categories], np.int64)),
            torch.tensor(np.array([numbers], np.float32)),
        )[0, 0]
        logits = model.item_vectors @ user + model.item_bias
    return dict(zip(planted.dataset.item_ids.tolist(), logits.tolist(), strict=True))


def assert_same(planted: Planted, answer: Any, categories: Sequence[int], numbers: Sequence[float]) -> None:
    """Require that the answer's scores are those that torch gives for this encoding."""
    scores = torch_scores(planted, categories, numbers)
    expected = [scores[candidate["item_id"]] for candidate in answer["candidates"]]
    assert expected
    assert [candidate["score"] for candidate in answer["candidates"]] == pytest.approx(expected, abs=0.02)


def test_two_categories_are_served_in_the_order_of_training(tmp_path: Path) -> None:
    """The order is not alphabetical; country has more values, so swapped columns would be out of bounds."""
    context = ["segment", "country"]
    columns = {"segment": list("AB") * 60, "country": [f"c{user % 7}" for user in range(120)]}
    planted = train(tmp_path / "run", columns, context)
    users = range(14)
    bodies = [{"context": {name: columns[name][user] for name in columns}, "k": 5} for user in users]

    answers = ask(tmp_path, planted.version, bodies)

    for user, answer in zip(users, answers, strict=True):
        codes = {"segment": 1 + user % 2, "country": 1 + user % 7}
        assert planted.dataset.context.categories[user].tolist() == [codes[name] for name in context]
        assert_same(planted, answer, [codes[name] for name in context], [])
        assert answer["coverage"]["unknown_context"] == 0


NAMES = st.lists(
    st.sampled_from(["zip", "age", "Country", "a", "score", "x y", "é"]), min_size=2, max_size=4, unique=True
)
#: For each kind of column, its cells in a CSV file, each with the value that a request sends for it.
KINDS: dict[str, list[tuple[str, Any]]] = {
    "number": [("3", 3), ("-2.5", -2.5), ("1e3", 1000), ("40", "40"), ("0", 0), ("", None), ("7", 7.0)],
    "post code": [("01067", "01067"), ("80331", "80331"), ("00003", "00003"), ("", ""), ("50667", "50667")],
    "truth": [("True", True), ("False", False), ("", None), ("True", "true")],
    "text": [("NA", "NA"), ("null", "null"), ("France", "France"), ("", None), ("a,b", "a,b"), ("nan", "nan")],
}


def drawn_users(kinds: Mapping[str, str], users: int = 120) -> dict[str, list[tuple[str, Any]]]:
    """Each feature's cells with what a request sends for them; they differ between users and between features."""
    return {
        name: [KINDS[kind][(user + user // 7 * place) % len(KINDS[kind])] for user in range(users)]
        for place, (name, kind) in enumerate(kinds.items())
    }


def cells(drawn: Mapping[str, Sequence[tuple[str, Any]]]) -> dict[str, list[str]]:
    """The cells of users.csv."""
    return {name: [cell for cell, _ in column] for name, column in drawn.items()}


@pytest.mark.parametrize(
    "kinds",
    [
        {"score": "number", "age": "number", "Country": "text", "a": "truth"},
        {"zip": "post code", "é": "text", "x y": "number"},
    ],
)
def test_the_trainer_and_the_service_agree(tmp_path: Path, kinds: dict[str, str]) -> None:
    """Several features of a kind, missing and unseen values: the scores are those of torch on training's arrays."""
    drawn = drawn_users(kinds)
    planted = train(tmp_path / "run", cells(drawn), list(kinds))
    users = range(10)
    known = [{name: drawn[name][user][1] for name in sorted(kinds)} for user in users]
    unseen = [{name: f"never {kind}" for name, kind in kinds.items()} | {"never heard of": 1}]

    answers = ask(tmp_path, planted.version, [{"context": context, "k": 5} for context in [*known, *unseen]])

    context = planted.dataset.context
    assert all(len(set(column.tolist())) > 1 for column in (*context.categories[:10].T, *context.numbers[:10].T))
    for user, answer in zip(users, answers, strict=False):
        assert_same(planted, answer, context.categories[user].tolist(), context.numbers[user].tolist())
        assert answer["coverage"]["unknown_context"] == 0
    assert_same(planted, answers[-1], [0] * len(context.schema.categories), [0] * len(context.schema.numbers))
    assert answers[-1]["coverage"]["unknown_context"] == len(kinds) + 1


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_request_is_encoded_as_the_file_was(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """For any schema, read from CSV and stored, each user's request gets the codes of training."""
    folder = tmp_path_factory.mktemp("drawn")
    kinds = {name: data.draw(st.sampled_from(sorted(KINDS))) for name in data.draw(NAMES)}
    drawn = drawn_users(kinds)
    users = write_users(folder, cells(drawn))
    dataset = load_dataset(write_interactions(folder), TINY.replace(context=tuple(kinds)), users=users)
    stored = json.dumps(dataset.context.schema.to_json(), sort_keys=True)

    schema = ContextSchema.from_json(json.loads(stored))

    assert [feature.name for feature in schema.features] == list(kinds)
    assert [isinstance(feature, Number) for feature in schema.features] == [k == "number" for k in kinds.values()]
    for user in range(14):
        codes, numbers, unknown = schema.encode(
            {name: drawn[name][user][1] for name in data.draw(st.permutations(sorted(kinds)))}
        )
        assert codes == dataset.context.categories[user].tolist()
        assert np.allclose(numbers, dataset.context.numbers[user], rtol=1e-6)
        assert unknown == 0


def test_values_in_another_spelling_are_counted_as_unknown(tmp_path: Path) -> None:
    """`france`, and 1 instead of True, are unknown; "True" and "true" both mean true."""
    columns = {"land": ["France", "Chile"] * 60, "new": ["True", "True", "False"] * 40}
    dataset = load_dataset(
        write_interactions(tmp_path), TINY.replace(context=tuple(columns)), users=write_users(tmp_path, columns)
    )

    for request, codes, unknown in (
        ({"land": "france"}, [0, 0], 1), ({"new": 1}, [0, 0], 1), ({"new": "yes"}, [0, 0], 1),
        ({"land": "France", "new": True}, [2, 2], 0), ({"new": "true"}, [0, 2], 0), ({"new": "True"}, [0, 2], 0),
        ({"gone": None, "land": ""}, [0, 0], 0),
    ):  # fmt: skip
        assert dataset.context.schema.encode(request) == (codes, [], unknown), request


def test_values_of_parquet_that_json_lacks(tmp_path: Path) -> None:
    """NaN and infinity are missing; float32 and times become the text that people write; the version is served."""
    day = datetime.datetime(1980, 5, 1, tzinfo=datetime.UTC).replace(tzinfo=None)
    table = pa.table(
        {
            "user_id": range(120),
            "height": [float("nan"), float("inf"), 1.5, 2.5] * 30,
            "size": pa.array([0.1, 0.2, float("nan")] * 40, pa.float32()),
            "born": pa.array([day, day + datetime.timedelta(days=1)] * 60, pa.timestamp("ns")),
            "seen": pa.array([day, day + datetime.timedelta(seconds=1)] * 60, pa.timestamp("us")),
        }
    )
    (tmp_path / "run").mkdir()
    pq.write_table(table, tmp_path / "run" / "users.parquet")
    config = TINY.replace(context=("height", "size:category", "born", "seen"))
    planted = train_planted(tmp_path / "run", config, users=tmp_path / "run" / "users.parquet")

    assert planted.dataset.context.schema.features == (
        Number("height", 2.0, 0.5),
        Category("size", ("0.1", "0.2")),
        Category("born", ("1980-05-01", "1980-05-02")),
        Category("seen", ("1980-05-01 00:00:00", "1980-05-01 00:00:01")),
    )
    context = {"height": 2.5, "size": 0.2, "born": "1980-05-02", "seen": "1980-05-01 00:00:00"}
    (answer,) = ask(tmp_path, planted.version, [{"context": context}])
    assert answer["coverage"]["unknown_context"] == 0
    assert_same(planted, answer, [2, 2, 1], [1.0])


def test_a_users_file_that_does_not_match_is_reported(tmp_path: Path) -> None:
    """Ids in another spelling are an error; a message names the odd cell that makes a column a category."""
    interactions = write_interactions(tmp_path)
    config = SMALL.replace(context=("age",))
    users = tmp_path / "users.csv"
    users.write_text("user_id,age\n" + "".join(f"u{user},{user}\n" for user in range(120)))
    with pytest.raises(DataError, match=r"has none of the 120 users .* first id is 'u0' there and '0' in the"):
        load_dataset(interactions, config, users=users)

    users.write_text("user_id,age\n" + "".join(f"{user},{'NA' if user == 3 else user}\n" for user in range(120)))
    messages = load_dataset(interactions, config, users=users).notes
    assert messages == (f"{users}: column age: a category, not a number, because of 'NA'",)


def test_post_codes_keep_their_zeros(tmp_path: Path) -> None:
    """A column with 00003 has categories, not numbers, and a request with 3 is counted as unknown."""
    users = write_users(tmp_path, {"zip": [f"{user % 6:05}" for user in range(120)]})
    schema = load_dataset(write_interactions(tmp_path), TINY.replace(context=("zip",)), users=users).context.schema

    assert schema.features == (Category("zip", tuple(f"{n:05}" for n in range(6))),)
    assert schema.encode({"zip": "00003"}) == ([4], [], 0)
    assert schema.encode({"zip": 3}) == ([0], [], 1)


def test_only_an_empty_cell_is_missing(tmp_path: Path) -> None:
    """NA is Namibia, quoted or not; null and nan are ordinary words."""
    file = tmp_path / "users.csv"
    cells = ["NA", '"NA"', "null", "nan", "", "DE"]
    file.write_text("user_id,country\n" + "".join(f"{user},{cells[user % 6]}\n" for user in range(120)))

    dataset = load_dataset(write_interactions(tmp_path), SMALL.replace(context=("country",)), users=file)

    assert dataset.context.schema.features == (Category("country", ("DE", "NA", "nan", "null")),)
    assert dataset.context.categories[:6, 0].tolist() == [2, 2, 4, 3, 0, 1]


def test_an_unknown_feature_is_counted_not_refused(planted: Planted, tmp_path: Path) -> None:
    """A rollback to a version without the feature must not turn the clients' requests into errors."""
    (answer,) = ask(tmp_path, planted.version, [{"history": [1], "context": {"country": "France", "age": 3}}])

    assert answer["coverage"]["unknown_context"] == 2


def test_a_column_can_be_declared_a_category_or_a_number(tmp_path: Path) -> None:
    """A number may be declared a category; declaring text a number is an error that names the first value."""
    users = write_users(tmp_path, {"plz": [str(10000 + user % 3) for user in range(120)], "size": ["10", "XL"] * 60})
    interactions = write_interactions(tmp_path)

    def context(*specs: str) -> tuple[Category | Number, ...]:
        return load_dataset(interactions, SMALL.replace(context=specs), users=users).context.schema.features

    (plz,) = context("plz")
    assert isinstance(plz, Number)
    assert plz.mean == 10001.0
    assert plz.std == pytest.approx((2 / 3) ** 0.5)
    assert context("plz:category", "size") == (
        Category("plz", ("10000", "10001", "10002")),
        Category("size", ("10", "XL")),
    )
    assert context("plz:categorical") == context("plz:category")
    with pytest.raises(DataError, match=r"users.csv: column size: expected numbers, found 'XL'; name it size:category"):
        context("size:number")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([""] * 120, "column c: no user has a value"),
        (["x" * 257] * 120, "column c: a value of 257 characters; expected at most 256"),
        (["1e308", "-1e308"] * 60, "column c: the values are too large to standardise"),
    ],
)
def test_an_unusable_column_is_named(tmp_path: Path, column: list[str], message: str) -> None:
    """The error comes before anything is trained."""
    users = write_users(tmp_path, {"c": column})

    with pytest.raises(DataError, match=message):
        load_dataset(write_interactions(tmp_path), SMALL.replace(context=("c",)), users=users)


@pytest.mark.parametrize(
    ("values", "value", "code"),
    [
        (("2", "7"), 2, 1), (("2", "7"), 2.0, 1), (("2", "7"), "2", 1), (("2.0", "7.0"), 2, 1), (("2.0",), "2", 1),
        (("02101",), "02101", 1), (("02101",), 2101, 0), (("02101",), "2101", 0),
        (("1e20",), 1e20, 1), (("100000000000000000000",), 1e20, 1), (("9007199254740993",), 9007199254740992, 0),
        (("true",), True, 1), (("True",), True, 1), (("TRUE",), "true", 1), (("true",), 1, 0), (("1",), True, 0),
        (("France",), "france", 0), (("France",), " France ", 1), (("2", "2.0"), "2.0", 2), (("2", "2.0"), 2, 1),
        (("x",), None, 0), (("x",), "", 0), (("x",), float("nan"), 0), (("nan",), "nan", 1), (("0.1",), 0.1, 1),
    ],
)  # fmt: skip
def test_values_match_by_their_meaning(values: tuple[str, ...], value: Any, code: int) -> None:
    """Values are compared as they are written, then as numbers or booleans; leading zeros always count."""
    assert Category("c", values).encode(value) == code


@pytest.mark.parametrize(
    ("value", "encoded", "unknown"),
    [
        (30, -1.0, 0), (50.0, 1.0, 0), ("50", 1.0, 0), (None, 0.0, 0), ("", 0.0, 0), (float("nan"), 0.0, 0),
        ("old", 0.0, 1), (True, 0.0, 1), ("050", 0.0, 1), (1e300, 1e6, 0), (float("inf"), 0.0, 1), (10**400, 0.0, 1),
    ],
)  # fmt: skip
def test_numbers_by_hand(value: Any, encoded: float, unknown: int) -> None:
    """Mean 40, deviation 10; a missing value becomes the mean, and so does text, which is counted as unknown."""
    schema = ContextSchema((Number("age", 40.0, 10.0),))

    assert schema.encode({"age": value}) == ([], [encoded], unknown)


def test_encoding_many_is_encoding_one_by_one() -> None:
    """The trainer encodes all users at once, the service one at a time."""
    number = Number("age", 40.0, 7.0)
    values = np.array([30.0, np.nan, 41.5, 1e300, -1e300, 0.1, np.inf])

    assert number.encode_all(values).tolist() == [float(np.float32(number.encode(v))) for v in values.tolist()]


@pytest.mark.parametrize(
    "document",
    [
        [], {}, {"features": 3}, {"features": [{}]}, {"features": [{"name": 3, "kind": "category", "values": []}]},
        {"features": [{"name": "x", "kind": "colour"}]}, {"features": [{"name": "x", "kind": "category"}]},
        {"features": [{"name": "x", "kind": "number", "mean": 0, "std": 0}]}, {"features": [None]},
        {"features": [{"name": "x", "kind": "number", "mean": float("nan"), "std": 1}]},
        {"features": [{"name": "x", "kind": "category", "values": [1]}]},
        {"features": [{"name": "x", "kind": "category", "values": ["1" * 257]}]},
        {"features": [{"name": "x", "kind": "category", "values": []}] * 2}, {"categorical": {}, "numeric": {}},
    ],
)  # fmt: skip
def test_a_malformed_schema_is_refused(document: Any) -> None:
    """Every malformed document is a ValueError."""
    with pytest.raises(ValueError, match="context"):
        ContextSchema.from_json(document)


def test_a_stored_schema_keeps_its_order() -> None:
    """The order survives JSON with sorted keys."""
    schema = ContextSchema((Category("z", ("b", "a")), Number("a", 1.0, 2.0), Category("m", ())))

    assert ContextSchema.from_json(json.loads(json.dumps(schema.to_json(), sort_keys=True))) == schema
