"""The interactions of a data set in order of time: as requests, as events, and as files to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.attributes import TITLE
from retrieval.events import Event
from retrieval.query import ItemId
from trainer.config import TrainConfig
from trainer.data.columns import encode_ids
from trainer.data.dataset import rated_rows
from trainer.data.files import Table, read_table
from trainer.data.times import timestamps


@dataclass(frozen=True)
class Stream:
    """The interactions in order of time.

    users, items: codes (N,). item_ids: (V,). catalogue: the items file, if there is one; rows: the item of each of its
    rows.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    item_ids: NDArray[Any]
    catalogue: Table | None
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """The requests of a step, one for each user: what the user clicked before, and what the user then clicks anew."""

    histories: list[list[int]]
    truths: list[NDArray[np.int64]]


def read_stream(interactions: Path, items: Path | None, config: TrainConfig) -> Stream:
    """The interactions in order of time, without those below min_rating. Raises DataError."""
    ratings = set() if config.min_rating is None else {"rating", "weight"}
    table = read_table(interactions, {"user_id", "item_id", "timestamp", *ratings})
    described = {TITLE, *(spec.partition(":")[0] for spec in config.attributes)}
    catalogue = read_table(items, {"item_id", *described}) if items else None
    ids = encode_ids([table, catalogue] if catalogue else [table], "item_id", config.item_id)
    users = encode_ids([table], "user_id", config.user_id)
    order = rated_rows(table, np.argsort(timestamps(table), kind="stable"), config)
    rows = ids.rows[1] if catalogue else np.empty(0, np.int64)
    return Stream(users.rows[0][order], ids.rows[0][order], ids.ids, catalogue, rows)


def asked(stream: Stream, begin: int, end: int) -> Asked:
    """A request for each user of the step. If the user is new in it, the first half of the clicks is the history."""
    histories, truths = [], []
    before, now = _by_user(stream, 0, begin), _by_user(stream, begin, end)
    for user, items in now.items():
        history = before.get(user) or items[: len(items) // 2]
        truth = np.setdiff1d(items, history)
        if history and len(truth):
            histories.append(history)
            truths.append(truth)
    return Asked(histories, truths)


def _by_user(stream: Stream, begin: int, end: int) -> dict[int, list[int]]:
    """The items that each user clicked between two places of the stream, oldest first."""
    clicked: dict[int, list[int]] = {}
    for user, item in zip(stream.users[begin:end].tolist(), stream.items[begin:end].tolist(), strict=True):
        clicked.setdefault(user, []).append(item)
    return clicked


def events_of(stream: Stream, begin: int, end: int, longest: int) -> list[Event]:
    """The interactions of a step as events, each with at most `longest` items that the user had clicked by then."""
    names = stream.item_ids.tolist()
    histories: dict[int, list[ItemId]] = {
        user: [names[item] for item in items[-longest:]] for user, items in _by_user(stream, 0, begin).items()
    }
    events = []
    for user, item in zip(stream.users[begin:end].tolist(), stream.items[begin:end].tolist(), strict=True):
        history = histories.get(user, [])
        events.append(Event(names[item], history))
        histories[user] = [*history, names[item]][-longest:]
    return events


def descriptions(stream: Stream, attributes: Sequence[str]) -> dict[ItemId, Mapping[str, Any]]:
    """The titles and attributes in the items file, as a caller would put them."""
    if stream.catalogue is None:
        return {}
    wanted = [TITLE, *(spec.partition(":")[0] for spec in attributes)]
    columns = {
        name: stream.catalogue.columns[name].to_pylist()
        for name in wanted
        if name in stream.catalogue.columns.column_names
    }
    return {
        stream.item_ids[item]: {name: values[row] for name, values in columns.items() if values[row] is not None}
        for row, item in enumerate(stream.rows.tolist())
    }


def write_files(stream: Stream, events: int, folder: Path) -> tuple[Path, Path | None]:
    """Write the first interactions, and the rows of the items file for their items. Returns the files for training."""
    files = {"interactions": folder / "interactions.parquet"}
    seen = stream.items[:events]
    columns = {
        "user_id": stream.users[:events],
        "item_id": pa.array(stream.item_ids[seen].tolist()),
        "timestamp": np.arange(events),
    }
    pq.write_table(pa.table(columns), files["interactions"])
    if stream.catalogue:
        files["items"] = folder / "items.parquet"
        there = np.flatnonzero(np.isin(stream.rows, seen))
        table = stream.catalogue.columns.take(pa.array(there))
        ids = pa.array(stream.item_ids[stream.rows[there]].tolist())
        pq.write_table(table.set_column(table.column_names.index("item_id"), "item_id", ids), files["items"])
    return files["interactions"], files.get("items")
