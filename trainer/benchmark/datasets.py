"""The data sets of `dr-trainer benchmark`: the places of their files, their protocols, and how to get them.

A protocol sets which users are kept and held out, and how many items are requested. Apart from context features and
the length of a history, it does not change how the network is trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import DataError

#: The shipped data set. It is in a checkout of the repository, but not in an installed package.
EXAMPLE = Path(__file__).parents[2] / "examples" / "online_retail"
FILE = re.compile(r"(?P<name>.+?)(\.interactions)?\.(parquet|csv|tsv)\Z")


@dataclass(frozen=True)
class Source:
    """One data set's files and the settings of its protocol."""

    name: str
    interactions: Path
    items: Path | None = None
    users: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """A published data set: its file of interactions in --data-dir, its protocol, and the place to get it from.

    data: the name in --data-dir under which the data set is also found; None: the name of the preset.
    """

    file: str
    settings: Mapping[str, Any]
    source: str
    data: str | None = None


_GROUPLENS = "https://files.grouplens.org/datasets/movielens/{}.zip, unzipped into that folder"
_UCSD = "the ratings of https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html"
_MOVIES = {"min_rating": 4, "min_interactions": 10, "k": 10}  # the paper's protocol (Sec. 4.1)
_AMAZON = {"min_interactions": 5, "test_users": 2000, "k": 50}
#: The last item of every user, as in most publications on sequences (docs/results.md has their figures).
_LAST_OUT = {"split": "last-out", "k": 10}
_RETAIL = {"context": ("country",), "k": 20}

PRESETS: dict[str, Preset] = {
    "ml-100k": Preset("ml-100k/u.data", {**_MOVIES, "test_users": 100}, _GROUPLENS.format("ml-100k")),
    "ml-1m": Preset("ml-1m/ratings.dat", {**_MOVIES, "test_users": 600}, _GROUPLENS.format("ml-1m")),
    "ml-20m": Preset("ml-20m/ratings.csv", {**_MOVIES, "test_users": 1000}, _GROUPLENS.format("ml-20m")),
    "ml-25m": Preset("ml-25m/ratings.csv", {**_MOVIES, "test_users": 1000}, _GROUPLENS.format("ml-25m")),
    "online-retail": Preset(
        "online_retail/interactions.parquet",
        _RETAIL,
        "the folder examples/online_retail of this project's repository, copied into that folder",
    ),
    "amazon-beauty": Preset("ratings_Beauty.csv", _AMAZON, _UCSD),
    "amazon-books": Preset(
        "ratings_Books.csv", {**_AMAZON, "min_interactions": 10, "test_users": 5000, "k": 200}, _UCSD
    ),
    # 3,416 items, as in BERT4Rec, LRURec and "Turning Dross Into Gold Loss".
    "ml-1m-last-out": Preset(
        "ml-1m/ratings.dat",
        {**_LAST_OUT, "min_item_interactions": 5, "history": 200},
        _GROUPLENS.format("ml-1m"),
        "ml-1m",
    ),
    # 3,706 items, as in HSTU and eSASRec: there the item before the last is trained on.
    "ml-1m-last-out-3706": Preset(
        "ml-1m/ratings.dat", {**_LAST_OUT, "tuning_users": 600, "history": 200}, _GROUPLENS.format("ml-1m"), "ml-1m"
    ),
    "amazon-beauty-last-out": Preset(
        "ratings_Beauty.csv", {**_LAST_OUT, "min_interactions": 5, "history": 50}, _UCSD, "amazon-beauty"
    ),
}


def find_datasets(folder: Path, names: list[str] | None) -> list[Source]:
    """The data sets called `names`, or all data sets in `folder`.

    A name is the name of a preset, or of a file of interactions such as NAME.parquet or NAME.interactions.csv. Raises
    DataError with a message about how to get a missing data set.
    """
    if not folder.is_dir():
        raise DataError(f"--data-dir {folder}: no such folder")
    # NAME.interactions.csv comes last, so that it wins over NAME.csv.
    paths = sorted(
        (path for path in folder.iterdir() if path.is_file()), key=lambda path: ".interactions." in path.name
    )
    files = {match["name"]: path for path in paths if (match := FILE.match(path.name))}
    if names is None:
        protocols = {name: preset for name, preset in PRESETS.items() if preset.data is None}
        names = [name for name, preset in protocols.items() if name in files or (folder / preset.file).exists()]
        names += [name for name, path in files.items() if name not in PRESETS and ".interactions." in path.name]
        if not names:
            raise DataError(
                f"--data-dir {folder}: no data set is there; name a file with --datasets, or get one of these:\n"
                + "\n".join(f"  {name}: {preset.source}" for name, preset in PRESETS.items())
            )
    return [_find(name, folder, files) for name in names]


def _find(name: str, folder: Path, files: Mapping[str, Path]) -> Source:
    preset = PRESETS.get(name)
    settings = preset.settings if preset else _AMAZON if name.startswith("amazon-") else {}
    if Path(name).name != name:
        raise DataError(f"--datasets {name}: expected a name, found a path; files must be in --data-dir")
    data = (preset and preset.data) or name
    candidates = [folder / data, *([files[data]] if data in files else []), *([folder / preset.file] if preset else [])]
    if name == "online-retail":
        candidates.append(EXAMPLE / "interactions.parquet")
    path = next(filter(Path.is_file, candidates), None)
    if path is None:
        raise DataError(_missing(name, folder, files))
    if path.name != "interactions.parquet":
        return Source(name, path, None, None, settings)
    items, users = (path.with_name(f"{kind}.parquet") for kind in ("items", "users"))
    return Source(name, path, items if items.is_file() else None, users if users.is_file() else None, settings)


def _missing(name: str, folder: Path, files: Mapping[str, Path]) -> str:
    if name in PRESETS:
        return f"--datasets {name}: not in {folder}; get {PRESETS[name].source}"
    available = ", ".join(sorted(files)[:20]) + (", ..." if len(files) > 20 else "")
    return (
        f"--datasets {name}: not in {folder}, which has {available or 'no file of interactions'}; "
        f"the known names are {', '.join(PRESETS)}"
    )
