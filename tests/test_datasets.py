"""Data sets are read as their publishers pack them; a message says how to get a missing one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.benchmark.datasets import PRESETS, Source, find_datasets
from trainer.config import TrainConfig
from trainer.data.dataset import load_dataset
from trainer.errors import DataError

ROWS = [(7, 31, 4, 978300760), (7, 40, 5, 978300761), (9, 31, 3, 978300762), (9, 52, 1, 978300759)]
PLAIN = TrainConfig(min_interactions=1, test_users=0)


@pytest.mark.parametrize(
    ("name", "separator", "header"),
    [
        ("ml-100k/u.data", "\t", ""),
        ("ml-1m/ratings.dat", "::", ""),
        ("ml-20m/ratings.csv", ",", "userId,movieId,rating,timestamp\n"),
        ("ml-25m/ratings.csv", ",", "userId,movieId,rating,timestamp\n"),
        ("ratings_Beauty.csv", ",", ""),
        ("ratings_2024.csv", ",", "user_id,item_id,rating,timestamp\n"),
        ("Books.csv", ",", "user_id,parent_asin,rating,timestamp\n"),
        ("mine.csv", ",", "user_id,item_id,rating,timestamp\n"),
    ],
)
def test_published_formats_are_read(tmp_path: Path, name: str, separator: str, header: str) -> None:
    """The same four rows in every format."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(header + "".join(separator.join(map(str, row)) + "\n" for row in ROWS))

    dataset = load_dataset(file, PLAIN)

    assert dataset.user_ids.tolist() == [7, 9]
    assert dataset.item_ids.tolist() == [31, 40, 52]
    assert [dataset.item_ids[dataset.sequence(user)].tolist() for user in (0, 1)] == [[31, 40], [52, 31]]
    assert load_dataset(file, PLAIN.replace(min_rating=4)).item_ids.tolist() == [31, 40]


def test_data_sets_in_the_folder_are_listed(tmp_path: Path) -> None:
    """Presets are found by folder or name, other data sets by their interactions file; other tables are ignored."""
    (tmp_path / "spark.interactions.parquet").mkdir()
    for name in ("ml-1m/ratings.dat", "ml-100k.interactions.parquet", "shop.interactions.csv", "shop.csv", "items.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    sources = {source.name: source for source in find_datasets(tmp_path, None)}

    assert list(sources) == ["ml-100k", "ml-1m", "shop"]
    assert sources["ml-1m"].interactions == tmp_path / "ml-1m/ratings.dat"
    assert sources["ml-1m"].settings == {"min_rating": 4, "min_interactions": 10, "k": 10, "test_users": 600}
    assert sources["shop"] == Source("shop", tmp_path / "shop.interactions.csv")
    assert find_datasets(tmp_path, ["items.csv", "shop"])[0].interactions == tmp_path / "items.csv"


def test_a_checkout_has_the_example(tmp_path: Path) -> None:
    """The example data set is used only if it is named."""
    (source,) = find_datasets(tmp_path, ["online-retail"])

    assert source.interactions.exists()
    assert source.items is not None
    assert source.items.exists()
    with pytest.raises(DataError, match="no data set is there"):
        find_datasets(tmp_path, None)


def test_an_installation_says_how_to_get_the_example(tmp_path: Path) -> None:
    """Bug 7: a wheel has only the packages, not the folder examples."""
    root, data = Path(__file__).parent.parent, tmp_path / "data"
    data.mkdir()
    for package in ("trainer", "retrieval", "index_store"):
        shutil.copytree(root / package, tmp_path / "site" / package)

    done = subprocess.run(
        [sys.executable, "-m", "trainer", "benchmark", "--data-dir", data, "--datasets", "online-retail"],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"dr-trainer: --datasets online-retail: not in {data}; "
        "get the folder examples/online_retail of this project's repository, copied into that folder\n"
    )


def test_a_copy_in_the_data_folder_wins_over_the_example(tmp_path: Path) -> None:
    """The copy is a file or a folder with the name of the example."""
    (tmp_path / "online-retail.interactions.csv").touch()

    assert find_datasets(tmp_path, None)[0].interactions == tmp_path / "online-retail.interactions.csv"
    (tmp_path / "online_retail").mkdir()
    (tmp_path / "online-retail.interactions.csv").rename(tmp_path / "online_retail/interactions.parquet")
    (source,) = find_datasets(tmp_path, None)
    assert (source.interactions, source.items) == (tmp_path / "online_retail/interactions.parquet", None)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "online-retail"])
def test_a_missing_data_set_has_an_address(tmp_path: Path, name: str) -> None:
    """The message has a link to the data set."""
    with pytest.raises(DataError, match="https://"):
        find_datasets(tmp_path, [name])


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    """The message lists the presets, and the data sets that are in the folder."""
    with pytest.raises(DataError, match=r"--datasets mine: .*known names are ml-100k"):
        find_datasets(tmp_path, ["mine"])
    (tmp_path / "shop.interactions.csv").touch()
    (tmp_path / "clicks.parquet").touch()
    with pytest.raises(DataError, match="which has clicks, shop; the known names are ml-100k"):
        find_datasets(tmp_path, ["mine"])
    with pytest.raises(DataError, match="expected a name, found a path"):
        find_datasets(tmp_path, ["../mine.csv"])
    with pytest.raises(DataError, match="no such folder"):
        find_datasets(tmp_path / "nowhere", None)
