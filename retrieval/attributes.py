"""Attributes of items: their kinds, how values are checked and encoded, and those of all items of a version.

Each value of an attribute has features, which say where an item without clicks belongs: a category has one, a number or
a time the one of the range that it is in, a title one for each known word. The trainer fits the schema and an item
vector of each feature; the service encodes the items with it that are put.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from index_store.errors import VersionDamaged
from index_store.version import Version, npy
from retrieval.context import as_text, is_absent
from retrieval.query import Limits

Kind = Literal["number", "time", "category", "categories"]
KINDS: tuple[Kind, ...] = ("number", "time", "category", "categories")
TITLE = "title"  # the attribute that is text
MAX_VALUES = 32  # categories of an item, and words of a title, that count
TITLE_LENGTH = 1000  # characters
WORD = re.compile(r"\w\w+")
EXPECTED = {
    "number": "a number",
    "time": "a time in ISO 8601, such as 2026-01-31T12:00:00Z, or in ms since 1970",
    "category": "a text, a number or a truth value",
    "categories": f"a list of at most {MAX_VALUES} texts, numbers or truth values",
}


@dataclass(frozen=True)
class Attribute:
    """An attribute. values: the known categories. edges: between the ranges of a number or a time, ascending."""

    name: str
    kind: Kind
    values: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()

    @property
    def is_number(self) -> bool:
        """Whether a value is one number; that of a time is ms since 1970."""
        return self.kind in ("number", "time")

    @property
    def size(self) -> int:
        """The number of its features."""
        return len(self.edges) + 1 if self.is_number else len(self.values)

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {value: code for code, value in enumerate(self.values)}

    def parse(self, value: Any) -> float | list[str] | None:
        """The number, or the categories; None if the value is of another kind. Blanks and NaN are no categories."""
        if self.kind == "number":
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return float(value) if is_number and abs(value) <= 2**53 and math.isfinite(value) else None
        if self.kind == "time":
            return _milliseconds(value)
        values = value if self.kind == "categories" else [value]
        if not isinstance(values, list) or len(values) > MAX_VALUES:
            return None
        if not all(isinstance(each, str | int | float) for each in values):
            return None
        texts = [as_text(each) for each in values if not is_absent(each) and each not in (math.inf, -math.inf)]
        return texts if all(len(text) <= Limits.FEATURE_VALUE and is_unicode(text) for text in texts) else None

    def features(self, value: float | list[str]) -> list[int]:
        """The features of a parsed value, from 0 on; those of unknown categories are left out."""
        if isinstance(value, list):
            return sorted({code for text in value if (code := self._codes.get(text)) is not None})
        return [int(np.searchsorted(self.edges, value, side="right"))]


@dataclass(frozen=True)
class AttributeSchema:
    """The attributes that items have, and the words that are known in titles."""

    attributes: tuple[Attribute, ...] = ()
    words: tuple[str, ...] = ()

    @cached_property
    def starts(self) -> list[int]:
        """The first feature of each attribute, and that of the words."""
        return [0, *np.cumsum([attribute.size for attribute in self.attributes]).tolist()]

    @property
    def size(self) -> int:
        """The number of all features."""
        return self.starts[-1] + len(self.words)

    @cached_property
    def _words(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.words, self.starts[-1])}

    @cached_property
    def by_name(self) -> dict[str, Attribute]:
        """The attributes by their names."""
        return {attribute.name: attribute for attribute in self.attributes}

    def problem(self, values: Mapping[str, Any]) -> str | None:
        """What is wrong with the attributes of an item that is put, without input that may be secret."""
        for name, value in values.items():
            if name == TITLE and TITLE not in self.by_name:
                if value is not None and not (
                    isinstance(value, str) and len(value) <= TITLE_LENGTH and is_unicode(value)
                ):
                    return f"{TITLE}: expected a text of at most {TITLE_LENGTH} characters"
            elif name not in self.by_name:
                known = ", ".join((*self.by_name, TITLE))
                return f"expected only attributes that the version has: {known}; found another one"
            elif value is not None and self.by_name[name].parse(value) is None:
                return f"{name}: expected {EXPECTED[self.by_name[name].kind]}"
        return None

    def normal(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes in the form in which they are kept: times in ms, categories as texts, None as it is."""
        kept: dict[str, Any] = {}
        for name, value in values.items():
            attribute = self.by_name.get(name)
            parsed = attribute.parse(value) if attribute and value is not None else value or None
            if isinstance(parsed, list) and attribute and attribute.kind == "category":
                parsed = parsed[0] if parsed else None
            kept[name] = int(parsed) if isinstance(parsed, float) and parsed.is_integer() else parsed
        return kept

    def features(self, values: Mapping[str, Any]) -> list[int]:
        """The features of an item's attributes. What does not fit this schema counts for nothing."""
        found: list[int] = []
        for attribute, start in zip(self.attributes, self.starts[:-1], strict=True):
            value = attribute.parse(values.get(attribute.name))
            found += [start + code for code in attribute.features(value)] if value is not None else []
        return found + self.word_features(values.get(TITLE))

    def word_features(self, title: Any) -> list[int]:
        """The features of the known words of a title."""
        return [self._words[word] for word in words_of(title) if word in self._words]

    def to_json(self) -> dict[str, Any]:
        """The content of attributes.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> AttributeSchema:
        """The schema in attributes.json. Raises VersionDamaged."""
        try:
            attributes = tuple(
                Attribute(
                    str(each["name"]),
                    KINDS[KINDS.index(each["kind"])],
                    tuple(map(str, each["values"])),
                    tuple(map(float, each["edges"])),
                )
                for each in document["attributes"]
            )
            return cls(attributes, tuple(map(str, document["words"])))
        except (KeyError, TypeError, ValueError):
            raise VersionDamaged("attributes.json: expected attributes and words") from None


@dataclass(frozen=True)
class Attributes:
    """The attributes of V items.

    codes: int32 (V, S), the features of their categories and ranges, -1 after the last. numbers: float64 (V, M), of the
    attributes that are numbers or times, NaN for none. titles: UTF-8, one after another; offsets: int64 (V + 1,).
    """

    schema: AttributeSchema
    codes: NDArray[np.int32]
    numbers: NDArray[np.float64]
    titles: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @classmethod
    def make(
        cls,
        schema: AttributeSchema,
        codes: NDArray[np.int32],
        numbers: NDArray[np.float64],
        titles: Iterable[str | None],
    ) -> Attributes:
        """From titles as texts."""
        texts = [(title or "").encode() for title in titles]
        offsets = np.cumsum([0, *map(len, texts)])
        return cls(schema, codes, numbers, np.frombuffer(b"".join(texts), np.uint8), offsets)

    @classmethod
    def none(cls, items: int) -> Attributes:
        """Of items that have no attributes."""
        return cls.make(AttributeSchema(), np.empty((items, 0), np.int32), np.empty((items, 0)), [None] * items)

    @classmethod
    def of(cls, version: Version) -> Attributes:
        """Those of a version. Raises VersionDamaged if the parts do not fit each other."""
        schema = AttributeSchema.from_json(version.document("attributes.json"))
        names = "attribute_codes", "attribute_numbers", "title_bytes", "title_offsets"
        codes, numbers, titles, offsets = (version.array(f"{name}.npy") for name in names)
        if numbers.shape[1] != sum(attribute.is_number for attribute in schema.attributes):
            raise VersionDamaged("attributes.json and attribute_numbers.npy differ in the number of attributes")
        if codes.size and (codes.min() < -1 or codes.max() >= schema.starts[-1]):
            raise VersionDamaged("attribute_codes.npy: a code is outside of those in attributes.json")
        return cls(schema, codes, numbers, titles, offsets)

    def folded(
        self,
        schema: AttributeSchema,
        codes: NDArray[np.int32],
        numbers: NDArray[np.float64],
        rows: NDArray[np.int64],
        titles: Mapping[int, str | None],
    ) -> Attributes:
        """Those of U items. rows: (U,), from which row of this table each title is, -1 for none; but for `titles`."""
        texts = {row: (title or "").encode() for row, title in titles.items()}
        taken = rows.copy()
        taken[list(texts)] = -1
        known = np.flatnonzero(taken >= 0)
        lengths = np.zeros(len(rows), np.int64)
        lengths[known] = np.diff(self.offsets)[taken[known]]
        lengths[list(texts)] = list(map(len, texts.values()))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        written = np.empty(offsets[-1], np.uint8)
        written[_spans(offsets[known], lengths[known])] = self.titles[
            _spans(self.offsets[taken[known]], lengths[known])
        ]
        for row, text in texts.items():
            written[offsets[row] : offsets[row + 1]] = np.frombuffer(text, np.uint8)
        return Attributes(schema, codes, numbers, written, offsets)

    def parts(self) -> dict[str, bytes]:
        """The parts of a version."""
        arrays: dict[str, NDArray[Any]] = {
            "attribute_codes": self.codes,
            "attribute_numbers": self.numbers,
            "title_bytes": self.titles,
            "title_offsets": self.offsets,
        }
        document = json.dumps(self.schema.to_json(), allow_nan=False, sort_keys=True).encode()
        return {"attributes.json": document} | {f"{name}.npy": npy(array) for name, array in arrays.items()}

    def values(self, item: int) -> dict[str, Any]:
        """The attributes of an item that it has a value of; a time in ms since 1970."""
        starts = self.schema.starts
        codes = self.codes[item][self.codes[item] >= 0].tolist()
        numbers = iter(self.numbers[item].tolist())
        found: dict[str, Any] = {}
        for attribute, start, end in zip(self.schema.attributes, starts[:-1], starts[1:], strict=True):
            if attribute.is_number:
                number = next(numbers)
                if not math.isnan(number):
                    found[attribute.name] = int(number) if number.is_integer() else number
                continue
            texts = [attribute.values[code - start] for code in codes if start <= code < end]
            if texts:
                found[attribute.name] = texts if attribute.kind == "categories" else texts[0]
        return found

    def title(self, item: int) -> str | None:
        """The title of an item, if it has one."""
        text = self.titles[self.offsets[item] : self.offsets[item + 1]].tobytes()
        return text.decode(errors="replace") or None


def _spans(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The positions starts[0], starts[0] + 1, ... of all spans, one after another."""
    places: NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    return places


def is_unicode(text: str) -> bool:
    """Whether a text can be written in UTF-8; half of a surrogate pair, which JSON may have, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def words_of(title: Any) -> list[str]:
    """The first different words of a title, in small letters."""
    if not isinstance(title, str):
        return []
    return list(dict.fromkeys(WORD.findall(title[:TITLE_LENGTH].casefold())))[:MAX_VALUES]


def _milliseconds(value: Any) -> float | None:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53:
        return float(value)
    if not isinstance(value, str):
        return None
    try:
        time = datetime.datetime.fromisoformat(value)
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).timestamp() * 1000
