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

from retrieval.context import ContextSchema
from tests.conftest import SMALL
from tests.planted import GROUPS, write_interactions
from tests.silent_progress import SilentProgress
from trainer.config import TrainConfig
from trainer.data.attributes import BUCKETS, MAX_VALUES, ItemAttributes
from trainer.data.dataset import load_dataset
from trainer.data.split import split_users
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.fit import fit
from trainer.deep_retrieval.layers import PathModel
from trainer.errors import DataError


def read(folder: Path, column: Any, spec: str = "a", items: int = 4) -> ItemAttributes:
    """The attributes of items 0, 1, ... whose items file has the column `a`."""
    interactions, catalogue = folder / "interactions.parquet", folder / "items.parquet"
    pq.write_table(pa.table({"user_id": [1] * items, "item_id": range(items), "timestamp": range(items)}), interactions)
    pq.write_table(pa.table({"item_id": range(items), "a": column}), catalogue)
    attributes = load_dataset(interactions, TrainConfig(min_interactions=1, attributes=(spec,)), catalogue).attributes
    assert attributes
    return attributes


def values(attributes: ItemAttributes) -> list[set[str]]:
    """The values of each item."""
    return [{attributes.values[code] for code in row if code >= 0} for row in attributes.codes.tolist()]


@pytest.mark.parametrize(
    ("column", "spec", "expected"),
    [
        (["x", "y", None, " x "], "a", [{"a=x"}, {"a=y"}, set(), {"a=x"}]),
        (["x|y", "y", "", "y|x|x"], "a", [{"a=x", "a=y"}, {"a=y"}, set(), {"a=x", "a=y"}]),
        ([["x", "y"], [], None, ["y"]], "a", [{"a=x", "a=y"}, set(), set(), {"a=y"}]),
        ([1, 2, 2, 1], "a:category", [{"a=1"}, {"a=2"}, {"a=2"}, {"a=1"}]),
        ([True, False, None, True], "a", [{"a=true"}, {"a=false"}, set(), {"a=true"}]),
        ([5, 5, 5, None], "a", [{"a=5 to 5"}, {"a=5 to 5"}, {"a=5 to 5"}, set()]),
        (["1", "2", "10", "1"], "a:number", [{"a=1 to 2"}, {"a=2 to 10"}, {"a=10 to 10"}, {"a=1 to 2"}]),
        (
            [datetime.date(2026, 1, 1), datetime.date(2026, 1, 1), None, datetime.date(2026, 3, 1)],
            "a",
            [
                {"a=2026-01-01T00:00:00 to 2026-03-01T00:00:00"},
                {"a=2026-01-01T00:00:00 to 2026-03-01T00:00:00"},
                set(),
                {"a=2026-03-01T00:00:00 to 2026-03-01T00:00:00"},
            ],
        ),
    ],
)
def test_kinds_of_columns(tmp_path: Path, column: Any, spec: str, expected: list[set[str]]) -> None:
    """Categories, lists as text and as lists, numbers, times; missing values are no values."""
    assert values(read(tmp_path, column, spec)) == expected


def test_numbers_are_cut_into_ranges_of_equally_many_items(tmp_path: Path) -> None:
    """1,600 different prices give BUCKETS ranges of 100 items, in ascending order."""
    attributes = read(tmp_path, (np.arange(1600.0)[::-1] ** 2).tolist(), items=1600)

    assert attributes.codes[:, 0].tolist() == [BUCKETS - 1 - item // 100 for item in range(1600)]
    assert attributes.values[0] == "a=0 to 10000"


def test_an_item_has_at_most_so_many_values(tmp_path: Path) -> None:
    """The number of values that are used is limited, and a message says how many items have more."""
    attributes = read(tmp_path, [[str(number) for number in range(40)], ["0"], [], None])

    assert (attributes.codes >= 0).sum(axis=1).tolist() == [MAX_VALUES, 1, 0, 0]
    assert attributes.notes == ("1 items have more than 32 values of attributes; 32 of each are used",)


@pytest.mark.parametrize(
    ("column", "spec", "message"),
    [
        (["x"] * 4, "b", "column b is missing; found item_id, a"),
        ([None, "", " ", None], "a", "column a: no item of the catalogue has a value"),
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
    with pytest.raises(DataError, match="attributes: a are columns of an items file; name one with --items"):
        load_dataset(interactions, config)
    pq.write_table(pa.table({"item_id": [3, 4, 3], "a": ["x", "y", "z"]}), catalogue)
    with pytest.raises(DataError, match="column item_id, row 1: item 3 has more than one row; keep one"):
        load_dataset(interactions, config, catalogue)


def test_an_item_vector_is_its_own_plus_that_of_its_values() -> None:
    """With clicks: own vector plus the values' sum over the root of their number; without clicks: only the latter."""
    codes = np.array([[0, 2], [1, -1], [-1, -1], [0, 1], [-1, -1]], np.int32)
    config = TrainConfig(embedding=4, hidden=4)
    clicks = np.array([3, 1, 1, 0, 0])
    model = PathModel(config, 10, clicks, ContextSchema(), ItemAttributes(codes, ("a=0", "a=1", "a=2")))
    table = model.encoder.items.values
    assert table is not None
    torch.nn.init.normal_(table.weight[:3])
    own, value = model.encoder.items.own.weight, table.weight

    expected = [
        own[0] + (value[0] + value[2]) / 2**0.5,
        own[1] + value[1],
        own[2],
        (value[0] + value[1]) / 2**0.5,
        own[4],  # neither clicks nor attributes
    ]

    assert torch.allclose(model.item_vectors, torch.stack(expected))
    assert torch.allclose(model.vectors_of(torch.tensor([[3, 1], [0, 0]]))[0, 0], expected[3])
    assert torch.equal(model.encoder.items(torch.tensor(5)), own[5])  # the start item


def test_items_without_clicks_are_placed_by_their_attributes(tmp_path: Path) -> None:
    """New items of a group get vectors nearest to those of the group, so most of them share prefixes with it."""
    file, catalogue = write_interactions(tmp_path), tmp_path / "items.parquet"
    new = list(range(1000, 1000 + 2 * GROUPS))
    items = [*range(40), *new]
    pq.write_table(pa.table({"item_id": items, "group": [f"g{item % GROUPS}" for item in items]}), catalogue)
    config = SMALL.replace(attributes=("group",), reassignments=0)
    dataset = load_dataset(file, config, catalogue)
    split = split_users(dataset, config)

    trained = fit(config, dataset, split, Run(tmp_path / "run", config, dataset), SilentProgress())

    vectors = trained.model.item_vectors.detach().numpy()
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    group = dataset.item_ids % GROUPS
    similar = vectors[dataset.item_ids >= 1000] @ vectors[dataset.item_ids < 1000].T
    nearest = np.argsort(-similar, axis=1)[:, :5]
    assert (group[dataset.item_ids < 1000][nearest] == group[dataset.item_ids >= 1000][:, None]).mean() > 0.9
