"""Requests, queries and answers, and the limits of a request.

A `Request` is written in the caller's terms: item ids, feature names, raw values. A `Query` is the same request in the
terms of one version: item indices, codes, standardised numbers. `Searcher.prepare` turns a request into a query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

ItemId = int | str
#: The value of a context feature, of a type that JSON has. None, "" and NaN mean that the user has no value.
Value = str | int | float | bool | None


class Limits:
    """The largest values in one request. The HTTP models, OpenAPI and the trainer's settings use these numbers.

    A version may allow less: its network accepts a beam of at most `max_beam`.
    """

    HISTORY: Final = 1000  # item ids in a history
    EXCLUDE: Final = 10_000  # item ids not to return
    K: Final = 1000  # candidates
    BEAM: Final = 256  # W, paths searched
    PER_PATH: Final = 10_000  # n, items read of a path
    READS: Final = 50_000  # beam times per_path: items read
    TIMEOUT_MS: Final = 60_000  # milliseconds until the answer
    REQUESTS: Final = 64  # of one batch
    ITEM_ID: Final = 256  # characters of an item id that is a string
    FEATURES: Final = 64  # context features
    FEATURE_NAME: Final = 128  # characters of a feature's name
    FEATURE_VALUE: Final = 256  # characters of a feature's value


class BadQuery(ValueError):
    """A request that this version cannot answer. The message is sent to the caller and never contains input."""


@dataclass(frozen=True)
class Request:
    """One request of a caller, with the fields of `POST /v1/retrieve`. For None, the version's default is used."""

    history: Sequence[ItemId] = ()  # oldest first
    context: Mapping[str, Value] = field(default_factory=dict)  # the user's features, by name
    k: int | None = None
    beam: int | None = None
    per_path: int | None = None
    exclude: Sequence[ItemId] = ()
    exclude_history: bool = True
    rerank: bool = True


class Unknown(NamedTuple):
    """The number of history items, and of context features or values, that the version does not know."""

    history: int
    context: int


@dataclass(frozen=True)
class Query:
    """A request in the terms of one version."""

    history: NDArray[np.int64]  # item indices, oldest first; the network reads the last `Manifest.history` of them
    categories: Sequence[int]  # (C,) codes
    numbers: Sequence[float]  # (M,) standardised
    k: int
    beam: int  # W
    per_path: int  # n
    excluded: NDArray[np.int64]  # item indices
    rerank: bool = True  # False: candidates are ordered by path probability
    widen: bool = True  # search more paths if fewer than k items are found

    @property
    def reads(self) -> int:
        """The most items that the query reads in its first search, before a wider search."""
        return self.beam * self.per_path


class Answer(NamedTuple):
    """The candidates for one query, best first.

    items: int64 (<= k,), item indices. scores, path_log_probs: float32 of the same length. Scores order the
    candidates of one answer and cannot be compared between answers.
    short: whether there are fewer than k candidates; use this instead of comparing the length of items with k.
    paths: the number of paths searched. read: the number of items read in all searches for this query; an item counts
    once for each path that it is read from. candidates: the number of different items that the last search scored.
    narrowed: whether the search used a narrower beam than the query's. seq: the last record of the log that it saw.
    """

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    path_log_probs: NDArray[np.float32]
    short: bool
    paths: int
    read: int
    candidates: int
    narrowed: bool = False
    seq: int = 0


def wider_beams(beam: int, widest: int) -> list[int]:
    """The beams of the wider searches that may follow a search of `beam` paths: doubled, up to `widest`."""
    beams = []
    while beam < widest:
        beam = min(2 * beam, widest)
        beams.append(beam)
    return beams
