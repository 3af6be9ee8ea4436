"""`dr-trainer follow`: measure events as they come, then learn from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from index_store.errors import FoldRunning, PointerMoved, VersionNotFound
from index_store.store import IndexStore
from retrieval.events import Event
from retrieval.query import Request
from trainer.data.events import EventSource, StoreEvents
from trainer.errors import ExportRefused
from trainer.living.checkpoint import FORMAT, Checkpoint, Pending, State
from trainer.living.learner import Learner, answers
from trainer.living.renew import clicks_of
from trainer.living.sessions import Sessions
from trainer.progress import Progress, counted

TOGETHER = 1000  # events taken at once
EVERY = 300.0  # seconds after which new clicks are learned, if nothing else is asked for
LOOK_SECONDS = 1.0  # between two looks for events
SAVE_SECONDS = 30.0  # between two checkpoints
#: Learning begins at the latest when so many clicks are new, as a share of those of the training, but at least ENOUGH.
SHARE, ENOUGH = 0.02, 1000
SHOWN = 3  # lines of a source that cannot be read and are reported, of each TOGETHER

#: Called with a JSON object about what was measured or learned.
Report = Callable[[dict[str, Any]], None]


class Follow:
    """Learns from a source of events, until the source ends."""

    def __init__(
        self,
        store: IndexStore,
        source: EventSource,
        name: str,
        checkpoint: Checkpoint,
        state: State | None,
        every: float,
        progress: Progress,
        report: Report,
    ) -> None:
        """name: of the source. state: of `checkpoint`. every: seconds after which new clicks are learned, if any."""
        self._store, self._source, self._name, self._checkpoint = store, source, name, checkpoint
        self._every, self._progress, self._report = every, progress, report
        self._place = state.place if state else None
        self._waiting = state.waiting if state else 0  # clicks since the network learned, or tried to
        self._learner = Learner(store, progress)
        if state:
            self._resume(state)

    def run(self) -> None:
        """Follow the events. Raises the errors of the store, DataError if the source cannot be read."""
        tried = saved = time.monotonic()
        unsaved = False
        while True:
            arrived = self._source.read(TOGETHER)
            self._tell(arrived.lines)
            events = self._learner.canonical(arrived.events)
            if arrived.events:
                self._measure(events, len(arrived.events))
                self._learner.take(events)
                self._waiting += len(events)
            unsaved |= len(arrived) > 0
            self._place = arrived.place
            now = time.monotonic()
            due = self._waiting >= self._enough or now - tried >= self._every or self._source.ended
            if self._waiting and due:
                unsaved = not self._learn()
                tried = time.monotonic()
            if unsaved and (now - saved >= SAVE_SECONDS or self._source.ended):
                self._save(None)
                saved, unsaved = now, False
            if self._source.ended:
                return
            if not arrived.events:
                time.sleep(LOOK_SECONDS)

    @property
    def _enough(self) -> int:
        return max(ENOUGH, int(SHARE * clicks_of(self._learner.searcher().manifest)))

    def _tell(self, lines: Sequence[str]) -> None:
        for line in lines[:SHOWN]:
            self._progress.say(f"warning: {line}")
        if len(lines) > SHOWN:
            self._progress.say(f"warning: {len(lines) - SHOWN} more like this")

    def _measure(self, events: Sequence[Event], arrived: int) -> None:
        """Report how many of the clicks are found, before anything is learned from them.

        events: canonical, of the `arrived` ones.
        """
        searcher = self._learner.searcher()
        found = answers(searcher, [Request(event.history or (), event.context or {}) for event in events])
        hit = sum(event.item_id in items for event, items in zip(events, found, strict=True))
        new = int((searcher.vocabulary.lookup([event.item_id for event in events]) < 0).sum())
        k, wrong = searcher.manifest.k, arrived - len(events)
        self._report({"events": arrived, "k": k, "hit_rate": hit / len(events) if events else None, "new": new})
        share = f"hit rate@{k} {100 * hit / len(events):.2f} %" if events else "nothing to measure"
        left_out = f"; {wrong} left out, with ids of the wrong kind" if wrong else ""
        self._progress.say(
            f"{counted(arrived, 'event')}: {share}, {new} of items that are not in the catalogue{left_out}"
        )

    def _learn(self) -> bool:
        """Learn. Returns False if that fails in a way that more events or time may mend."""
        fresh = self._learner.sessions.fresh
        try:
            name = self._learner.learn(lambda *published: self._save(Pending(*published)))
        except (ExportRefused, PointerMoved, FoldRunning) as error:
            self._progress.say(f"warning: {error}")
            return False
        finally:
            self._waiting = 0
        self._save(None)
        self._report({"version": name, "clicks": fresh})
        return True

    def _save(self, pending: Pending | None) -> None:
        """Save a checkpoint. Then the events up to it need not be kept in the store."""
        sessions = self._learner.sessions.to_json()
        self._checkpoint.save(
            State(FORMAT, str(self._store), self._name, self._place, sessions, self._waiting, pending)
        )
        if isinstance(self._source, StoreEvents) and self._place:
            self._source.forget(self._place)

    def _resume(self, state: State) -> None:
        """Continue with the sessions of a checkpoint. If a version was pending, make it current if that is possible."""
        learner = self._learner
        learner.sessions = Sessions.from_json(learner.sessions.longest, state.sessions)
        if state.pending is None:
            return
        if self._store.current() == state.pending.base:
            with suppress(VersionNotFound, PointerMoved):
                self._store.activate(state.pending.version, expected=state.pending.base)
        if learner.searcher().manifest.metrics.get("round") == state.pending.round:
            learner.sessions.learned(learner.sessions.held_back())
            self._waiting = 0
