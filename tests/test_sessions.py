"""How events become sequences to learn from."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.context import Category, ContextSchema
from retrieval.events import Event
from retrieval.vocabulary import Vocabulary
from trainer.living import sessions as module
from trainer.living.sessions import TAIL, Session, Sessions, as_training_data


def sessions_of(*events: Event, longest: int = 10) -> Sessions:
    """Sessions made of events."""
    made = Sessions(longest)
    for event in events:
        made.add(event)
    return made


def items(sessions: Sessions) -> list[tuple[list[int | str], int]]:
    """The items of each session, and how many are new."""
    return [(listed, fresh) for listed, fresh, _ in sessions.to_json()]


def test_an_event_continues_the_session_that_is_its_history() -> None:
    """Two users are told apart by their histories; an event with another history begins a session."""
    made = sessions_of(Event(3, [1, 2]), Event(8, [7]), Event(4, [1, 2, 3]), Event(9, [7, 8]), Event(5, [2, 3]))
    assert items(made) == [([1, 2, 3, 4], 2), ([7, 8, 9], 2), ([2, 3, 5], 1)]
    assert made.fresh == 5


def test_histories_that_only_end_alike_are_different() -> None:
    """The last eight items find a session; all items that both have decide."""
    tail = list(range(100, 108))
    made = sessions_of(Event(1, [5, *tail]), Event(2, [6, *tail, 1]))
    assert items(made) == [([5, *tail, 1], 1), ([6, *tail, 1, 2], 1)]
    # A client may send less of the history than before.
    assert items(sessions_of(Event(1, [5, *tail]), Event(2, [*tail, 1]))) == [([5, *tail, 1, 2], 2)]


def test_events_without_a_history_are_users_of_their_own() -> None:
    """Two users who begin with the same item, and then click the same item, and then different ones."""
    made = sessions_of(Event(1), Event(1), Event(2, [1]), Event(2, [1]), Event(3, [1, 2]), Event(4, [1, 2]))
    assert items(made) == [([1, 2, 3], 3), ([1, 2, 4], 3)]


def test_what_was_learned_is_old_and_is_cut_off() -> None:
    """New clicks are kept, and `longest` items before them; at least as many as find the session again."""
    clicked = list(range(30))
    made = sessions_of(Event(20, clicked[:20]), longest=9)
    assert items(made) == [(clicked[11:21], 1)]
    made.learned([])
    for item in (21, 22, 23):
        made.add(Event(item, clicked[:item]))
    assert items(made) == [(clicked[12:24], 3)]
    assert sessions_of(longest=1).longest == TAIL


def test_the_sessions_that_did_not_grow_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most SESSIONS are kept."""
    monkeypatch.setattr(module, "SESSIONS", 2)
    made = sessions_of(Event(2, [1]), Event(4, [3]), Event(9, [1, 2]), Event(6, [5]))
    assert items(made) == [([1, 2, 9], 2), ([5, 6], 1)]


def test_a_tenth_is_held_back_and_learned_later() -> None:
    """Their last click is in no training data, and is new at the next step."""
    made = sessions_of(*(Event(1000 + user, [user]) for user in range(20)))
    held = made.held_back()
    assert [session.items for session in held] == [[9, 1009], [19, 1019]]
    drawn = made.drawn(held)
    assert [(session.items, session.fresh) for session in drawn[9:11]] == [([9], 0), ([10, 1010], 1)]
    made.learned(held)
    assert [listed for listed, fresh in items(made) if fresh] == [[9, 1009], [19, 1019]]
    # As many old sessions as new ones, evenly spread.
    assert len(made.drawn([])) == 4


def test_sessions_survive_json() -> None:
    """They continue as if nothing had happened."""
    made = sessions_of(Event("b", ["a"], {"country": "France"}))
    again = Sessions.from_json(10, made.to_json())
    again.add(Event("c", ["a", "b"], {"country": "Spain"}))
    assert again.to_json() == [(["a", "b", "c"], 2, {"country": "Spain"})]


def test_training_data() -> None:
    """Unknown items are left out; what must not be found is not taught."""
    vocabulary = Vocabulary(np.array([10, 20, 30, 40]))
    schema = ContextSchema((Category.fit("country", ["France", "Spain"]),))
    taught = np.array([True, True, True, False])
    made = as_training_data(
        [Session([10, 99, 20, 40, 30], 2, {"country": "Spain"}), Session([99], 1, {}), Session([30], 1, {})],
        vocabulary,
        schema,
        taught,
    )
    data = made.dataset
    assert [data.sequence(user).tolist() for user in (0, 1)] == [[0, 1, 3, 2], [2]]
    assert made.fresh.tolist() == [False, False, True, True, True]
    assert made.taught.tolist() == [True, True, False, True, True]
    assert data.context.categories.tolist() == [[schema.encode({"country": "Spain"})[0][0]], [0]]
    assert made.split.train_length.tolist() == [4, 1]
