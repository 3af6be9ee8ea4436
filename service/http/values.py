"""The values that a request's body may have, and one message in plain words for each wrong value.

Numbers count by value, as in JSON Schema: 3.0 is the integer 3, because pandas, Lua and PHP write integers in this way.
3.5 is not an integer, and true is not 1. A float beyond 2^53 - 1 is not accepted as an integer, because it may stand
for several integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from retrieval.query import Limits

EXACT = 2**53 - 1  # the largest integer n that a float can distinguish from n + 1
LEAST, MOST = -(2**63), 2**63 - 1


@dataclass(frozen=True, eq=False)
class OneOf:
    """Validates with the first of `choices` that accepts the value. described: the JSON Schema of the choices."""

    expected: str
    choices: tuple[CoreSchema, ...]
    described: JsonSchemaValue

    def __get_pydantic_core_schema__(self, *_: object) -> CoreSchema:
        """Runs in pydantic's core, without a Python call for each value, because a history has up to 1,000 values."""
        union = core_schema.union_schema(list(self.choices), mode="left_to_right")
        return core_schema.custom_error_schema(union, "expected", custom_error_message=f"expected {self.expected}")

    def __get_pydantic_json_schema__(self, *_: object) -> JsonSchemaValue:
        """The schema for the OpenAPI document."""
        return dict(self.described)


def _integer(least: int, most: int) -> tuple[CoreSchema, CoreSchema]:
    whole_float = core_schema.float_schema(ge=max(least, -EXACT), le=min(most, EXACT), allow_inf_nan=False, strict=True)
    return (
        core_schema.int_schema(ge=least, le=most, strict=True),
        core_schema.chain_schema([whole_float, core_schema.int_schema(strict=False)]),
    )


def integer(least: int, most: int) -> OneOf:
    """An integer from `least` to `most`, both included."""
    described = {"type": "integer", "minimum": least, "maximum": most}
    return OneOf(f"an integer from {least} to {most}", _integer(least, most), described)


_INTEGER, _WHOLE_FLOAT = _integer(LEAST, MOST)
_INTEGER_SCHEMA = {"type": "integer", "minimum": LEAST, "maximum": MOST}

ItemId = Annotated[
    int | str,
    OneOf(
        f"an item id: an integer or a string of 1 to {Limits.ITEM_ID} characters (integers: 64 bits, as a float 53)",
        # Tried in this order, so the rarest form is last.
        (_INTEGER, core_schema.str_schema(min_length=1, max_length=Limits.ITEM_ID, strict=True), _WHOLE_FLOAT),
        {"anyOf": [_INTEGER_SCHEMA, {"type": "string", "minLength": 1, "maxLength": Limits.ITEM_ID}]},
    ),
]
FeatureName = Annotated[
    str,
    OneOf(
        f"names of features of at most {Limits.FEATURE_NAME} characters",
        (core_schema.str_schema(max_length=Limits.FEATURE_NAME, strict=True),),
        {"type": "string", "maxLength": Limits.FEATURE_NAME},
    ),
]
FeatureValue = Annotated[
    int | float | bool | str | None,
    OneOf(
        f"a finite number, a string of at most {Limits.FEATURE_VALUE} characters, true, false or null",
        (
            core_schema.str_schema(max_length=Limits.FEATURE_VALUE, strict=True),
            _INTEGER,
            core_schema.float_schema(allow_inf_nan=False, strict=True),
            core_schema.bool_schema(strict=True),
            core_schema.none_schema(),
        ),
        {
            "anyOf": [
                *({"type": kind} for kind in ("number", "boolean", "null")),
                {"type": "string", "maxLength": Limits.FEATURE_VALUE},
            ]
        },
    ),
]


def _limited(context: Any) -> Any:
    """Refuse too many features before any is validated: a million wrong features would make a million errors."""
    if isinstance(context, dict) and len(context) > Limits.FEATURES:
        raise PydanticCustomError("too_many", "expected at most {most} features", {"most": Limits.FEATURES})
    return context


Context = Annotated[dict[FeatureName, FeatureValue], Field(max_length=Limits.FEATURES), BeforeValidator(_limited)]


def _is_left_out(value: Any, default: Any) -> bool:
    """Whether the value is null, or is [] or {} while the default is [] or {}: PHP and Lua write [] for {}, and {} for
    [].
    """
    return value is None or (value in ([], {}) and default in ([], {}))


class Body(BaseModel):
    """Base of all bodies. Unknown fields are refused; null means that a field is left out."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _own_fields(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        fields = cls.model_fields
        if not body.keys() <= fields.keys():  # unknown names are input, so the message does not repeat them
            message = "unknown field; expected only {fields}"
            raise PydanticCustomError("unknown_field", message, {"fields": ", ".join(fields)})
        return {name: value for name, value in body.items() if not _is_left_out(value, fields[name].default)}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Document that every optional field may be null."""
        described = handler(schema)
        properties = handler.resolve_ref_schema(described)["properties"]
        for name, field in cls.model_fields.items():
            schema_of = properties[name]
            if not field.is_required() and {"type": "null"} not in schema_of.get("anyOf", ()):
                about = {key: schema_of.pop(key) for key in ("title", "description", "default") if key in schema_of}
                properties[name] = {"anyOf": [schema_of, {"type": "null"}], **about}
        return described
