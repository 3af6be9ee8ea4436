"""From files to sequences; errors name the file, the column and the row that cannot be used."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from retrieval.context import Category, Number
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset, load_dataset
from trainer.data.requests import held_out_requests, tuning_requests
from trainer.data.split import split_users
from trainer.errors import DataError

ROWS = {"user_id": [2, 1, 2, 1, 2, 3], "item_id": [30, 10, 20, 20, 10, 10], "timestamp": [3, 1, 1, 2, 2, 1]}
CONFIG = TrainConfig(min_interactions=1, test_users=1)


def write(folder: Path, columns: dict[str, Any], name: str = "interactions.parquet") -> Path:
    """Write the columns as Parquet or CSV."""
    table, file = pa.table(columns), folder / name
    if name.endswith(".csv"):
        pyarrow.csv.write_csv(table, file)
    else:
        pq.write_table(table, file)
    return file


def sequences(dataset: Dataset) -> dict[Any, list[Any]]:
    """The sequence of each user, in the ids of the files."""
    return {
        user: dataset.item_ids[dataset.sequence(index)].tolist() for index, user in enumerate(dataset.user_ids.tolist())
    }


@pytest.mark.parametrize("name", ["interactions.parquet", "interactions.csv"])
def test_sequences_are_in_time_order(tmp_path: Path, name: str) -> None:
    """Users and items are indexed in ascending order of their ids; rows may come in any order."""
    dataset = load_dataset(write(tmp_path, ROWS, name), CONFIG)

    assert sequences(dataset) == {1: [10, 20], 2: [20, 10, 30], 3: [10]}
    assert dataset.item_ids.tolist() == [10, 20, 30]


def test_rows_of_one_time_keep_their_order(tmp_path: Path) -> None:
    """Rows with equal times stay in the order of the file."""
    rows = {"user_id": [1] * 4, "item_id": [4, 3, 9, 1], "timestamp": [5, 5, 2, 5]}

    assert sequences(load_dataset(write(tmp_path, rows), CONFIG)) == {1: [9, 4, 3, 1]}


def test_strings_and_times(tmp_path: Path) -> None:
    """Ids may be strings, dictionary-encoded or not, and timestamps may be dates with times."""
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    rows = {
        "user_id": pa.array(["b", "a", "b"]).dictionary_encode(),
        "item_id": ["y", "x", "x"],
        "timestamp": [day + datetime.timedelta(days=2), day, day],
    }

    assert sequences(load_dataset(write(tmp_path, rows), CONFIG)) == {"a": ["x"], "b": ["x", "y"]}


def test_ratings_and_activity_filter(tmp_path: Path) -> None:
    """min_rating drops rows, then min_interactions drops users, then items without clicks are dropped."""
    rows = {**ROWS, "rating": [5, 5, 4, 1, 5, 5]}

    dataset = load_dataset(write(tmp_path, rows), TrainConfig(min_rating=4, min_interactions=2))

    assert sequences(dataset) == {2: [20, 10, 30]}


def test_the_catalogue_adds_items(tmp_path: Path) -> None:
    """Items without clicks are in the vocabulary if the items file has them."""
    items = write(tmp_path, {"item_id": [99, 10, 5], "title": ["a", "b", "c"]}, "items.parquet")

    dataset = load_dataset(write(tmp_path, ROWS), CONFIG, items)

    assert dataset.item_ids.tolist() == [5, 10, 20, 30, 99]
    assert sequences(dataset)[2] == [20, 10, 30]


def test_context_features(tmp_path: Path) -> None:
    """Strings become codes from 1, numbers are standardised, a missing value is 0, and users may have no row."""
    users = write(
        tmp_path,
        {"user_id": [3, 1], "country": ["NL", "AT"], "age": [30, 50], "group": [7, 8], "gone": [None, "x"]},
        "users.parquet",
    )
    config = TrainConfig(min_interactions=1, context=("country", "age", "group:categorical", "gone"))

    dataset = load_dataset(write(tmp_path, ROWS), config, users=users)

    assert dataset.context.schema.features == (
        Category("country", ("AT", "NL")),
        Number("age", 40.0, 10.0),
        Category("group", ("7", "8")),
        Category("gone", ("x",)),
    )
    assert dataset.context.categories.tolist() == [[1, 2, 1], [0, 0, 0], [2, 1, 0]]
    assert dataset.context.numbers.tolist() == [[1.0], [0.0], [-1.0]]


def test_context_in_the_interactions_is_taken_from_the_history(tmp_path: Path) -> None:
    """A column of the interactions has its value at the end of the history; the held-out items are not looked at."""
    rows = {**ROWS, "shop": ["a", "b", "c", "d", "e", "f"]}

    dataset = load_dataset(write(tmp_path, rows), TrainConfig(min_interactions=1, context=("shop",)))

    assert dataset.context.schema.features == (Category("shop", ("b", "c", "f")),)
    assert dataset.context.categories.tolist() == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_id": None}, "column item_id is missing; found user_id, timestamp"),
        ({"user_id": [2, 1, None, 1, 2, 3]}, "column user_id, row 3: no value"),
        ({"timestamp": [2, 1, 1, None, 2, 3]}, "column timestamp, row 4: no value"),
        ({"timestamp": [2.0, 1.0, float("nan"), 3.0, 2.0, 3.0]}, "column timestamp, row 3: expected a number"),
        (
            {"timestamp": ["a"] * 6},
            "column timestamp, row 1: 'a' is not a time. All rows must have the same form, like",
        ),
        ({"item_id": [0.5] * 6}, "column item_id, row 1: '0.5': expected integers or strings"),
        ({"timestamp": [datetime.time(1)] * 6}, "column timestamp: expected integers or date and time, found time"),
        ({"item_id": ["a", "", "b", "b", "b", "b"]}, "column item_id, row 2: '': expected 1 to 256 characters"),
        (
            {"item_id": ["a", "b", "b", "b", "x" * 257, "b"]},
            "column item_id, row 5: 'x*': expected 1 to 256",
        ),
        ({"user_id": pa.array([2**63] * 6, pa.uint64())}, "column user_id: a number does not fit in int64"),
    ],
)
def test_unusable_columns_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """The error has file, column and row, what was expected and what was found."""
    rows = {name: column for name, column in {**ROWS, **changes}.items() if column is not None}

    with pytest.raises(DataError, match=f"interactions.parquet: {message}"):
        load_dataset(write(tmp_path, rows), CONFIG)


def test_nothing_left_names_the_filters(tmp_path: Path) -> None:
    """If the filters leave no row, the error has their values."""
    with pytest.raises(DataError, match=r"none of the 6 rows .* = None, .* min_interactions = 9; lower them"):
        load_dataset(write(tmp_path, ROWS), TrainConfig(min_interactions=9))


def test_rare_items_are_dropped_before_users(tmp_path: Path) -> None:
    """Item 3 has one click. Without it, user 1 has too few. The items file brings item 4, but not item 3 again."""
    rows = {"user_id": [0, 0, 0, 1, 1, 1], "item_id": [1, 2, 1, 1, 2, 3], "timestamp": [1, 2, 3, 1, 2, 3]}
    items = write(tmp_path, {"item_id": [3, 4]}, "items.parquet")

    dataset = load_dataset(write(tmp_path, rows), TrainConfig(min_item_interactions=2), items)

    assert sequences(dataset) == {0: [1, 2, 1]}
    assert dataset.item_ids.tolist() == [1, 2, 4]
    assert dataset.notes[:2] == (
        "1 of 3 items have fewer than 2 interactions and are left out (min_item_interactions)",
        "1 of 2 users have fewer than 3 interactions and are left out (min_interactions)",
    )


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    """The error says that there are no rows."""
    empty = {name: pa.array([], pa.int64()) for name in ROWS}

    with pytest.raises(DataError, match="no rows"):
        load_dataset(write(tmp_path, empty), CONFIG)


def test_a_file_with_the_wrong_ending_is_named(tmp_path: Path) -> None:
    """The content is not what the ending promises."""
    file = tmp_path / "x.parquet"
    file.write_bytes(b"PAR0")

    with pytest.raises(DataError, match=r"x.parquet: does not begin like Parquet"):
        load_dataset(file, CONFIG)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error says that it cannot be read."""
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(tmp_path / "none.parquet", CONFIG)


