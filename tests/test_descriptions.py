"""Attributes and titles of items: what is put is placed by them, shown, changed, and kept through a fold."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from index_store.folder.store import FolderStore
from index_store.version import Version
from retrieval.attributes import Attribute, Attributes, AttributeSchema
from retrieval.changes import Delete, Evidence, Patch, Put
from retrieval.fold import fold
from retrieval.searcher import Searcher
from tests.conftest import SMALL
from tests.planted import GROUPS, write_interactions
from tests.silent_progress import SilentProgress
from tests.test_api import ADMIN, assert_problem, items_of, make_app
from tests.test_overlay import records
from trainer.data.dataset import load_dataset
from trainer.data.split import split_users
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.fit import fit
from trainer.publish.version import make_version

WRITER = {"Authorization": "Bearer w"}
COLOURS = ["red", "green", "blue", "black"]  # of the four groups


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """The planted data; each item has the colour of its group, a price, and both in its title. Item 39 has nothing."""
    folder = tmp_path_factory.mktemp("described")
    items = list(range(39))
    table = {
        "item_id": items,
        "title": [f"{COLOURS[item % GROUPS].title()} thing, no. {item}" for item in items],
        "colour": [COLOURS[item % GROUPS] for item in items],
        "tags": [["thing", f"g{item % 2}"] for item in items],
        "price": [float(10 * (item % GROUPS) + 1) for item in items],
        "made": pa.array([item % GROUPS * 86_400 for item in items], pa.timestamp("s")),
    }
    pq.write_table(pa.table(table), folder / "items.parquet")
    config = SMALL.replace(attributes=("colour", "tags", "price", "made"))
    dataset = load_dataset(write_interactions(folder), config, folder / "items.parquet")
    split = split_users(dataset, config)
    trained = fit(config, dataset, split, Run(folder / "run", config, dataset), SilentProgress())
    return make_version(config, dataset, split, trained, SilentProgress(), allow_collapsed=True)


def serve(version: Version, folder: Path) -> TestClient:
    """A replica that serves the version; it has to be entered."""
    store = FolderStore(str(folder))
    store.activate(store.publish(version))
    return TestClient(make_app(store, write_token="w"))


@pytest.fixture
def client(version: Version, tmp_path: Path) -> Iterator[TestClient]:
    """A replica of its own."""
    with serve(version, tmp_path / "store") as opened:
        yield opened


@pytest.fixture(scope="module")
def refusing(version: Version, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A replica that several tests use, because it refuses everything that they send."""
    with serve(version, tmp_path_factory.mktemp("store")) as opened:
        yield opened


def put(client: TestClient, item: int, **fields: Any) -> Any:
    """The response to a put of one item."""
    return client.post("/v1/items", json={"items": [{"item_id": item, **fields}]}, headers=WRITER)


def show(client: TestClient, item: int | str) -> Any:
    """What the catalogue has about an item."""
    response = client.get(f"/v1/items/{item}")
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(
    "attributes",
    [{"colour": "green"}, {"title": "A GREEN thing"}, {"price": 12, "tags": ["g1", "new"]}, {"made": "1970-01-02"}],
    ids="-".join,
)
def test_an_item_is_placed_by_its_attributes(client: TestClient, attributes: dict[str, Any]) -> None:
    """A user of the group gets it, and it works in a history."""
    placed = put(client, 1001, attributes=attributes).json()["items"][0]
    assert placed["placed_by"] == "attributes"
    assert placed["paths"]
    answer = client.post("/v1/retrieve", json={"history": [1, 5, 9], "k": 12})
    assert 1001 in items_of(answer)
    after = client.post("/v1/retrieve", json={"history": [1001], "k": 6})
    assert sum(item % GROUPS == 1 for item in items_of(after)) >= 3


def test_what_is_known_helps_more(client: TestClient) -> None:
    """Clicks come before likes, and these before attributes. Attributes that say nothing place nothing."""
    blue = {"attributes": {"colour": "blue"}}
    for fields, by in (
        ({"clicked_by": [[1, 5]], "like": [2], **blue}, "clicks"),
        ({"like": [2], **blue}, "like"),
        ({"like": [999], **blue}, "attributes"),
        ({"attributes": {"colour": "orange"}}, "none"),
        ({"attributes": {"title": "unheard of"}}, "none"),
        ({"attributes": {"colour": None}}, "none"),
        ({"attributes": {"colour": " ", "title": ""}}, "none"),
    ):
        assert put(client, 1001, **fields).json()["items"][0]["placed_by"] == by
        client.post("/v1/items:delete", json={"item_ids": [1001]}, headers=WRITER)


