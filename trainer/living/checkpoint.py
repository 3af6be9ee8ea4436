"""What a learner remembers between two runs, in one file of JSON: sessions, and how far it has read.

A version is published, then the checkpoint names it as pending, then it becomes current. So a learner that was killed
in between knows whether its sessions were learned.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any, Self

import msgspec
from msgspec import Struct

from index_store.folder.files import sync_folder
from retrieval.events import Id
from retrieval.query import Value
from trainer.errors import ResumeError

FORMAT = 1
FILE = "follow.json"


class Pending(Struct, frozen=True):
    """A version that is published.

    base: the one that was current then. round: its id is in the version's metrics, and in those of its folds.
    """

    version: str
    base: str
    round: str


class State(Struct):
    """sessions: see `Sessions.to_json`. place: in the source, see `Arrived`. waiting: clicks since the last attempt to
    learn; those that a round has kept back do not count.
    """

    format: int
    store: str
    source: str
    place: Any
    sessions: list[tuple[list[Id], int, dict[str, Value]]]
    waiting: int
    pending: Pending | None = None


class Checkpoint:
    """The folder of a learner, for `with`. One process at a time has it."""

    def __init__(self, folder: Path) -> None:
        """Raises ResumeError if the folder cannot be used, or is in use."""
        self._file = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "LOCK").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ResumeError(f"{folder}: another dr-trainer follow uses it") from None
        except OSError as error:
            raise ResumeError(f"{folder}: cannot be used: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def load(self, store: str, source: str) -> State | None:
        """The state that was saved last, None if there is none.

        Raises ResumeError if the file is damaged, or if it is of another store or source.
        """
        try:
            state = msgspec.json.decode(self._file.read_bytes(), type=State)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ResumeError(f"{self._file}: cannot be read ({error}); delete it to start over") from None
        if state.format != FORMAT:
            raise ResumeError(f"{self._file}: format {state.format}, expected {FORMAT}; delete it to start over")
        for name, expected, found in (("--store", store, state.store), ("--events", source, state.source)):
            if expected != found:
                raise ResumeError(f"{self._file}: is of {name} {found}, not {expected}; name another --checkpoint")
        return state

    def save(self, state: State) -> None:
        """Replace what was saved. Raises ResumeError if it cannot be written; then the old file is still there."""
        temporary = self._file.with_suffix(".partial")
        try:
            with temporary.open("wb") as file:
                file.write(msgspec.json.encode(state))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._file)
            sync_folder(self._file.parent)
        except OSError as error:
            raise ResumeError(f"{self._file}: cannot be written: {error.strerror}") from None