def test_min_rating_needs_ratings(tmp_path: Path) -> None:
    """A filter on a column that is not there is an error, not a no-op."""
    with pytest.raises(DataError, match="column rating is missing"):
        load_dataset(write(tmp_path, ROWS), TrainConfig(min_rating=4))


def test_an_unknown_context_column_is_named(tmp_path: Path) -> None:
    """The error also names the files that were searched for it."""
    with pytest.raises(DataError, match=r"column shoe_size is in none of .*interactions\.parquet"):
        load_dataset(write(tmp_path, ROWS), TrainConfig(min_interactions=1, context=("shoe_size",)))


def test_held_out_users_follow_from_the_seed(tmp_path: Path) -> None:
    """With split = "users" the seed alone decides which users are held out; their first half is history."""
    rows = {"user_id": np.repeat(np.arange(20), 5), "item_id": np.tile(np.arange(5), 20), "timestamp": np.arange(100)}
    dataset = load_dataset(write(tmp_path, rows), CONFIG)
    split, same, other = (split_users(dataset, TrainConfig(test_users=6, seed=seed)) for seed in (1, 1, 2))

    assert split.test_users.tolist() == same.test_users.tolist() != other.test_users.tolist()
    assert len(split.test_users) == 6
    assert sorted([*split.test_users, *split.train_users]) == list(range(20))
    assert set(split.history_length.tolist()) == {2}


