"""Events: a user with some history has clicked an item. From them the trainer learns between two trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from index_store.errors import LogDamaged
from retrieval.query import Limits

Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Id = Integer | Annotated[str, Meta(max_length=Limits.ITEM_ID)]
Feature = Annotated[str, Meta(max_length=Limits.FEATURE_NAME)]
FeatureValue = Annotated[str, Meta(max_length=Limits.FEATURE_VALUE)] | int | float | bool | None


class Event(Struct, frozen=True, omit_defaults=True, gc=False):
    """A click on an item. history: what the user clicked before, oldest first. time: ms since 1970, if it is known."""

    item_id: Id
    history: Annotated[Sequence[Id], Meta(max_length=Limits.HISTORY)] | None = None
    context: Annotated[Mapping[Feature, FeatureValue], Meta(max_length=Limits.FEATURES)] | None = None
    time: Integer | None = None


def read_event(line: bytes | str) -> Event:
    """The event in a line of JSON. Raises ValueError; its message never contains input."""
    try:
        return _LINE.decode(line)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def read_events(payload: bytes) -> list[Event]:
    """The events in a record of the store's log of events. Raises LogDamaged."""
    try:
        return _RECORD.decode(payload)
    except (ValueError, RecursionError) as error:
        raise LogDamaged(f"the log of events has a record that cannot be read ({error})") from None


_LINE = msgspec.json.Decoder(Event)
_RECORD = msgspec.json.Decoder(list[Event])
