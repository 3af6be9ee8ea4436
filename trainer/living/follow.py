"""`dr-trainer follow`: measure events as they come, then learn from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from index_store.errors import PointerMoved
from index_store.store import IndexStore
from retrieval.events import Event
from retrieval.query import Request
from trainer.data.events import EventSource, StoreEvents
from trainer.errors import ExportRefused
from trainer.living.checkpoint import FORMAT, Checkpoint, Pending, State
from trainer.living.learner import Learner, answers, canonical
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
        self._learner = Learner(store, progress)
        if state:
            self._resume(state)

    def run(self) -> None:
        """Follow the events. Raises the errors of the store, DataError if the source cannot be read."""
        learned = saved = time.monotonic()
        while True:
            arrived = self._source.read(TOGETHER)
            for line in arrived.lines[:SHOWN]:
                self._progress.say(f"warning: {line}")
            if len(arrived.lines) > SHOWN:
                self._progress.say(f"warning: {len(arrived.lines) - SHOWN} more lines are no events")
            if arrived.events:
                self._measure(arrived.events)
                self._learner.take(arrived.events)
            self._place = arrived.place
            fresh, now = self._learner.sessions.fresh, time.monotonic()
            due = fresh >= self._enough or now - learned >= self._every or self._source.ended
            if fresh and due:
                self._learn()
                learned = saved = time.monotonic()
            elif arrived.events and now - saved >= SAVE_SECONDS:
                self._save(None)
                saved = now
            if self._source.ended:
                self._save(None)
                return
            if not arrived.events:
                time.sleep(LOOK_SECONDS)

    @property
    def _enough(self) -> int:
        clicks = int(self._learner.searcher().manifest.metrics["clicks"])
        return max(ENOUGH, int(SHARE * clicks))

    def _measure(self, events: Sequence[Event]) -> None:
        """Report how many of the clicks are found, before anything is learned from them."""
        searcher = self._learner.searcher()
        known = [named for event in events if (named := canonical(event, searcher))]
        found = answers(searcher, [Request(event.history, event.context) for event in known])
        hit = sum(event.item_id in items for event, items in zip(known, found, strict=True))
        new = sum(not len(searcher.vocabulary.indices([event.item_id])) for event in known)
        k = searcher.manifest.k
        self._report({"events": len(events), "k": k, "hit_rate": hit / len(known) if known else None, "new": new})
        share = f"hit rate@{k} {100 * hit / len(known):.2f} %" if known else "nothing to measure"
        wrong = len(events) - len(known)
        left_out = f"; {wrong} left out, with ids of the wrong kind" if wrong else ""
        self._progress.say(
            f"{counted(len(events), 'event')}: {share}, {new} of items that are not in the catalogue{left_out}"
        )

    def _learn(self) -> None:
        """Learn; if that fails in a way that more events may mend, go on."""
        fresh = self._learner.sessions.fresh
        try:
            name = self._learner.learn(lambda version, base: self._save(Pending(version, base)))
        except (ExportRefused, PointerMoved) as error:
            self._progress.say(f"warning: {error}")
            return
        self._save(None)
        self._report({"version": name, "clicks": fresh})

    def _save(self, pending: Pending | None) -> None:
        """Save a checkpoint. Then the events up to it need not be kept in the store."""
        sessions = self._learner.sessions.to_json()
        self._checkpoint.save(State(FORMAT, str(self._store), self._name, self._place, sessions, pending))
        if isinstance(self._source, StoreEvents) and self._place:
            self._source.forget(self._place)

    def _resume(self, state: State) -> None:
        learner = self._learner
        learner.sessions = Sessions.from_json(learner.sessions.longest, state.sessions)
        if state.pending is None:
            return
        current = self._store.current()
        if current == state.pending.base:
            self._store.activate(state.pending.version, expected=current)
            current = state.pending.version
        if current == state.pending.version:
            learner.sessions.learned(learner.sessions.held_back())