def test_last_out_keeps_the_last_item_from_training(tmp_path: Path) -> None:
    """With split = "last-out" all users are trained on, without their last item."""
    dataset = load_dataset(write(tmp_path, ROWS), CONFIG)
    split = split_users(dataset, TrainConfig(split="last-out", test_users=9))

    assert split.train_users.tolist() == [0, 1, 2]
    assert split.train_length.tolist() == [1, 1, 1]  # the item before the last is withheld from user 1 of three items
    assert split.tuning_users.tolist() == split.test_users.tolist() == [1]
    assert (split.history_length[1], split.visible_length[1]) == (2, 2)


def test_last_out_as_published(tmp_path: Path) -> None:
    """The last item is the truth. The one before it is withheld from training, but is in the history of the request."""
    rows = {"user_id": [0] * 4 + [1] * 3, "item_id": [5, 6, 7, 8, 8, 5, 6], "timestamp": [1, 2, 3, 3, 1, 2, 2]}
    dataset = load_dataset(write(tmp_path, rows), CONFIG)
    split = split_users(dataset, TrainConfig(split="last-out"))

    requests, tuning = held_out_requests(dataset, split), tuning_requests(dataset, split)
    assert [dataset.item_ids[truth].tolist() for truth in requests.truths] == [[8], [6]]  # ties keep the file's order
    assert [dataset.item_ids[history].tolist() for history in requests.histories] == [[5, 6, 7], [8, 5]]
    assert [dataset.item_ids[truth].tolist() for truth in tuning.truths] == [[7], [5]]
    assert split.train_length.tolist() == [2, 1]

    everything = split_users(dataset, TrainConfig(split="last-out", tuning_users=0))
    assert everything.train_length.tolist() == [3, 2]  # the item before the last is trained on


def test_nothing_left_to_train_on_names_the_split(tmp_path: Path) -> None:
    """With split = "last-out" nobody is held out, so the message does not speak of held-out users."""
    dataset = load_dataset(
        write(tmp_path, {"user_id": [0, 0, 1, 1], "item_id": [1, 2, 1, 3], "timestamp": [1, 2, 1, 2]}), CONFIG
    )

    with pytest.raises(DataError, match="no user has two interactions left to train on after the last one is held out"):
        split_users(dataset, TrainConfig(split="last-out"))


