"""Attributes of items: how columns are read, and that items without clicks are found by them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from retrieval.attributes import MAX_VALUES, Attribute, Attributes, AttributeSchema
from retrieval.context import ContextSchema
from retrieval.searcher import Searcher
from tests.conftest import SMALL
from tests.planted import GROUPS, write_interactions
from tests.silent_progress import Interrupt, SilentProgress
from trainer.config import TrainConfig
from trainer.data.attributes import BUCKETS, ItemAttributes
from trainer.data.dataset import Dataset, load_dataset
from trainer.data.requests import held_out_requests
from trainer.data.split import split_users
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.fit import fit
from trainer.deep_retrieval.layers import PathModel
from trainer.deep_retrieval.unclicked import describe_unclicked
from trainer.errors import DataError
from trainer.evaluate.evaluate import MeasuredVersion
from trainer.publish.version import make_version

NEW = 1000  # the first id of the items without clicks


def read(folder: Path, column: Any, spec: str = "a", items: int = 4) -> ItemAttributes:
    """The attributes of items 0, 1, ... whose items file has the column `a`."""
    interactions, catalogue = folder / "interactions.parquet", folder / "items.parquet"
    pq.write_table(pa.table({"user_id": [1] * items, "item_id": range(items), "timestamp": range(items)}), interactions)
    pq.write_table(pa.table({"item_id": range(items), "a": column}), catalogue)
    attributes = load_dataset(interactions, TrainConfig(min_interactions=1, attributes=(spec,)), catalogue).attributes
    assert attributes
    return attributes


def kind(values: list[str]) -> ItemAttributes:
    """Items with one category each; "" for none."""
    names = tuple(sorted({*values} - {""}))
    codes = np.array([[names.index(value) if value else -1] for value in values], np.int32)
    schema = AttributeSchema((Attribute("kind", "category", names),))
    return ItemAttributes(Attributes.make(schema, codes, np.empty((len(values), 0)), [None] * len(values)))


X, Y, XY, NONE = {"a": "x"}, {"a": "y"}, {"a": ["x", "y"]}, dict[str, Any]()
YX = {"a": ["y", "x"]}
LATER = 1_767_225_600_000  # 2026-01-01


@pytest.mark.parametrize(
    ("column", "spec", "expected"),
    [
        (["x", "y", None, " x "], "a", [X, Y, NONE, X]),
        (["x|y", "y", "", "y|x|x"], "a", [XY, {"a": ["y"]}, NONE, XY]),
        (["x|y", "nan", "", "NaN"], "a:category", [{"a": "x|y"}, {"a": "nan"}, NONE, {"a": "NaN"}]),
        ([1.0, float("inf"), float("nan"), 2.5], "a:category", [{"a": "1"}, NONE, NONE, {"a": "2.5"}]),
        (pa.array(["x", "y", "x", None], pa.string_view()), "a", [X, Y, X, NONE]),
        (pa.array([1, 1, None, 2], pa.timestamp("s")).dictionary_encode(), "a",
         [{"a": 1000}, {"a": 1000}, NONE, {"a": 2000}]),
        (pa.array([10**7, 1, None, 10**9], pa.timestamp("ns")), "a", [{"a": 10}, {"a": 0}, NONE, {"a": 1000}]),
        (pa.array([1, 1, None, 1], pa.time32("s")), "a", [{"a": "00:00:01.000"}] * 2 + [NONE, {"a": "00:00:01.000"}]),
        ([["x", "y"], [], None, ["y"]], "a", [YX, NONE, NONE, {"a": ["y"]}]),
        ([1, 2, 2, 1], "a:category", [{"a": "1"}, {"a": "2"}, {"a": "2"}, {"a": "1"}]),
        ([True, False, None, True], "a", [{"a": "true"}, {"a": "false"}, NONE, {"a": "true"}]),
        ([5, 5, 5, None], "a", [{"a": 5}] * 3 + [NONE]),
        ([1.5, float("inf"), float("nan"), 2.0], "a", [{"a": 1.5}, NONE, NONE, {"a": 2}]),
        (["1", "2", "10", "1"], "a:number", [{"a": 1}, {"a": 2}, {"a": 10}, {"a": 1}]),
        ([datetime.date(2026, 1, 1)] * 2 + [None, datetime.date(2026, 1, 2)], "a",
         [{"a": LATER}] * 2 + [NONE, {"a": LATER + 86_400_000}]),
    ],
)  # fmt: skip
def test_kinds_of_columns(tmp_path: Path, column: Any, spec: str, expected: list[dict[str, Any]]) -> None:
    """Categories, lists as text and as lists, numbers, times; missing values are no values."""
    table = read(tmp_path, column, spec).table
    assert [table.values(item) for item in range(4)] == expected
    features = read(tmp_path, column, spec).features()
    for item, found in enumerate(expected):  # a put with these attributes has the features that were learned
        assert sorted(table.schema.features(found)) == sorted(features[[item]].indices.tolist())
        assert table.schema.problem(found) is None


def test_numbers_are_cut_into_ranges_of_equally_many_items(tmp_path: Path) -> None:
    """1,600 different prices give BUCKETS ranges of 100 items, in ascending order."""
    attributes = read(tmp_path, (np.arange(1600.0)[::-1] ** 2).tolist(), items=1600)

    assert attributes.table.codes[:, 0].tolist() == [BUCKETS - 1 - item // 100 for item in range(1600)]
    assert attributes.table.schema.attributes[0].edges[0] == 100**2


def test_an_item_has_at_most_so_many_values(tmp_path: Path) -> None:
    """The number of values that are used is limited, and a message says how many items have more."""
    attributes = read(tmp_path, [[f"{number:02}" for number in range(40)], ["39", "38"], [], None])

    assert (attributes.table.codes >= 0).sum(axis=1).tolist() == [MAX_VALUES, 2, 0, 0]
    assert {*attributes.table.values(0)["a"]} == {"38", "39", *(f"{number:02}" for number in range(30))}
    assert attributes.notes == (
        f"{tmp_path}/items.parquet: column a: 1 item with more than 32 values; the most frequent are used",
    )


@pytest.mark.parametrize(
    ("column", "spec", "message"),
    [
        (["x"] * 4, "b", "column b is missing; found item_id, a"),
        ([None, "", " ", None], "a", "column a: no item of the catalogue has a value"),
        ([["x"], [], [], []], "a:number", "column a: expected numbers, found lists; name it without :number"),
        (["x", "1", "2", "3"], "a:number", "column a: expected numbers, found 'x'; name it a:category"),
        ([{"x": 1}] * 4, "a", "column a: expected numbers or strings, found struct"),
    ],
)
def test_unusable_columns_are_named(tmp_path: Path, column: Any, spec: str, message: str) -> None:
    """The error names the file and the column."""
    with pytest.raises(DataError, match=f"items.parquet: {message}"):
        read(tmp_path, column, spec)


def test_attributes_need_an_items_file_with_one_row_per_item(tmp_path: Path) -> None:
    """Without the file, or with two rows for an item, the error says what to do."""
    interactions, catalogue = write_interactions(tmp_path), tmp_path / "items.parquet"
    config = TrainConfig(attributes=("a",))
    with pytest.raises(DataError, match=r"attributes: expected an items file \(--items\) with a; found none"):
        load_dataset(interactions, config)
    pq.write_table(pa.table({"item_id": [3, 4, 3], "a": ["x", "y", "z"]}), catalogue)
    with pytest.raises(DataError, match="column item_id, row 1: item 3 has more than one row; keep one"):
        load_dataset(interactions, config, catalogue)


def with_new_items(folder: Path) -> tuple[Dataset, TrainConfig]:
    """The planted data with two items for each group that nobody has clicked; each item has its group as attribute."""
    file, catalogue = write_interactions(folder), folder / "items.parquet"
    items = [*range(40), *range(NEW, NEW + 2 * GROUPS)]
    pq.write_table(pa.table({"item_id": items, "group": [f"g{item % GROUPS}" for item in items]}), catalogue)
    config = SMALL.replace(attributes=("group",), reassignments=0)
    return load_dataset(file, config, catalogue), config


def test_items_without_clicks_are_found_by_their_attributes(tmp_path: Path) -> None:
    """Ten items are answered to users with about six clicked items of their group left, so the two new ones are too."""
    dataset, config = with_new_items(tmp_path)
    split = split_users(dataset, config)
    trained = fit(config, dataset, split, Run(tmp_path / "run", config, dataset), SilentProgress())
    version = make_version(config, dataset, split, trained, SilentProgress(), allow_collapsed=True)
    requests = held_out_requests(dataset, split)
    measured = MeasuredVersion(Searcher.open(version), requests, 10, SilentProgress())
    answers = measured.retrieval(10, 100, 20, SilentProgress()).filtered  # enough paths to read every item

    found = []
    for history, answer in zip(requests.histories, answers, strict=True):
        group = dataset.item_ids[history[0]] % GROUPS
        found += [item in dataset.item_ids[answer] for item in (NEW + group, NEW + GROUPS + group)]
    assert np.mean(found) > 0.8


@pytest.mark.parametrize("path_epochs", [0, 1])
def test_an_interrupted_run_has_the_same_vectors(tmp_path: Path, path_epochs: int) -> None:
    """Stopped before the regression or after an epoch of the path layers, a run ends with the same vectors."""
    dataset, config = with_new_items(tmp_path)
    split = split_users(dataset, config)
    whole = fit(config, dataset, split, Run(tmp_path / "whole", config, dataset), SilentProgress())
    with pytest.raises(KeyboardInterrupt):
        fit(
            config,
            dataset,
            split,
            Run(tmp_path / "half", config, dataset),
            Interrupt(config.encoder_epochs + path_epochs),
        )

    resumed = fit(config, dataset, split, Run(tmp_path / "half", config, dataset), SilentProgress())

    assert torch.equal(resumed.model.item_vectors, whole.model.item_vectors)
    assert torch.equal(resumed.model.item_bias, whole.model.item_bias)
    assert resumed.paths.tolist() == whole.paths.tolist()


def test_a_new_item_is_an_average_item_of_its_kind() -> None:
    """Its vector and bias are near the means of its kind's; clicked items, and items without attributes, stay."""
    rng = np.random.default_rng(0)
    clicks = np.array([*rng.integers(20, 40, 100), *rng.integers(200, 400, 100), 0, 0, 0])
    attributes = kind([*["0"] * 100, *["1"] * 100, "0", "1", ""])
    model = PathModel(TrainConfig(embedding=4, hidden=4), 10, clicks, ContextSchema())
    with torch.no_grad():
        model.item_vectors[:100] += 5
    vectors, bias = model.item_vectors.detach().clone(), model.item_bias.clone()

    describe_unclicked(model, clicks, attributes)

    assert torch.equal(model.item_vectors[:200], vectors[:200])
    assert torch.equal(model.item_bias[:200], bias[:200])
    assert torch.equal(model.item_vectors[202], vectors[202])
    assert torch.allclose(model.item_vectors[200], vectors[:100].mean(dim=0), atol=0.15)
    assert torch.allclose(model.item_vectors[201], vectors[100:200].mean(dim=0), atol=0.15)
    assert abs(model.item_bias[200] - bias[:100].mean()) < 0.1
    assert abs(model.item_bias[201] - bias[100:200].mean()) < 0.1
    again = model.item_vectors.detach().clone()
    describe_unclicked(model, clicks, attributes)
    assert torch.equal(model.item_vectors, again)
