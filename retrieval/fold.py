"""Fold a version and the records of the log after it into a new version, which answers as both did together.

The network stays the same, so nothing is trained. Items that were put get their place in the version's arrays, items
that were deleted leave its lists, and the records up to the new version need not be kept.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

from numpy.typing import NDArray

from index_store.errors import (
    FoldRunning,
    IndexStoreError,
    LogDamaged,
    VersionDamaged,
    VersionIncompatible,
    VersionInUse,
    VersionNotFound,
)
from index_store.log import START, Place, Record
from index_store.manifest import Manifest
from index_store.store import IndexStore
from index_store.version import Version
from retrieval.changes import Change, Delete, Move, Put, changes_of, net, read_changes, write_changes
from retrieval.golden import record, replay
from retrieval.query import ItemId, Request
from retrieval.searcher import Searcher
from retrieval.vocabulary import Vocabulary

log = logging.getLogger(__name__)

READ = 1000  # records read at once
LEASE = "fold"  # the task that one process does at a time


class Folded(NamedTuple):
    """The version that was made, None if there was nothing to fold; the one it was made of; and the records in it.

    If it was made of another version than the current one, records is the number of items that the log has changed.
    rollback: the version with the network that was current before and with the same records; None if there is none.
    made: all versions that were published.
    """

    version: str | None
    previous: str
    records: int
    rollback: str | None = None
    made: Sequence[str] = ()


def fold_current(store: IndexStore, version: str | None = None, *, activate: bool = True) -> Folded:
    """Fold the current version and the whole log, publish the result, and make it current.

    version: fold this one instead; so an earlier network gets the catalogue of today, although the log has not all
    records after it any more. Raises FoldRunning if another process folds, VersionNotFound if no version is current,
    and the errors of the store.
    """
    with store.lease(LEASE) as mine:
        if not mine:
            raise FoldRunning("another process folds the current version at the moment; its result will be served")
        current = store.current()
        if version in (None, current):
            folded = publish_folded(store, with_rollback=activate)
        else:
            folded = _publish_with_catalogue(store, str(version))
        if activate and folded.version:
            try:
                store.activate(folded.version, expected=current, previous=folded.rollback)
            except IndexStoreError:
                discard(store, folded.made)
                raise
            tidy(store)
        return folded


def publish_folded(store: IndexStore, *, with_rollback: bool = True) -> Folded:
    """Fold the current version and the whole log, and publish the result. The caller has the lease.

    with_rollback: fold the previous version too, if it has another network: a rollback returns to an earlier network,
    but never to an earlier catalogue.
    """
    name = store.current()
    if name is None:
        raise VersionNotFound(f"{store}: no version is current, so there is nothing to fold")
    version = store.load(name)
    records = read_all(store, version.manifest.covers)
    if not records:
        return Folded(None, name, 0)
    made = [store.publish(fold(version, records))]
    rollback = _previous_network(store, version.manifest, made) if with_rollback else None
    return Folded(made[0], name, len(records), rollback, made)


def _previous_network(store: IndexStore, current: Manifest, made: list[str]) -> str | None:
    """Fold the previous version and the log, add the result to `made`, and return the version to roll back to.

    None if it has the same network, or if it cannot be folded: that must not keep the current one from being folded.
    """
    try:
        name = store.previous()
        manifest = next((manifest for manifest in store.versions() if manifest.version == name), None)
        if manifest is None or manifest.parts["model.onnx"] == current.parts["model.onnx"]:
            return None
        if records := read_all(store, manifest.covers):
            name = store.publish(fold(store.load(manifest.version), records))
            made.append(name)
        return name
    except IndexStoreError as error:
        log.warning("the previous version cannot be folded, so a rollback returns to the same network: %s", error)
        return None


def discard(store: IndexStore, made: Sequence[str]) -> None:
    """Delete versions that a fold has published in vain. Never raises."""
    for name in made:
        with suppress(IndexStoreError):
            store.delete(name)


def _publish_with_catalogue(store: IndexStore, version: str) -> Folded:
    changes, covers = catalogue(store)
    made = with_catalogue(store.load(version), changes, covers)
    return Folded(store.publish(made), version, len(changes))


def read_all(store: IndexStore, after: Place) -> list[Record]:
    """All records of the log after a place."""
    records: list[Record] = []
    while new := store.read(records[-1].place if records else after, READ):
        records += new
    return records


def tidy(store: IndexStore) -> None:
    """Remove what folds leave: records that the current and the previous version have, and other folded versions.

    Replicas that still serve the version of which the current one was made need the records after it for a moment, so
    they are kept till the next time. A version that has fewer records is then refused.
    """
    kept = store.previous(), store.current()  # in this order: a rollback between the two gives an older version twice
    manifests = {manifest.version: manifest for manifest in store.versions()}
    covers = [manifests[name].covers.seq if name in manifests else 0 for name in kept]
    sources = {manifest.metrics.get("folded") for name, manifest in manifests.items() if name in kept}
    covers += [manifest.covers.seq for name, manifest in manifests.items() if name in sources]
    store.trim(1 + min(covers))
    for name, manifest in manifests.items():
        if name not in kept and "folded" in manifest.metrics:
            with suppress(VersionInUse, VersionNotFound):
                store.delete(name)


def fold(version: Version, records: Sequence[Record]) -> Version:
    """The version with these records, which follow it. Raises VersionDamaged if the new one answers differently."""
    changes = changes_of(records)
    seen = [*read_changes(version.parts["changes.json"]), *changes]
    # With the time of the last record, not of today, two folds of the same records give the same version.
    return _folded(version, changes, records[-1].place, seen, records[-1].time // 1000)


def with_catalogue(version: Version, changes: Sequence[Change], covers: Place) -> Version:
    """A version that was trained on interactions, with what the log says about its items up to the record `covers`."""
    left = net(changes)
    if not left:
        # Nothing is said about items, but the records need not be read again.
        return dataclasses.replace(version, manifest=dataclasses.replace(version.manifest, covers=covers))
    return _folded(version, left, covers, left, int(time.time()))


def catalogue(store: IndexStore) -> tuple[list[Change], Place]:
    """What the log says about items, from its beginning to its end; for a version that is trained anew.

    The records that were trimmed are in the current version. If that cannot be read, the whole log is, unless some of
    it was trimmed.
    """
    name, place = store.current(), store.log_start()
    changes: list[Change] = []
    try:
        if name is not None:
            version = store.load(name)
            changes, place = read_changes(version.parts["changes.json"]), version.manifest.covers
    except (VersionIncompatible, VersionDamaged, VersionNotFound):
        if place != START:
            raise
    records = read_all(store, place)
    changes += changes_of(records)
    return net(changes), records[-1].place if records else place


def require_ids(changes: Sequence[Change], ids: NDArray[Any]) -> None:
    """Raise LogDamaged unless the items of the changes can be in one catalogue with these items."""
    vocabulary = Vocabulary(ids.tolist() if ids.dtype == object else ids)
    for change in changes:
        if vocabulary.canonical(change.item_id) is None:
            raise LogDamaged(
                f"the log of the catalogue has the item {str(change.item_id)[:60]!r}, but all ids of the data are "
                f"{vocabulary.kind}s; set item_id, or choose another store"
            )


def _folded(version: Version, changes: Sequence[Change], covers: Place, seen: Sequence[Change], now: int) -> Version:
    """seen: all changes that the new version has. now: seconds since 1970."""
    slots = sum(isinstance(change, Put | Move) for change in changes)
    searcher = Searcher.open(version, slots + 1).at(lambda: now)
    for group in _groups(changes):
        left_out = searcher.change(group, covers)
        assert not left_out
    parts, items, postings, expired = searcher.folded_parts()
    parts["changes.json"] = write_changes(net([*seen, *map(Delete, expired)]))
    manifest = version.manifest
    facts = {
        "items": items,
        "structure": dict(manifest.structure) | {"postings": postings},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "covers": covers,
        # What a training publishes has no name yet; it is a version of its own, which `tidy` leaves alone.
        "metrics": {**manifest.metrics, **({"folded": manifest.version} if manifest.version else {})},
    }
    requests = [Request(**request) for request in version.document("golden.json")["requests"]]
    answers = record(searcher, requests, now)
    folded = version.with_parts({**parts, "golden.json": _json(answers)}, **facts)
    replay(Searcher.open(folded, 1), answers)
    return folded


def _groups(changes: Sequence[Change]) -> Iterator[list[Change]]:
    """The changes in order, cut so that the evidence of an item without a place names only items of earlier groups."""
    group: list[Change] = []
    put: set[ItemId] = set()
    for change in changes:
        if isinstance(change, Put) and change.placement is None:
            named = {*change.evidence.like, *chain.from_iterable(change.evidence.clicked_by)}
            if named & put:
                yield group
                group, put = [], set()
        group.append(change)
        if isinstance(change, Put):
            put.add(change.item_id)
    yield group


def _json(value: Mapping[str, Any] | list[Any]) -> bytes:
    return json.dumps(value, allow_nan=False, sort_keys=True).encode()
