"""What the records of the log say: changes of items. A change is a JSON object, with `op` put, delete, move or patch.

A put has all that an item needs to be found: vector, bias, paths, and the evidence from which these were derived.
Vector and paths mean something only to the network that they were made for, which the change names. For another
network, they are derived from the evidence again. So `net`, what is left of many changes, has only the evidence.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from index_store.errors import LogDamaged
from retrieval.query import ItemId

LARGEST = float(np.finfo(np.float32).max)

PlacedBy = Literal["clicks", "like", "attributes", "kept", "none"]


@dataclass(frozen=True)
class Placement:
    """Where an item is found: its vector, float16 (E,), its bias, and the ids of its paths, at most J.

    neighbours: items that the same users click, and their similarities, 0 to 1. follows: items after which it is
    clicked soon.
    """

    vector: NDArray[np.float16]
    bias: float
    paths: Sequence[int]
    placed_by: PlacedBy
    network: str  # the first 16 digits of the digest of model.onnx
    neighbours: Mapping[ItemId, float] = field(default_factory=dict)
    follows: Mapping[ItemId, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """From what an item can be placed: histories of users who clicked it, items that it is like, and its attributes."""

    clicked_by: Sequence[Sequence[ItemId]] = ()
    like: Sequence[ItemId] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Put:
    """An item is new, or replaces the one with this id. placement: None if it has to be derived from the evidence.

    expires: ms since 1970, or None.
    """

    item_id: ItemId
    placement: Placement | None
    evidence: Evidence = Evidence()
    expires: int | None = None


@dataclass(frozen=True)
class Delete:
    """The item is gone."""

    item_id: ItemId


@dataclass(frozen=True)
class Move:
    """The item is found on other paths."""

    item_id: ItemId
    paths: Sequence[int]
    network: str


@dataclass(frozen=True)
class Patch:
    """Some facts about the item change. An empty mapping changes nothing; expires 0: the item does not expire."""

    item_id: ItemId
    bias: float | None = None
    expires: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


Change = Put | Delete | Move | Patch


def to_json(change: Change) -> dict[str, Any]:
    """The change as a JSON object. Fields that say nothing are left out."""
    if isinstance(change, Put):
        evidence = change.evidence
        fields = {
            "op": "put",
            "item_id": change.item_id,
            **(_placement_to_json(change.placement) if change.placement else {}),
            "clicked_by": [list(history) for history in evidence.clicked_by],
            "like": list(evidence.like),
            "attributes": dict(evidence.attributes),
            "expires": change.expires,
        }
        return {name: value for name, value in fields.items() if value not in (None, [], {}) or name == "paths"}
    if isinstance(change, Delete):
        return {"op": "delete", "item_id": change.item_id}
    if isinstance(change, Move):
        return {"op": "move", "item_id": change.item_id, "paths": list(change.paths), "network": change.network}
    fields = {"bias": change.bias, "expires": change.expires, "attributes": dict(change.attributes)}
    said = {name: value for name, value in fields.items() if value not in (None, {})}
    return {"op": "patch", "item_id": change.item_id, **said}


def _placement_to_json(place: Placement) -> dict[str, Any]:
    return {
        "vector": base64.b64encode(place.vector.astype("<f2").tobytes()).decode(),
        "bias": place.bias,
        "paths": list(place.paths),
        "placed_by": place.placed_by,
        "network": place.network,
        "neighbours": [[item, round(similarity, 5)] for item, similarity in place.neighbours.items()],
        "follows": [[item, round(similarity, 5)] for item, similarity in place.follows.items()],
    }


def from_json(fields: Mapping[str, Any]) -> Change:
    """The change in a record. Raises LogDamaged if it is none. Unknown fields are ignored."""
    try:
        item = _checked(fields["item_id"], int, str)
        match fields["op"]:
            case "put":
                placement = _placement(fields) if "vector" in fields else None
                return Put(item, placement, _evidence(fields), _time(fields))
            case "delete":
                return Delete(item)
            case "move":
                return Move(item, _paths(fields), _checked(fields["network"], str))
            case "patch":
                bias = fields.get("bias")
                attributes = _checked(fields.get("attributes", {}), dict)
                return Patch(item, None if bias is None else _finite(bias), _time(fields), attributes)
            case _:
                raise ValueError("op")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LogDamaged(f"the log has a change that cannot be read ({type(error).__name__}: {error})") from None


def net(changes: Iterable[Change]) -> list[Change]:
    """What is left of changes in order, for any network: at most one change of each item.

    Moves and biases are left out, because they mean something only to the network that they were made for. A put
    without evidence leaves what was known.
    """
    left: dict[ItemId, Put | Delete | Patch] = {}
    for change in changes:
        before = left.get(change.item_id)
        if isinstance(change, Delete):
            left[change.item_id] = change
        elif isinstance(change, Put):
            known = before.evidence if isinstance(before, Put) else Evidence()
            if isinstance(before, Patch):
                known = Evidence(attributes=before.attributes)
            left[change.item_id] = Put(change.item_id, None, _joined(known, change.evidence), change.expires)
        elif isinstance(change, Patch):
            expires = change.expires
            if isinstance(before, Put):
                evidence = _joined(before.evidence, Evidence(attributes=change.attributes))
                left[change.item_id] = Put(
                    change.item_id, None, evidence, before.expires if expires is None else expires or None
                )
            elif not isinstance(before, Delete):
                attributes = dict(before.attributes if before else {}) | dict(change.attributes)
                if expires is None and before:
                    expires = before.expires
                if expires is not None or attributes:
                    left[change.item_id] = Patch(change.item_id, None, expires, attributes)
    return list(left.values())


def _joined(known: Evidence, new: Evidence) -> Evidence:
    """All evidence of an item, which was known in part before."""
    return Evidence(
        new.clicked_by or known.clicked_by, new.like or known.like, dict(known.attributes) | dict(new.attributes)
    )


def _checked(value: Any, *kinds: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"expected {' or '.join(kind.__name__ for kind in kinds)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("a number does not fit in 64 bits")
    return value


def _placement(fields: Mapping[str, Any]) -> Placement:
    vector = np.frombuffer(base64.b64decode(fields["vector"], validate=True), "<f2").astype(np.float16, copy=False)
    if not np.isfinite(vector).all():
        raise ValueError("vector")
    if fields["placed_by"] not in ("clicks", "like", "attributes", "kept", "none"):
        raise ValueError("placed_by")
    network = _checked(fields["network"], str)
    near, follows = _similar(fields, "neighbours"), _similar(fields, "follows")
    return Placement(vector, _finite(fields["bias"]), _paths(fields), fields["placed_by"], network, near, follows)


def _similar(fields: Mapping[str, Any], name: str) -> dict[ItemId, float]:
    """Items and their similarities. Checked in bulk, because every new item has some."""
    similar: dict[ItemId, float] = dict(fields.get(name, ()))
    if not {*map(type, similar)} <= {int, str} or not {*map(type, similar.values())} <= {int, float}:
        raise TypeError(name)
    if any(isinstance(item, int) and not -(2**63) <= item < 2**63 for item in similar):
        raise ValueError(name)
    if not all(abs(similarity) <= LARGEST for similarity in similar.values()):
        raise ValueError(name)
    return similar


def _evidence(fields: Mapping[str, Any]) -> Evidence:
    clicked_by = [_ids(history) for history in _checked(fields.get("clicked_by", []), list)]
    return Evidence(clicked_by, _ids(fields.get("like", [])), _checked(fields.get("attributes", {}), dict))


def _ids(values: Any) -> list[ItemId]:
    return [_checked(value, int, str) for value in _checked(values, list)]


def _paths(fields: Mapping[str, Any]) -> list[int]:
    paths: list[int] = [_checked(path, int) for path in _checked(fields["paths"], list)]
    if not all(0 <= path < 2**63 for path in paths):
        raise ValueError("paths")
    return paths


def _time(fields: Mapping[str, Any]) -> int | None:
    expires = fields.get("expires")
    return None if expires is None else int(_checked(expires, int))


def _finite(value: Any) -> float:
    number = float(_checked(value, int, float))
    if not abs(number) <= LARGEST:
        raise ValueError("a number is not finite in 32 bits")
    return number
