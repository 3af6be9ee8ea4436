"""Data and versions whose right answers are known without training anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index_store.version import Version, npy
from retrieval.attributes import Attributes
from retrieval.paths.overlay import NO_END, NO_LATE
from retrieval.paths.rerank import SOFTMAX

GROUPS = 4
GROUP_ITEMS = 10


def write_interactions(folder: Path, *, users: int = 120, length: int = 9, text_ids: bool = False) -> Path:
    """Write the clicks of users who click only items of their own group (user % 4, item % 4), no item twice.

    So the right answer to a history is the items of its group that are not in it.
    """
    rng = np.random.default_rng(5)
    rows = []
    for user in range(users):
        for time, number in enumerate(rng.permutation(GROUP_ITEMS)[:length]):
            rows.append((user, int(number) * GROUPS + user % GROUPS, time))
    columns: dict[str, list[Any]] = {
        name: [row[i] for row in rows] for i, name in enumerate(("user_id", "item_id", "timestamp"))
    }
    if text_ids:
        columns["item_id"] = [f"item-{item:03}" for item in columns["item_id"]]
    file = folder / "interactions.parquet"
    pq.write_table(pa.table(columns), file)
    return file


def parts_of_version(
    paths: dict[int, list[int]],
    *,
    item_ids: list[int] | list[str],
    bias: list[float] | None = None,
    golden: Any = None,
    model: bytes = b"an ONNX file",
) -> dict[str, bytes]:
    """The parts of a version with these path lists. Item i has the i-th unit vector, so 2 items give E = 2."""
    items = len(item_ids)
    path_ids = sorted(paths)
    lengths = [len(paths[path]) for path in path_ids]
    ids = (
        {"item_ids.json": json.dumps(item_ids).encode()}
        if isinstance(item_ids[0], str)
        else {"item_ids.npy": npy(np.array(item_ids, np.int64))}
    )
    return ids | {
        "model.onnx": model,
        "path_ids.npy": npy(np.array(path_ids, np.int64)),
        "path_offsets.npy": npy(np.cumsum([0, *lengths]).astype(np.int64)),
        "path_items.npy": npy(np.concatenate([paths[path] for path in path_ids]).astype(np.int32)),
        "item_vectors.npy": npy(np.eye(items, dtype=np.float16)),
        "item_bias.npy": npy(np.array(bias or [0.0] * items, np.float32)),
        "neighbours.npy": npy(np.full((2, items, 2), -1, np.int32)),
        "similarities.npy": npy(np.zeros((2, items, 2), np.uint16)),
        "item_since.npy": npy(np.zeros(items, np.int64)),
        "item_ends.npy": npy(np.full(items, NO_END, np.uint32)),
        "late_items.npy": npy(NO_LATE.items),
        "late_neighbours.npy": npy(NO_LATE.neighbours),
        "late_similarities.npy": npy(NO_LATE.similarities),
        "changes.json": b"[]",
        "feature_vectors.npy": npy(np.zeros((1, items), np.float16)),
        **Attributes.none(items).parts(),
        "placing.json": json.dumps(
            {
                "users": [0] * items,
                "matrix": np.eye(items).tolist(),
                "items": [0] * items,
                "length": 1,
                "bias": 0,
            }
        ).encode(),
        "weights.safetensors": b"none",  # the trainer cannot learn on from a planted network
        "reranker.json": json.dumps(SOFTMAX.to_json()).encode(),
        "context.json": json.dumps({"features": []}).encode(),
        "golden.json": json.dumps(golden or {}).encode(),
    }


def facts_of_version(items: int, paths: int, postings: int, **changes: Any) -> dict[str, Any]:
    """The other fields of a manifest, for Version.build. changes: other values for them, or for its "structure"."""
    structure = {
        "depth": 2,
        "width": 4,
        "paths_per_item": 1,
        "paths": paths,
        "postings": postings,
        "beam": 2,
        "per_path": 5,
        "max_beam": 8,
    }
    head = {
        "kind": "paths",
        "items": items,
        "embedding": items,
        "history": 5,
        "k": 2,
        "created": "2026-01-01T00:00:00+00:00",
        "structure": structure | {name: value for name, value in changes.items() if name in structure},
        "config": {},
        "metrics": {},
    }
    return head | {name: value for name, value in changes.items() if name not in structure}


def small_version(stamp: str = "a") -> Version:
    """Three items on two paths, {3: [0, 2], 7: [1]}; another `stamp` gives another fingerprint."""
    parts = parts_of_version({3: [0, 2], 7: [1]}, item_ids=[10, 20, 30], model=f"an ONNX file {stamp}".encode())
    return Version.build(parts, **facts_of_version(items=3, paths=2, postings=3))


def large_version(stamp: str = "a", paths: int = 2500) -> Version:
    """A version whose path lists take several batches, and whose network is stored in two pieces."""
    lists = {7 * path: [path % 50] for path in range(paths)}
    model = b"an ONNX file " + stamp.encode() + bytes(1_200_000)
    parts = parts_of_version(lists, item_ids=list(range(50)), model=model)
    return Version.build(parts, **facts_of_version(items=50, paths=paths, postings=paths, width=7 * paths))


def changed(version: Version, **parts: bytes) -> Version:
    """The version with other bytes in some parts (named without their file endings), and with correct digests."""
    endings = {name.split(".")[0]: name for name in version.parts}
    return version.with_parts({endings[name]: part for name, part in parts.items()})


def with_ids(version: Version, ids: NDArray[np.int64]) -> Version:
    """The version with other ids (V,), ascending, for the same items, also in its golden queries."""
    new = dict(zip(np.asarray(version.item_ids).tolist(), ids.tolist(), strict=True))
    golden = version.document("golden.json")
    for request in golden["requests"]:
        request["history"] = [new[item] for item in request["history"]]
    for answer in golden["answers"]:
        answer["item_ids"] = [new[item] for item in answer["item_ids"]]
    return changed(version, item_ids=npy(ids), golden=json.dumps(golden).encode())