def test_an_item_is_shown(client: TestClient) -> None:
    """Of the version's items and of new ones: where they are found, what they are, since when, and beside which."""
    old = show(client, 5)
    assert (old["item_id"], old["live"], old["since"], old["title"]) == (5, True, None, "Green thing, no. 5")
    assert old["attributes"] == {"colour": "green", "tags": ["thing", "g1"], "price": 11, "made": 86_400_000}
    assert all(1 <= path["position"] <= path["size"] for path in old["paths"])
    assert old["paths"]
    assert {each["item_id"] % GROUPS for each in old["neighbours"][:3]} == {1}
    assert show(client, 39)["attributes"] == {}
    assert show(client, 39)["title"] is None

    before = int(1000 * time.time())
    placed = put(client, 1001, clicked_by=[[1, 5], [5, 9]], attributes={"price": 3, "title": "New", "colour": "pink"})
    new = show(client, "1001")
    assert [path["nodes"] for path in new["paths"]] == sorted(placed.json()["items"][0]["paths"])
    assert (new["attributes"], new["title"]) == ({"price": 3, "colour": "pink"}, "New")
    assert new["since"] >= before - 1
    assert new["neighbours"][0]["item_id"] in (1, 5, 9)

    client.post("/v1/items:delete", json={"item_ids": [1001, 5]}, headers=WRITER)
    assert [(show(client, item)["live"], show(client, item)["paths"]) for item in (1001, 5)] == [(False, [])] * 2
    assert_problem(client.get("/v1/items/4711"), 404)
    assert_problem(client.get("/v1/items/abc"), 404)


def test_attributes_change(client: TestClient) -> None:
    """A put of an item that exists changes only those that it names; null takes one away."""
    assert put(client, 5, attributes={"price": 7, "colour": None}).json()["items"][0]["placed_by"] == "kept"
    assert show(client, 5)["attributes"] == {"tags": ["thing", "g1"], "price": 7, "made": 86_400_000}
    put(client, 5, clicked_by=[[2, 6]], attributes={"title": "Other", "made": 5})
    assert show(client, 5)["attributes"] == {"tags": ["thing", "g1"], "price": 7, "made": 5}
    assert show(client, 5)["title"] == "Other"


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"secret": 1}, "expected only attributes that the version has: colour, tags, price, made, title"),
        ({"price": "cheap"}, "price: expected a number"),
        ({"price": True}, "price: expected a number"),
        ({"price": 2**60}, "price: expected a number"),
        ({"made": "soon"}, "made: expected a time in ISO 8601"),
        ({"made": 1.5}, "made: expected a time"),
        ({"colour": ["red"]}, "colour: expected a text, a number or a truth value"),
        ({"colour": "x" * 257}, "colour: expected a text"),
        ({"tags": "red"}, "tags: expected a list of at most 32"),
        ({"tags": [None]}, "tags: expected a list"),
        ({"tags": ["x"] * 33}, "tags: expected a list"),
        ({"title": 5}, "title: expected a text of at most 1000 characters"),
        ({"title": "x" * 1001}, "title: expected a text"),
        ({"title": "half \ud800"}, "title: expected a text"),
        ({"colour": "half \ud800"}, "colour: expected a text"),
        ({"tags": ["\udfff"]}, "tags: expected a list"),
        ({"half \ud800": 1}, "expected only attributes that the version has"),
    ],
    ids=str,
)
def test_wrong_attributes(refusing: TestClient, attributes: Any, words: str) -> None:
    """They are refused with what was expected, and nothing is put."""
    body = json.dumps({"items": [{"item_id": 1001, "attributes": attributes}]})  # with escapes for what is not UTF-8
    response = refusing.post("/v1/items", content=body, headers={**WRITER, "content-type": "application/json"})
    assert words in assert_problem(response, 422)["detail"]
    assert "secret" not in response.text
    assert_problem(refusing.get("/v1/items/1001"), 404)


