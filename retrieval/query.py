"""Requests, queries and answers, and every bound on a request.

A `Request` is in the caller's terms: item ids, feature names, raw values. A `Query` is the same in a version's own
terms: item indices, codes, standardised numbers. `Searcher.prepare` makes a query of a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

ItemId = int | str
#: A context feature's value as JSON has it. None, "" and NaN mean that the user has none.
Value = str | int | float | bool | None


class Limits:
    """The most that one request may ask for. HTTP models, OpenAPI and the trainer's settings read these numbers.

    A version may allow less: its network searches at most the beam that it was exported for.
    """

    HISTORY: Final = 1000  # item ids of a history
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
    """A request that this version cannot answer. The message goes to the caller: it never has input in it."""


@dataclass(frozen=True)
class Request:
    """What a caller asks for, as `POST /v1/retrieve` has it. Where a value is None the version has a default."""

    history: Sequence[ItemId] = ()  # oldest first
    context: Mapping[str, Value] = field(default_factory=dict)  # the user's features, by name
    k: int | None = None
    beam: int | None = None
    per_path: int | None = None
    exclude: Sequence[ItemId] = ()
    exclude_history: bool = True
    rerank: bool = True


class Unknown(NamedTuple):
    """How much of a request the version does not know: history items, and context features or their values."""

    history: int
    context: int


@dataclass(frozen=True)
class Query:
    """A request in a version's own terms."""

    history: NDArray[np.int64]  # item indices, oldest first; the network reads the last of them
    categories: Sequence[int]  # (C,) codes
    numbers: Sequence[float]  # (M,) standardised
    k: int
    beam: int  # W
    per_path: int  # n
    excluded: NDArray[np.int64]  # item indices
    rerank: bool = True  # False: ordered by path probability
    widen: bool = True  # search more paths if fewer than k items come out

    @property
    def reads(self) -> int:
        """The most items that it reads before it is widened."""
        return self.beam * self.per_path


class Answer(NamedTuple):
    """The candidates for one query, best first.

    items: int64 (<= k,), item indices. scores, path_log_probs: float32 of the same length. A score orders the
    candidates of this answer; it cannot be compared with a score in another answer.
    short: whether there are fewer than k; use this instead of comparing the length of items with k.
    paths: the number of paths searched. read: the number of entries read from path lists, in all searches for this
    query. candidates: the number of different items that the last search scored. narrowed: whether the search had a
    narrower beam than was asked for.
    """

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    path_log_probs: NDArray[np.float32]
    short: bool
    paths: int
    read: int
    candidates: int
    narrowed: bool = False
