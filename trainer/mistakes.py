"""Describe a wrong setting in one line: its name, the expected values, and the value found."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

#: Most characters of a wrong value that a message contains.
SHOWN = 80

#: A setting's JSON schema.
Schema = Mapping[str, Any]


def mistake(name: str, value: object, settings: Mapping[str, Schema]) -> str:
    """The message for a setting `name` that does not exist, or whose schema does not allow `value`."""
    if name in settings:
        shown = repr(value)
        shown = shown if len(shown) <= SHOWN else shown[:SHOWN] + "..."
        return f"{name}: expected {expected(settings[name])}, found {shown}"
    likely = difflib.get_close_matches(name.lower(), settings, 1)
    hint = f"did you mean {likely[0]}?" if likely else f"there are {', '.join(settings)}"
    return f"{name}: no such setting; {hint}"


def expected(schema: Schema) -> str:
    """The values that a schema allows, in words: "a whole number of at least 1 or 'auto'"."""
    *others, last = _alternatives(schema)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(schema: Schema) -> Iterator[str]:
    kind = schema.get("type")
    if "anyOf" in schema:
        for option in schema["anyOf"]:
            yield from _alternatives(option)
    elif "enum" in schema or "const" in schema:
        yield from map(repr, schema.get("enum", [schema.get("const")]))
    elif kind == "array":
        yield "a list of column names"
    elif kind in {"integer", "number"}:
        yield " ".join(filter(None, ["a whole number" if kind == "integer" else "a number", _bounds(schema)]))
    elif kind != "null":  # null is not shown: TOML has no null, and a setting without a value is left out
        yield "text"


def _bounds(schema: Schema) -> str:
    if {"minimum", "maximum"} <= schema.keys():
        return f"from {schema['minimum']} to {schema['maximum']}"
    signs = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "up to", "exclusiveMaximum": "below"}
    return " and ".join(f"{words} {schema[sign]}" for sign, words in signs.items() if sign in schema)
