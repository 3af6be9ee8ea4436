"""Learner: keeps a store's catalogue and its network up to date with events."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from index_store.errors import FoldRunning, IndexStoreError, LogMoved, PointerMoved, VersionNotFound
from index_store.log import Draft, Place
from index_store.store import IndexStore
from index_store.version import Version
from retrieval.changes import Change, changes_of, to_json
from retrieval.events import Event
from retrieval.fold import LEASE, catalogue, fold, read_all, tidy
from retrieval.query import ItemId, Request
from retrieval.searcher import Searcher
from retrieval.vocabulary import Vocabulary
from trainer.config import stored_config
from trainer.errors import ExportRefused, TrainerError
from trainer.living.new_items import NewItems
from trainer.living.renew import renewed
from trainer.living.sessions import Session, Sessions
from trainer.progress import Progress, counted

SLOTS = 100_000  # new items for which a version is opened
TOGETHER = 256  # requests answered together
PUTS = 100  # in one record
LEASE_SECONDS = 60.0  # to wait for another process that folds, or for the lease of one that has died
#: A version is not published if it finds fewer clicks than the one before by so many standard deviations.
WORSE = 2.5

#: Called with a version that is published, the one that is current, and the id of the round, as in the metrics.
Published = Callable[[str, str, str], object]


class Learner:
    """Takes events, puts items that are new into the catalogue, and publishes versions that have learned."""

    def __init__(self, store: IndexStore, progress: Progress) -> None:
        """Raises TrainerError if no version is current."""
        self._store, self._progress = store, progress
        self._producer, self._number = uuid.uuid4().hex, 0
        self._searcher: Searcher | None = None
        self._new_items = NewItems()
        self._new_items.note(catalogue(store)[0])
        self.sessions = Sessions(self.searcher().manifest.history + 1)

    def searcher(self) -> Searcher:
        """The current version with all records of the log. Raises TrainerError if no version is current."""
        name = self._store.current()
        if name is None:
            raise TrainerError(f"{self._store}: no version is current; publish one with dr-trainer fit")
        if self._searcher is None or self._searcher.manifest.version != name:
            self._searcher = Searcher.open(self._store.load(name), SLOTS)
        self._read_log(self._searcher)
        return self._searcher

    def _read_log(self, searcher: Searcher) -> list[Change]:
        """Apply the records that are new, and return the changes that others made."""
        assert searcher.overlay
        records = read_all(self._store, searcher.overlay.place)
        if records:
            searcher.apply(records)
        self._new_items.note(changes_of(records))
        return changes_of(record for record in records if record.producer != self._producer)

    def canonical(self, events: Iterable[Event]) -> list[Event]:
        """The events with the ids that the catalogue has, without those whose item cannot be in this catalogue."""
        vocabulary = self.searcher().vocabulary
        made = []
        for event in events:
            *history, item = _canonical([*(event.history or ()), event.item_id], vocabulary)
            if item is not None:
                known = [each for each in history if each is not None]
                made.append(Event(item, known, event.context or {}, event.time))
        return made

    def take(self, events: Sequence[Event], described: Mapping[ItemId, Mapping[str, Any]] | None = None) -> None:
        """Remember canonical events, and put items that are new into the catalogue.

        described: titles and attributes by item.
        """
        searcher = self.searcher()
        changes = self._new_items.changes(searcher, events, described or {})
        assert searcher.overlay
        while changes:
            try:
                self._append(changes[:PUTS], searcher.overlay.place)
                changes = changes[PUTS:]
            except LogMoved:
                pass
            # Items that somebody else has changed meanwhile are left as they are: what is deleted stays deleted.
            others = {change.item_id for change in self._read_log(searcher)}
            changes = [change for change in changes if change.item_id not in others]
        for event in events:
            self.sessions.add(event)

    def learn(self, published: Published = lambda *_: None) -> str:
        """Learn from the sessions, make the result current, and return its name.

        published: called before the new version becomes current. Raises ExportRefused if it is worse, FoldRunning if
        another process folds, PointerMoved if another version became current meanwhile. Then the clicks stay to be
        learned.
        """
        end = time.monotonic() + LEASE_SECONDS
        while True:
            with self._store.lease(LEASE) as mine:
                if mine:
                    return self._learn(published)
            if time.monotonic() >= end:
                raise FoldRunning("another process folds the current version at the moment")
            time.sleep(1)

    def _learn(self, published: Published) -> str:
        started, fresh = time.monotonic(), self.sessions.fresh
        version = self.searcher().version
        current = version.manifest.version
        if records := read_all(self._store, version.manifest.covers):
            version = fold(version, records)
        held = self.sessions.held_back()
        this_round = uuid.uuid4().hex
        config, _ = stored_config(version.manifest.config)
        facts = {"folded": current, "round": this_round}
        made = renewed(version, config, self.sessions.drawn(held), facts, self._progress)
        checked = self._check(version, made, [*held, *self.sessions.left_out()])
        name = self._store.publish(made)
        published(name, current, this_round)
        try:
            self._store.activate(name, expected=current)
        except (PointerMoved, VersionNotFound) as error:
            with suppress(IndexStoreError):
                self._store.delete(name)
            raise PointerMoved(f"another version became current while {current} has learned: {error}") from None
        tidy(self._store)
        self.sessions.learned(held)
        seconds = time.monotonic() - started
        self._progress.say(f"{name}: learned from {counted(fresh, 'click')} in {seconds:.1f} s; {checked}")
        return name

    @staticmethod
    def _check(before: Version, after: Version, sessions: Sequence[Session]) -> str:
        """Compare two versions on the last clicks of sessions. Raises ExportRefused if the later one is worse."""
        found = [hits(Searcher.open(version), sessions) for version in (before, after)]
        lost = sum(old and not new for old, new in zip(*found, strict=True))
        gained = sum(new and not old for old, new in zip(*found, strict=True))
        told = f"of {counted(len(sessions), 'click')} that it did not learn, it finds {gained} more and {lost} less"
        if lost - gained > WORSE * math.sqrt(lost + gained):
            raise ExportRefused(f"the version that has learned is worse: {told}; nothing was published")
        return told

    def _append(self, changes: Sequence[Change], expected: Place) -> None:
        self._number += 1
        draft = Draft(self._producer, self._number, [to_json(change) for change in changes])
        self._store.append([draft], expected=expected)


def _canonical(ids: Sequence[ItemId], vocabulary: Vocabulary) -> list[ItemId | None]:
    """Each id as the catalogue has it or would have it; None for one of the wrong kind."""
    places = vocabulary.lookup(ids)
    names = iter(vocabulary.names(places[places >= 0]))
    return [next(names) if place >= 0 else vocabulary.named(each) for each, place in zip(ids, places, strict=True)]


def answers(searcher: Searcher, requests: Sequence[Request]) -> list[list[ItemId]]:
    """The items that the version answers to each request; all have its default beam."""
    found: list[list[ItemId]] = []
    for start in range(0, len(requests), TOGETHER):
        queries = [searcher.prepare(request)[0] for request in requests[start : start + TOGETHER]]
        found += [searcher.vocabulary.names(answer.items) for answer in searcher.answer(queries)]
    return found


def hits(searcher: Searcher, sessions: Sequence[Session]) -> list[bool]:
    """Whether the version finds the last click of each session with the clicks before."""
    asked = [Request(session.items[:-1], session.context) for session in sessions]
    found = answers(searcher, asked)
    return [session.items[-1] in items for session, items in zip(sessions, found, strict=True)]