def test_a_fold_keeps_descriptions(client: TestClient) -> None:
    """Those that changed, those of new items with new categories, and those of all others."""
    put(client, 1001, like=[1], attributes={"colour": "pink", "tags": ["fresh", "g1"], "price": 0.5, "title": "Rosé"})
    put(client, 5, attributes={"price": None, "title": "Other"})
    put(client, 6, attributes={"colour": "pink"})
    client.post("/v1/items:delete", json={"item_ids": [7]}, headers=WRITER)
    shown = [show(client, item) for item in (0, 5, 6, 7, 38, 39, 1001)]
    assert client.post("/admin/v1/fold", headers=ADMIN).status_code == 200
    again = [show(client, item) for item in (0, 5, 6, 7, 38, 39, 1001)]
    for before, after in zip(shown, again, strict=True):
        for name in ("item_id", "live", "since", "title", "paths"):
            assert before[name] == after[name]
        tags = {
            name: sorted(value) if isinstance(value, list) else value for name, value in before["attributes"].items()
        }
        assert tags == {n: sorted(v) if isinstance(v, list) else v for n, v in after["attributes"].items()}
    assert again[-1]["attributes"]["colour"] == "pink"
    put(client, 1001, attributes={"price": 2})
    assert show(client, 1001)["attributes"]["tags"] == again[-1]["attributes"]["tags"]


def test_new_categories_change_no_other_place(version: Version) -> None:
    """After a fold with categories that the training did not see, all others place an item as before."""
    searcher = Searcher.open(version, 20)
    [placement] = searcher.place([Evidence(like=[1])])
    new = {"colour": "pink", "tags": ["fresh", "g1", "rare"]}
    folded = Searcher.open(fold(version, records([[Put(1001, placement, Evidence(attributes=new))]])), 20)
    asked: list[dict[str, Any]] = [{"colour": "green"}, {"tags": ["g1"]}, {"price": 11}, {"title": "Green thing"}]
    before, after = (s.place([Evidence(attributes=each) for each in asked]) for s in (searcher, folded))

    for one, two in zip(before, after, strict=True):
        assert one.placed_by == two.placed_by == "attributes"
        first, second = one.vector.astype(float), two.vector.astype(float)
        assert first @ second / np.linalg.norm(first) / np.linalg.norm(second) > 0.99


def test_descriptions_follow_the_records(version: Version) -> None:
    """Deleted and put again, an item has only what the last put said; a fold of a fold has the same."""
    searcher = Searcher.open(version, 20)
    [placement] = searcher.place([Evidence(like=[1])])
    one, two, three = (
        Put(1001, placement, Evidence(attributes=attributes), None, since)
        for attributes, since in (({"price": 1, "colour": "red"}, 11), ({"price": 2}, 22), ({"title": "t"}, 33))
    )
    made = records([[one], [Delete(1001), two, Patch(3, attributes={"price": 9})], [three, Delete(4)]])
    searcher.apply(made)
    for _ in range(2):
        index, descriptions = searcher.structure.index, searcher.descriptions
        assert descriptions.of(1001) == {"price": 2, "title": "t"}
        assert index.since(searcher.vocabulary.indices([1001, 3])).tolist() == [22, 0]
        assert descriptions.of(4) == {}
        assert (descriptions.of(3)["price"], descriptions.of(3)["colour"]) == (9, "black")
        searcher = Searcher.open(fold(version, made), 20)


def test_a_table_of_attributes() -> None:
    """What is stored is what was given; items without a value, and empty titles, have none."""
    schema = AttributeSchema(
        (Attribute("c", "category", ("x", "y")), Attribute("n", "number", (), (2.0, 5.0))), ("blue", "mug")
    )
    codes = np.array([[0, 2], [1, 4], [3, -1], [-1, -1]], np.int32)
    numbers = np.array([[1.0], [7.5], [2.0], [np.nan]])
    table = Attributes.make(schema, codes, numbers, ["A blue mug", None, "", "Käse"])

    assert [table.values(item) for item in range(4)] == [{"c": "x", "n": 1}, {"c": "y", "n": 7.5}, {"n": 2}, {}]
    assert [table.title(item) for item in range(4)] == ["A blue mug", None, None, "Käse"]
    assert schema.size == 7
    assert schema.features({"c": "y", "n": 2, "title": "Mug, BLUE! mug"}) == [1, 3, 6, 5]
    assert schema.features({"c": "z", "n": "2", "title": 5, "other": 1}) == []
    assert AttributeSchema.from_json(schema.to_json()) == schema
