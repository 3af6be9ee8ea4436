"""Learner: keeps a store's catalogue and its network up to date with events."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from index_store.errors import PointerMoved
from index_store.log import Draft
from index_store.store import IndexStore
from retrieval.changes import to_json
from retrieval.events import Event
from retrieval.fold import catalogue, fold, read_all, tidy
from retrieval.query import ItemId, Request
from retrieval.searcher import Searcher
from trainer.config import stored_config
from trainer.errors import ExportRefused, TrainerError
from trainer.living.new_items import NewItems
from trainer.living.renew import renewed
from trainer.living.sessions import Session, Sessions
from trainer.progress import Progress, counted

SLOTS = 100_000  # new items for which a version is opened
TOGETHER = 256  # requests answered together
#: A version whose hits among clicks that were kept back fall by so many standard deviations is not published.
WORSE = 3.0
ATTEMPTS = 3  # to make a version current, if another one becomes it meanwhile


class Learner:
    """Takes events, puts items that are new into the catalogue, and publishes versions that have learned."""

    def __init__(self, store: IndexStore, progress: Progress) -> None:
        self._store, self._progress = store, progress
        self._producer, self._number = uuid.uuid4().hex, 0
        self._searcher: Searcher | None = None
        self.sessions = Sessions(self.searcher().manifest.history + 1)
        self._new_items = NewItems(catalogue(store)[0])

    def searcher(self) -> Searcher:
        """The current version with all records of the log. Raises TrainerError if no version is current."""
        name = self._store.current()
        if name is None:
            raise TrainerError(f"{self._store}: no version is current; publish one with dr-trainer fit")
        if self._searcher is None or self._searcher.manifest.version != name:
            self._searcher = Searcher.open(self._store.load(name), SLOTS)
        overlay = self._searcher.overlay
        assert overlay
        if records := read_all(self._store, overlay.place):
            self._searcher.apply(records)
        return self._searcher

    def take(self, events: Iterable[Event], described: Mapping[ItemId, Mapping[str, Any]] | None = None) -> None:
        """Remember events, and put items that are new into the catalogue. described: titles and attributes by item."""
        searcher = self.searcher()
        known = [named for event in events if (named := canonical(event, searcher))]
        if changes := self._new_items.changes(searcher, known, described or {}):
            self._number += 1
            self._store.append([Draft(self._producer, self._number, [to_json(change) for change in changes])])
        for event in known:
            self.sessions.add(event)

    def learn(self, published: Callable[[str, str], None] = lambda *_: None) -> str:
        """Learn from the sessions, make the result current, and return its name.

        published: called with the new version and the one that it replaces, before it becomes current. Raises
        ExportRefused if the version that has learned is worse, PointerMoved if other versions keep becoming current.
        """
        for attempt in range(1, ATTEMPTS + 1):
            started, fresh = time.monotonic(), self.sessions.fresh
            current = self.searcher().manifest.version
            version = self._store.load(current)
            if records := read_all(self._store, version.manifest.covers):
                version = fold(version, records)
            held = self.sessions.held_back()
            drawn = self.sessions.drawn(held)
            config, _ = stored_config(version.manifest.config)
            made = renewed(version, config, drawn, current, self._progress)
            before, after = (hits(Searcher.open(each), held) for each in (version, made))
            if before - after > WORSE * math.sqrt(before):
                raise ExportRefused(
                    f"after learning from {counted(fresh, 'click')}, {after} of {len(held)} clicks that were kept back "
                    f"were found, before it {before}; nothing was published"
                )
            name = self._store.publish(made)
            published(name, current)
            try:
                self._store.activate(name, expected=current)
            except PointerMoved:
                self._store.delete(name)
                if attempt == ATTEMPTS:
                    raise
                continue
            break
        tidy(self._store)
        self.sessions.learned(held)
        self._progress.say(
            f"{name}: learned from {counted(fresh, 'click')} in {time.monotonic() - started:.1f} s; found {after} of "
            f"{len(held)} clicks that were kept back, before it {before}"
        )
        return name


def canonical(event: Event, searcher: Searcher) -> Event | None:
    """The event with the ids that the catalogue has; None if its item cannot be in this catalogue."""
    item = searcher.vocabulary.named(event.item_id)
    if item is None:
        return None
    named = [searcher.vocabulary.named(each) for each in event.history]
    history: list[ItemId] = [each for each in named if each is not None]
    return Event(item, history, event.context, event.time)


def answers(searcher: Searcher, requests: Sequence[Request]) -> list[list[ItemId]]:
    """The items that the version answers to each request; all have its default beam."""
    found: list[list[ItemId]] = []
    for start in range(0, len(requests), TOGETHER):
        queries = [searcher.prepare(request)[0] for request in requests[start : start + TOGETHER]]
        found += [searcher.vocabulary.names(answer.items) for answer in searcher.answer(queries)]
    return found


def hits(searcher: Searcher, sessions: Sequence[Session]) -> int:
    """How many of the last clicks of sessions the version finds with the clicks before."""
    asked = [Request(session.items[:-1], session.context) for session in sessions]
    found = answers(searcher, asked)
    return sum(session.items[-1] in items for session, items in zip(sessions, found, strict=True))
