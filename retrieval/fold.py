"""Fold a version and the records of the log after it into a new version, which answers as both did together.

The network stays the same, so nothing is trained. Items that were put get their place in the version's arrays, items
that were deleted leave its lists, and the records up to the new version need not be kept.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from index_store.errors import FoldRunning, VersionNotFound
from index_store.log import START, Place, Record
from index_store.store import IndexStore
from index_store.version import Version
from retrieval.changes import Change, Move, Put, changes_of, net, read_changes, write_changes
from retrieval.golden import record, replay
from retrieval.query import Request
from retrieval.searcher import Searcher

READ = 1000  # records read at once


class Folded(NamedTuple):
    """The version that was made, None if there was nothing to fold; the one it was made of; and the records in it."""

    version: str | None
    previous: str
    records: int


def fold_current(store: IndexStore, *, activate: bool = True) -> Folded:
    """Fold the current version and the whole log, publish the result, and make it current.

    Raises FoldRunning if another process does the same, VersionNotFound if no version is current, and the errors of
    the store.
    """
    with store.lease("fold") as mine:
        if not mine:
            raise FoldRunning("another process folds the current version at the moment; its result will be served")
        name = store.current()
        if name is None:
            raise VersionNotFound(f"{store}: no version is current, so there is nothing to fold")
        version = store.load(name)
        records = read_all(store, version.manifest.covers)
        if not records:
            return Folded(None, name, 0)
        folded = store.publish(fold(version, records))
        if activate:
            store.activate(folded, expected=name)
            trim(store)
        return Folded(folded, name, len(records))


def read_all(store: IndexStore, after: Place) -> list[Record]:
    """All records of the log after a place."""
    records: list[Record] = []
    while new := store.read(records[-1].place if records else after, READ):
        records += new
    return records


def trim(store: IndexStore) -> None:
    """Remove the records that the current and the previous version have. A version that has fewer is then refused."""
    covers = {manifest.version: manifest.covers.seq for manifest in store.versions()}
    store.trim(1 + min(covers.get(name or "", 0) for name in (store.current(), store.previous())))


def fold(version: Version, records: Sequence[Record]) -> Version:
    """The version with these records, which follow it. Raises VersionDamaged if the new one answers differently."""
    changes = changes_of(records)
    return _folded(version, changes, records[-1].place, [*read_changes(version.parts["changes.json"]), *changes])


def with_catalogue(version: Version, changes: Sequence[Change], covers: Place) -> Version:
    """A version that was trained on interactions, with what the log says about its items up to the record `covers`."""
    left = net(changes)
    if not left:
        return dataclasses.replace(version, manifest=dataclasses.replace(version.manifest, covers=covers))
    return _folded(version, left, covers, left)


def catalogue(store: IndexStore) -> tuple[list[Change], Place]:
    """What the log says about items, from its beginning to its end; for a version that is trained anew.

    The records that were trimmed are in the current version.
    """
    name = store.current()
    changes: list[Change] = []
    place = START
    if name is not None:
        version = store.load(name)
        changes, place = read_changes(version.parts["changes.json"]), version.manifest.covers
    records = read_all(store, place)
    changes += changes_of(records)
    return net(changes), records[-1].place if records else place


def _folded(version: Version, changes: Sequence[Change], covers: Place, seen: Sequence[Change]) -> Version:
    """seen: all changes that the new version has."""
    slots = sum(isinstance(change, Put | Move) for change in changes)
    searcher = Searcher.open(version, slots + 1)
    left_out = searcher.change(changes, covers)
    assert not left_out
    parts, items, postings = searcher.folded_parts()
    parts["changes.json"] = write_changes(net(seen))
    golden = version.document("golden.json")
    manifest = version.manifest
    facts: dict[str, Any] = {
        name: getattr(manifest, name) for name in ("kind", "embedding", "history", "k", "config", "metrics")
    }
    facts |= {
        "items": items,
        "structure": dict(manifest.structure) | {"postings": postings},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "covers": covers,
    }
    whole = {**version.parts, **parts}
    requests = [Request(**request) for request in golden["requests"]]
    answers = record(searcher, requests, int(time.time()))
    folded = Version.build({**whole, "golden.json": _json(answers)}, **facts)
    replay(Searcher.open(folded, 1), answers)
    return folded


def _json(value: Mapping[str, Any] | list[Any]) -> bytes:
    return json.dumps(value, allow_nan=False, sort_keys=True).encode()
