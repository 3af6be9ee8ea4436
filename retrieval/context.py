"""The user's context features: how trainer and service turn a value into a number for the network.

A feature is a category or a number. The trainer fits a `ContextSchema` on the values of its users, encodes these values
with the schema, and stores the schema in the version as context.json: a list, in the order of the network's inputs. The
service reads the schema back and encodes requests with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.query import Limits, Value

MAX_CATEGORIES = 100_000  # the most different values that a category may have
LIMIT = 1e6  # standardised numbers are clipped to -LIMIT..LIMIT, so that they fit in float32

#: The text form of a number. 007 does not match: leading zeros mark a text, such as a post code.
NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"
_NUMBER = re.compile(NUMBER)


def is_absent(value: Value) -> bool:
    """Whether the user has no value: None, blank text or NaN."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value  # noqa: PLR0124 -- NaN


def as_number(value: Value) -> float | None:
    """`value`, or the number in its text ("3.5"), as a finite float. None for other values, and for True and False."""
    if isinstance(value, str):
        value = float(value) if _NUMBER.fullmatch(value := value.strip()) else None
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # an int too large for a float
        return None
    return number if math.isfinite(number) else None


def as_text(value: str | float | bool) -> str:
    """The value of a category as text: a text without blanks around it, "true" for True, "2" for 2 and 2.0."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else str(value)


def _by_value(text: str) -> str | float | None:
    """The value of a text that is a number or a truth value: 2 for "2.0", "true" for "True". None for other texts."""
    if text.lower() in {"true", "false"}:
        return text.lower()
    if not _NUMBER.fullmatch(text):
        return None
    # Integers are kept exact, because neighbouring integers beyond 2^53 are equal as floats.
    return int(text) if text.lstrip("-").isdecimal() else float(text)


@dataclass(frozen=True)
class Category:
    """A feature with one of `values`. A value's code is its index in `values` plus 1, or 0 if unknown or absent."""

    name: str
    values: tuple[str, ...]

    @classmethod
    def fit(cls, name: str, values: Iterable[Value]) -> Category:
        """A category with all of `values`. Raises ValueError for no values, too many, or a value that is too long."""
        texts = sorted({as_text(value) for value in values if value is not None and not is_absent(value)})
        if not texts:
            raise ValueError("no user has a value for this feature")
        if len(texts) > MAX_CATEGORIES:
            raise ValueError(f"{len(texts)} different values; at most {MAX_CATEGORIES} are learned")
        longest = max(map(len, texts))
        if longest > Limits.FEATURE_VALUE:
            raise ValueError(f"a value of {longest} characters; expected at most {Limits.FEATURE_VALUE}")
        return cls(name, tuple(texts))

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {text: code for code, text in enumerate(self.values, 1)}

    @cached_property
    def _codes_by_value(self) -> dict[str | float, int]:
        known = ((_by_value(text), code) for text, code in reversed(self._codes.items()))
        return {value: code for value, code in known if value is not None}

    def encode(self, value: Value) -> int:
        """The code of the known value with the same text, else of one with the same meaning (2 matches "2.0")."""
        if value is None or is_absent(value):
            return 0
        text = as_text(value)
        code = self._codes.get(text)
        if code is None and (by_value := _by_value(text)) is not None:
            code = self._codes_by_value.get(by_value)
        return code or 0


@dataclass(frozen=True)
class Number:
    """A feature that is a number. The network reads (number - `mean`) / `std`; an absent number counts as the mean."""

    name: str
    mean: float
    std: float

    @classmethod
    def fit(cls, name: str, values: NDArray[np.float64]) -> Number:
        """Mean and standard deviation of the finite numbers in `values` (U,). Raises ValueError if there are none."""
        known = values[np.isfinite(values)]
        if not len(known):
            raise ValueError("no user has a finite number")
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = float(known.mean()), float(known.std()) or 1.0
        if not (math.isfinite(mean) and math.isfinite(std)):
            raise ValueError("the values are too large to standardise")
        return cls(name, mean, std)

    def encode(self, value: Value) -> float:
        """The number that the network reads for `value`: standardised and clipped; 0 (the mean) for no number."""
        number = as_number(value)
        return 0.0 if number is None else max(-LIMIT, min(LIMIT, (number - self.mean) / self.std))

    def encode_all(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """`encode` for the values of U users, (U,), NaN for a user without a value."""
        with np.errstate(invalid="ignore"):
            encoded = np.clip((values - self.mean) / self.std, -LIMIT, LIMIT)
        return np.where(np.isfinite(values), encoded, 0.0).astype(np.float32)


class Encoded(NamedTuple):
    """One user's context as the network reads it: codes (C,) and numbers (M,), in the schema's order.

    unknown: the number of given features that the version does not have, or has never seen with the given value.
    """

    categories: list[int]
    numbers: list[float]
    unknown: int


@dataclass(frozen=True)
class ContextSchema:
    """The context features of a version, in the order in which they were trained."""

    features: tuple[Category | Number, ...] = ()

    @cached_property
    def categories(self) -> tuple[Category, ...]:
        """The categories, in the order of the network's `categories` input."""
        return tuple(feature for feature in self.features if isinstance(feature, Category))

    @cached_property
    def numbers(self) -> tuple[Number, ...]:
        """The numbers, in the order of the network's `numbers` input."""
        return tuple(feature for feature in self.features if isinstance(feature, Number))

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(feature.name for feature in self.features)

    def encode(self, context: Mapping[str, Any]) -> Encoded:
        """Encode a user's features, given by name. Unknown features and values are counted, not refused."""
        unknown = sum(name not in self._names and not is_absent(value) for name, value in context.items())
        codes, numbers = [], []
        for category in self.categories:
            value = context.get(category.name)
            code = category.encode(value)
            unknown += not code and not is_absent(value)
            codes.append(code)
        for number in self.numbers:
            value = context.get(number.name)
            unknown += as_number(value) is None and not is_absent(value)
            numbers.append(number.encode(value))
        return Encoded(codes, numbers, unknown)

    def to_json(self) -> dict[str, Any]:
        """The content of context.json."""
        return {
            "features": [
                {"name": feature.name, "kind": "category", "values": list(feature.values)}
                if isinstance(feature, Category)
                else {"name": feature.name, "kind": "number", "mean": feature.mean, "std": feature.std}
                for feature in self.features
            ]
        }

    @classmethod
    def from_json(cls, document: Any) -> ContextSchema:
        """The schema that `to_json` wrote. Raises ValueError for anything else."""
        try:
            schema = cls(tuple(map(_feature, document["features"])))
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"not a context schema ({type(error).__name__})") from None
        if len(schema._names) != len(schema.features):
            raise ValueError("two context features have the same name")
        return schema


def _feature(entry: Any) -> Category | Number:
    name = entry["name"]
    if not isinstance(name, str):
        raise TypeError
    if entry["kind"] == "category":
        values = entry["values"]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise TypeError
        if any(len(value) > Limits.FEATURE_VALUE for value in values):
            raise ValueError(
                f"a context value of more than {Limits.FEATURE_VALUE} characters, which no request can send"
            )
        return Category(name, tuple(values))
    if entry["kind"] != "number":
        raise ValueError("a context feature that is neither a category nor a number")
    mean, std = float(entry["mean"]), float(entry["std"])
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError("a context feature whose mean or standard deviation is not a number")
    return Number(name, mean, std)