@pytest.mark.parametrize("protocol", ["users", "last-out"])
def test_training_sees_only_the_history_of_tuning_users(tmp_path: Path, protocol: str) -> None:
    """A tenth of the training users tune, all with four items or more; they are split as held-out users are."""
    rows = [(user, user + place, place) for user in range(60) for place in range(3 + user % 5)]
    file = tmp_path / "interactions.csv"
    file.write_text("user_id,item_id,timestamp\n" + "\n".join(",".join(map(str, row)) for row in rows))
    config = TrainConfig().replace(split=protocol, test_users=6, tuning_users="auto" if protocol == "users" else 6)
    dataset = load_dataset(file, config)
    split = split_users(dataset, config)

    assert len(split.tuning_users) == len(split.train_users) // 10
    assert set(split.tuning_users) <= set(split.train_users)
    requests = tuning_requests(dataset, split)
    for user, history, truth in zip(split.tuning_users, requests.histories, requests.truths, strict=True):
        sequence = dataset.sequence(user).tolist()
        visible = sequence if protocol == "users" else sequence[:-1]
        assert len(visible) >= (4 if protocol == "users" else 2)
        assert [*history, *truth] == visible
        assert (
            len(history) == split.train_length[user] == (len(visible) // 2 if protocol == "users" else len(visible) - 1)
        )


def test_csv_ids_stay_as_they_are_written(tmp_path: Path) -> None:
    """007 is not 7; ids of a column that are all written as integers are integers."""
    file = tmp_path / "interactions.csv"
    file.write_text("user_id,item_id,timestamp\n1,007,1\n1,7,2\n2,7,3\n")

    assert sequences(load_dataset(file, CONFIG)) == {1: ["007", "7"], 2: ["7"]}


def test_integers_in_one_file_and_strings_in_the_other_are_strings(tmp_path: Path) -> None:
    """Otherwise the ids would never match; a message reports it."""
    items = write(tmp_path, {"item_id": ["10", "20", "40"]}, "items.parquet")

    dataset = load_dataset(write(tmp_path, ROWS), CONFIG, items)

    assert dataset.item_ids.tolist() == ["10", "20", "30", "40"]
    assert dataset.notes == (f"item_id: read as strings: {items}: column item_id has strings",)


def test_times_far_apart_keep_their_order(tmp_path: Path) -> None:
    """Dates outside the range of nanoseconds do not wrap around."""
    rows = {
        "user_id": [1, 1, 1],
        "item_id": [1, 2, 3],
        "timestamp": pa.array([253402214400, 0, 946684800], pa.timestamp("s")),  # 9999, 1970, 2000
    }

    assert sequences(load_dataset(write(tmp_path, rows), CONFIG)) == {1: [2, 3, 1]}


def test_a_user_with_two_rows_is_refused(tmp_path: Path) -> None:
    """It would be unclear which row counts."""
    users = write(tmp_path, {"user_id": [1, 1], "c": ["a", "b"]}, "users.parquet")

    with pytest.raises(DataError, match=r"users.parquet: column user_id, row 1: user 1 has more than one row"):
        load_dataset(write(tmp_path, ROWS), TrainConfig(min_interactions=1, context=("c",)), users=users)


def test_a_column_of_lists_is_no_context(tmp_path: Path) -> None:
    """The error names the column."""
    users = write(tmp_path, {"user_id": [1], "c": [["a"]]}, "users.parquet")

    with pytest.raises(DataError, match="column c: expected numbers or strings"):
        load_dataset(write(tmp_path, ROWS), TrainConfig(min_interactions=1, context=("c",)), users=users)


def test_some_users_must_be_left_to_train_on(tmp_path: Path) -> None:
    """Holding out all users is refused."""
    rows = {"user_id": [1, 1], "item_id": [1, 2], "timestamp": [1, 2]}

    with pytest.raises(DataError, match="test_users = 1"):
        split_users(load_dataset(write(tmp_path, rows), CONFIG), TrainConfig(test_users=1))


def test_strengths_are_relative_to_their_mean(tmp_path: Path) -> None:
    """Each click has the value of the named column divided by the mean; dropped rows do not count."""
    rows = {**ROWS, "weight": [1, 2, 3, 6, 4, 100]}

    dataset = load_dataset(write(tmp_path, rows), TrainConfig(min_interactions=2, strength="weight"))

    assert sequences(dataset) == {1: [10, 20], 2: [20, 10, 30]}
    assert dataset.strengths is not None
    assert (dataset.strengths * 3.2).tolist() == pytest.approx([2, 6, 3, 4, 1])  # the mean of these is 3.2


@pytest.mark.parametrize(("weights", "found"), [([1, 1, -2, 1, 1, 1], "-2"), ([0] * 6, "only zeros")])
def test_unusable_strengths_are_named(tmp_path: Path, weights: list[int], found: str) -> None:
    """A negative strength is an error, and so is a column of zeros."""
    file = write(tmp_path, {**ROWS, "weight": weights})

    with pytest.raises(DataError, match=f"column weight: expected strengths of at least 0, found {found}"):
        load_dataset(file, CONFIG.replace(strength="weight"))


@pytest.mark.parametrize("true", [(1, 0), (1.0, 0.0), (True, False), ("true", "False"), ("1", "false")])
def test_rows_that_were_not_clicked_are_impressions(tmp_path: Path, true: tuple[Any, Any]) -> None:
    """They are in no sequence; their items are in the catalogue, and they precede the clicks of the same time."""
    clicked, shown = true
    rows = {
        "user_id": [1, 1, 1, 2, 1, 1, 9, 2],
        "item_id": [10, 30, 20, 10, 40, 50, 60, 30],
        "timestamp": [1, 2, 2, 1, 0, 3, 1, 5],
        "clicked": [clicked, shown, clicked, clicked, shown, shown, shown, shown],
    }

    dataset = load_dataset(write(tmp_path, rows), CONFIG.replace(clicked="clicked"))

    assert sequences(dataset) == {1: [10, 20], 2: [10]}
    assert dataset.item_ids.tolist() == [10, 20, 30, 40, 50, 60]
    assert dataset.impressions
    assert dataset.impressions.offsets.tolist() == [0, 3, 4]
    assert dataset.item_ids[dataset.impressions.items].tolist() == [40, 30, 50, 30]
    assert dataset.impressions.before.tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("value", ["yes", None, 2])
def test_an_unusable_value_of_clicked_is_named(tmp_path: Path, value: Any) -> None:
    """The error has the row and the values that are allowed."""
    file = write(tmp_path, {**ROWS, "clicked": [str(value) if value == "yes" else value, *[None] * 5]})
    with pytest.raises(DataError, match=f"column clicked, row 1: expected 0, 1, true or false, found '{value}'"):
        load_dataset(file, CONFIG.replace(clicked="clicked"))


def test_only_clicks_need_a_rating(tmp_path: Path) -> None:
    """A row that was not clicked may lack the columns of min_rating and strength; a click may not."""
    rows = {**ROWS, "clicked": [1, 0, 1, 1, 1, 1], "rating": [5, None, 4, 1, 5, 5]}
    config = CONFIG.replace(clicked="clicked", strength="rating", min_rating=2)

    dataset = load_dataset(write(tmp_path, rows), config)

    assert sequences(dataset) == {2: [20, 10, 30], 3: [10]}
    assert dataset.strengths is not None
    assert (dataset.strengths * 4.75).tolist() == pytest.approx([4, 5, 5, 5])
    with pytest.raises(DataError, match="column rating, row 2: no value"):
        load_dataset(write(tmp_path, {**rows, "clicked": [1] * 6}), config)


def test_without_a_click_the_error_names_the_column(tmp_path: Path) -> None:
    """All rows are impressions, for example because the column has another meaning."""
    with pytest.raises(DataError, match="column clicked: no row is a click; expected 1 or true for clicks"):
        load_dataset(write(tmp_path, {**ROWS, "clicked": [0] * 6}), CONFIG.replace(clicked="clicked"))


def test_a_tuning_request_has_the_impressions_of_its_withheld_clicks(tmp_path: Path) -> None:
    """With last-out, the withheld item is the second last: the impressions before it and after the click before it."""
    rows = {
        "user_id": [user for user in (1, 2, 3, 4) for _ in range(7)],
        "item_id": [10 * user + item for user in (1, 2, 3, 4) for item in (100, 301, 200, 302, 300, 303, 400)],
        "timestamp": [*range(7)] * 4,
        "clicked": [1, 0, 1, 0, 1, 0, 1] * 4,
    }
    config = CONFIG.replace(split="last-out", clicked="clicked", min_interactions=3)
    dataset = load_dataset(write(tmp_path, rows), config)

    requests = tuning_requests(dataset, split_users(dataset, config))

    assert [dataset.item_ids[truth].tolist() for truth in requests.truths] == [[310], [320], [330], [340]]
    assert [dataset.item_ids[shown].tolist() for shown in requests.shown] == [[312], [322], [332], [342]]
    assert [dataset.item_ids[shown].tolist() for shown in requests.spread(2).shown] == [[312], [332]]
    assert [dataset.item_ids[shown].tolist() for shown in requests.first(1).shown] == [[312]]
