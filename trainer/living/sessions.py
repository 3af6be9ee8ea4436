"""The sequences that events make up: a session is what one user clicked, and grows with each event that continues it.

An event has no user, but the user's history. If the history is a session that is known, the event continues it, else it
begins a new one. Of several sessions with the same items, the newest is continued.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.context import ContextSchema
from retrieval.events import Event
from retrieval.query import ItemId, Limits, Value
from retrieval.vocabulary import Vocabulary
from trainer.data.context import UserContext
from trainer.data.dataset import Dataset
from trainer.data.split import Split

SESSIONS = 50_000  # most sessions in memory; those that did not grow for longest are forgotten
TAIL = 8  # last items of a history by which its session is found
ALIKE = 100  # sessions with the same last items that are compared with a history
#: One in so many sessions with new clicks is held back, and at most so many of them.
HELD_BACK, MOST_HELD_BACK = 10, 1000


@dataclass
class Session:
    """items: oldest first, the last `fresh` of them not learned yet. context: that of the last event."""

    items: list[ItemId]
    fresh: int
    context: Mapping[str, Value]


class Clicks(NamedTuple):
    """Sessions as training data. fresh: bool (N,), which of `dataset.items` were not learned yet. taught: bool (N,),
    which of them may be predicted.
    """

    dataset: Dataset
    split: Split
    fresh: NDArray[np.bool_]
    taught: NDArray[np.bool_]


class Sessions:
    """The newest sessions."""

    def __init__(self, longest: int) -> None:
        """longest: items of a session that are kept beside those that were not learned yet; older ones are cut off."""
        self.longest = max(longest, TAIL)
        self._sessions: dict[int, Session] = {}  # by number; the one that grew last is last
        self._by_tail: dict[tuple[ItemId, ...], list[int]] = {}  # the numbers of the sessions that end so
        self._next = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def fresh(self) -> int:
        """The number of clicks that were not learned yet."""
        return sum(session.fresh for session in self._sessions.values())

    def add(self, event: Event) -> None:
        """Add a click. Ids must be canonical, so that the same item always has the same id."""
        history = list(event.history or ())
        session = self._taken(history) or Session(history, 0, {})
        session.fresh = min(session.fresh + 1, Limits.HISTORY)
        session.items = [*session.items, event.item_id][-min(self.longest + session.fresh, Limits.HISTORY) :]
        session.context = event.context or {}
        self._put(session)
        if len(self._sessions) > SESSIONS:
            self._remove(next(iter(self._sessions)))

    def _taken(self, history: list[ItemId]) -> Session | None:
        """The newest session that has this history, which is removed; None if there is none."""
        alike = self._by_tail.get(_tail(history), []) if history else []
        for number in alike[: -ALIKE - 1 : -1]:
            items = self._sessions[number].items
            if items[-len(history) :] == history[-len(items) :]:
                return self._remove(number)
        return None

    def _put(self, session: Session) -> None:
        self._sessions[self._next] = session
        self._by_tail.setdefault(_tail(session.items), []).append(self._next)
        self._next += 1

    def _remove(self, number: int) -> Session:
        session = self._sessions.pop(number)
        alike = self._by_tail[_tail(session.items)]
        alike.remove(number)
        if not alike:
            del self._by_tail[_tail(session.items)]
        return session

    def held_back(self) -> list[Session]:
        """Some of the sessions with new clicks. Their last click is not learned yet, to measure with it."""
        new = [session for session in self._sessions.values() if session.fresh and len(session.items) > 1]
        return new[HELD_BACK - 1 :: HELD_BACK][-MOST_HELD_BACK:]

    def learned(self, held: Sequence[Session]) -> None:
        """No click is new any more, but for the last clicks of `held`."""
        for session in self._sessions.values():
            session.fresh = 0
        for session in held:
            session.fresh = 1

    def drawn(self, held: Sequence[Session]) -> list[Session]:
        """All sessions with new clicks, without the last click of `held`, and as many others, evenly spread."""
        new = [session for session in self._sessions.values() if session.fresh]
        others = [session for session in self._sessions.values() if not session.fresh]
        left_out = set(map(id, held))
        cut = [
            Session(session.items[:-1], session.fresh - 1, session.context) if id(session) in left_out else session
            for session in new
        ]
        return cut + others[:: self._stride(len(new), len(others))]

    def left_out(self) -> list[Session]:
        """Old sessions that `drawn` leaves out, evenly spread, at most MOST_HELD_BACK; to measure their last clicks."""
        new = sum(session.fresh > 0 for session in self._sessions.values())
        others = [session for session in self._sessions.values() if not session.fresh]
        stride = self._stride(new, len(others))
        left = [session for place, session in enumerate(others) if place % stride and len(session.items) > 1]
        return left[:: max(1, -(-len(left) // MOST_HELD_BACK))]

    @staticmethod
    def _stride(new: int, others: int) -> int:
        """One in so many of the other sessions is learned again, so that they are about as many as the new ones."""
        return max(1, -(-others // max(1, new)))

    def to_json(self) -> list[tuple[list[ItemId], int, dict[str, Value]]]:
        """The sessions, as `from_json` reads them."""
        return [(session.items, session.fresh, dict(session.context)) for session in self._sessions.values()]

    @classmethod
    def from_json(cls, longest: int, sessions: Iterable[tuple[Sequence[ItemId], int, Mapping[str, Value]]]) -> Sessions:
        """The sessions in a result of `to_json`."""
        made = cls(longest)
        for items, fresh, context in sessions:
            made._put(Session(list(items), fresh, context))
        return made


def _tail(items: Sequence[ItemId]) -> tuple[ItemId, ...]:
    return tuple(items[-TAIL:])


def as_training_data(
    sessions: Sequence[Session], vocabulary: Vocabulary, schema: ContextSchema, taught: NDArray[np.bool_]
) -> Clicks:
    """Sessions as training data for a version: each is a user, of whom training sees everything.

    vocabulary: of the version; items that it does not know are left out. taught: (V,), the items that may be predicted.
    """
    lengths = np.array([len(session.items) for session in sessions])
    flat = vocabulary.lookup([item for session in sessions for item in session.items])
    position = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    fresh = position >= np.repeat(lengths - [session.fresh for session in sessions], lengths)
    known = flat >= 0
    owner = np.repeat(np.arange(len(sessions)), lengths)[known]
    flat, fresh = flat[known], fresh[known]
    kept, owner = np.unique(owner, return_inverse=True)
    offsets = np.searchsorted(owner, np.arange(len(kept) + 1)).astype(np.int64)
    encoded = [schema.encode(dict(sessions[i].context)) for i in kept.tolist()]
    context = UserContext(
        schema,
        np.array([categories for categories, _, _ in encoded], np.int64).reshape(len(kept), len(schema.categories)),
        np.array([numbers for _, numbers, _ in encoded], np.float32).reshape(len(kept), len(schema.numbers)),
    )
    ids = np.asarray(vocabulary.all_ids(), object if vocabulary.kind == "string" else np.int64)
    users = np.arange(len(kept))
    dataset = Dataset(ids, users, flat.astype(np.int32), offsets, context)
    whole = np.diff(offsets)
    return Clicks(dataset, Split(users, users[:0], whole, whole, users[:0], whole), fresh, taught[flat])
