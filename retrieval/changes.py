"""What the records of the log say: changes of items. A change is a JSON object, with `op` put, delete, move or patch.

A put has all that an item needs to be found: vector, bias, paths, and the evidence from which these were derived.
Vector and paths mean something only to the network that they were made for, which the change names. For another
network, they are derived from the evidence again. So `net`, what is left of many changes, has only the evidence.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from index_store.errors import LogDamaged
from index_store.log import Record

LARGEST = float(np.finfo(np.float32).max)
#: The types of fields; a value outside of them is refused when a record is read.
Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | str
Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
PathId = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Milliseconds = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]  # since 1970
PlacedBy = Literal["clicks", "like", "attributes", "kept", "none"]


class Similar(Struct, frozen=True, omit_defaults=True, gc=False):
    """Items, and how similar they are to another item, 0 to 1."""

    items: Sequence[Id] = []
    similarities: Sequence[Number] = []


class Placement(Struct, frozen=True, omit_defaults=True, gc=False):
    """Where an item is found: its vector, float16 (E,), its bias, and the ids of its paths, at most J.

    In JSON, the vector is the base64 text of its bytes, little-endian.
    network: the first 16 digits of the digest of model.onnx. neighbours: items that the same users click. follows:
    items after which it is clicked soon.
    """

    vector: NDArray[np.float16]
    bias: Number
    paths: Sequence[PathId]
    placed_by: PlacedBy
    network: str
    neighbours: Similar = Similar()
    follows: Similar = Similar()


class Evidence(Struct, frozen=True, omit_defaults=True, gc=False):
    """From what an item can be placed: histories of users who clicked it, items that it is like, and its attributes."""

    clicked_by: Sequence[Sequence[Id]] = []
    like: Sequence[Id] = []
    attributes: dict[str, Any] = {}


class Put(Struct, frozen=True, omit_defaults=True, gc=False, tag_field="op", tag="put"):
    """An item is new, or replaces the one with this id. placement: None if it has to be derived from the evidence.

    expires: ms since 1970, or None. since: ms since 1970, when the item was put.
    """

    item_id: Id
    placement: Placement | None
    evidence: Evidence = Evidence()
    expires: Milliseconds | None = None
    since: Milliseconds = 0


class Delete(Struct, frozen=True, omit_defaults=True, gc=False, tag_field="op", tag="delete"):
    """The item is gone."""

    item_id: Id


class Move(Struct, frozen=True, omit_defaults=True, gc=False, tag_field="op", tag="move"):
    """The item is found on other paths. network: see `Placement`."""

    item_id: Id
    paths: Sequence[PathId]
    network: str


class Patch(Struct, frozen=True, omit_defaults=True, gc=False, tag_field="op", tag="patch"):
    """Some facts about the item change. An empty mapping changes nothing; expires 0: the item does not expire."""

    item_id: Id
    bias: Number | None = None
    expires: Milliseconds | None = None
    attributes: dict[str, Any] = {}


Change = Put | Delete | Move | Patch


def to_json(change: Change) -> dict[str, Any]:
    """The change as a JSON object. Fields that say nothing are left out."""
    fields: dict[str, Any] = msgspec.to_builtins(change, enc_hook=_encode)
    return fields


def changes_of(records: Iterable[Record]) -> list[Change]:
    """The changes of records, in order. Raises LogDamaged if one is none; unknown fields are ignored."""
    return [change for record in records for change in read_changes(record.payload)]


def read_changes(text: bytes | memoryview) -> list[Change]:
    """The changes in a JSON list. Raises LogDamaged."""
    try:
        return _DECODER.decode(text)
    except (msgspec.DecodeError, ValueError) as error:
        raise LogDamaged(f"the log has a change that cannot be read ({error})") from None


def write_changes(changes: Sequence[Change]) -> bytes:
    """A JSON list of changes, for `read_changes`."""
    return msgspec.json.encode(changes, enc_hook=_encode)


def _encode(vector: NDArray[np.float16]) -> str:
    return base64.b64encode(vector.astype("<f2", copy=False).tobytes()).decode()


def _decode(_: type, text: Any) -> NDArray[np.float16]:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f2").astype(np.float16, copy=False)


_DECODER = msgspec.json.Decoder(list[Change], dec_hook=_decode)


def net(changes: Iterable[Change]) -> list[Change]:
    """What is left of changes in order, for any network: at most one change of each item.

    Moves and biases are left out, because they mean something only to the network that they were made for. A put
    without evidence leaves what was known.
    """
    left: dict[int | str, Put | Delete | Patch] = {}
    for change in changes:
        before = left.get(change.item_id)
        if isinstance(change, Delete):
            left[change.item_id] = change
        elif isinstance(change, Put):
            known = before.evidence if isinstance(before, Put) else Evidence()
            if isinstance(before, Patch):
                known = Evidence(attributes=before.attributes)
            since = before.since if isinstance(before, Put) else change.since
            left[change.item_id] = Put(change.item_id, None, _joined(known, change.evidence), change.expires, since)
        elif isinstance(change, Patch):
            expires = change.expires
            if isinstance(before, Put):
                evidence = _joined(before.evidence, Evidence(attributes=change.attributes))
                ends = before.expires if expires is None else expires or None
                left[change.item_id] = Put(change.item_id, None, evidence, ends, before.since)
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
