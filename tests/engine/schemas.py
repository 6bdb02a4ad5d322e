"""Three hundred and some JSON schemas, varied systematically, each with bounded values.

Bounds matter: a random model ends a string only by chance, so every string, array and number has
a limit, and recursion has a way out that is taken soon. Free keys come only with `maxProperties`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string", "maxLength": 8}
DIGIT: Schema = {"type": "integer", "minimum": 0, "maximum": 9}
FLAG: Schema = {"type": "boolean"}
SCALARS: dict[str, Schema] = {
    "string": STRING,
    "digit": DIGIT,
    "flag": FLAG,
    "null": {"type": "null"},
    "price": {"type": "number", "minimum": 0, "maximum": 100, "multipleOf": 0.5},
    "color": {"enum": ["red", "green", "blue"]},
    "fixed": {"const": "fixed"},
}
FORMATS = (
    "date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid",
)  # fmt: skip
PATTERNS = (
    "^[a-z]{3}$", "^\\d{1,4}$", "^[A-Z][a-z]{1,6}$", "^(yes|no|maybe)$",
    "^a{0,4}b{2,3}c?$",
    "^\\w{1,8}$", "^[^\"]{1,6}$", "^(\\+\\d{2} )?\\d{3}-\\d{4}$", "^#[0-9a-fA-F]{6}$",
    "^(a|b|c){1,5}$", "^[\\u00e0-\\u00fc]{1,4}$", "^x.{0,3}y$",
    "^\\$\\d{1,3}\\.\\d{2}$",
    "^(?:[a-z]{1,3}/){1,3}$", "^[\\[\\]{}]{2}$", "^\\s{0,2}end$",
    "^(?:[0-9]{4})?$", "^[.]{1,3}$",
)  # fmt: skip
NAMES = (
    "name", "Name", "first name", "größe", "名前", "émoji 😀", "a.b", "a/b", "a~b",
    "$ref", "properties",
    "type", "", "with \"quotes\"", "back\\slash", "tab\there", "<tool_call>", "null", "0", "-",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    0, -1, 17, 2.5, -0.125, True, False, None, "", "text", "größe 名前", "line\nbreak", "quo\"te",
    [], [1, 2, 3], {}, {"a": 1}, {"a": {"b": [True, None, "x"]}}, ["x", {"y": []}],
    1234567890, "\\", "/",
)  # fmt: skip


def whole(**properties: Schema) -> Schema:
    """An object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def corpus() -> list[tuple[str, Schema]]:
    """(name, schema), all different."""
    found = list(_all())
    assert len({name for name, _ in found}) == len(found)
    assert len({json.dumps(schema) for _, schema in found}) == len(found)
    return found


def _all() -> Iterator[tuple[str, Schema]]:
    for group in (
        _scalars, _values, _strings, _numbers, _arrays, _objects, _names, _choices, _references,
        _intersections, _realistic,
    ):  # fmt: skip
        for name, schema in group():
            yield f"{group.__name__[1:]}: {name}", schema


def _scalars() -> Iterator[tuple[str, Schema]]:
    yield from SCALARS.items()
    for name, schema in SCALARS.items():
        yield f"{name} in an object", whole(value=schema)
        yield f"{name} in an array", {"type": "array", "items": schema, "maxItems": 3}
        yield f"{name} or null", {"anyOf": [schema, {"type": ["null"]}]}
        yield f"optional {name}", {**whole(value=schema), "required": []}
    for types in (["boolean", "null"], ["null", "boolean", "string"], ["integer", "string"]):
        yield f"one of {types}", {"type": types, "maxLength": 5, "minimum": 0, "maximum": 99}


def _values() -> Iterator[tuple[str, Schema]]:
    for index, value in enumerate(VALUES):
        yield f"const {index}", {"const": value}
        yield f"const {index} in an object", whole(a=DIGIT, b={"const": value})
        yield f"enum from {index}", {"enum": [value, *VALUES[index + 1 : index + 4], "other"]}
    yield "a large enum", {"enum": [f"value {number}" for number in range(1000)]}
    yield "an enum under a type", {"type": "string", "enum": ["a", 1, None, "b"]}


def _strings() -> Iterator[tuple[str, Schema]]:
    for name in FORMATS:
        yield f"format {name}", {"type": "string", "format": name}
        yield f"format {name} in an object", whole(at=_typed(format=name), note=STRING)
    for pattern in PATTERNS:
        yield f"pattern {pattern}", _typed(pattern=pattern)
        yield f"pattern {pattern} twice", {
            "type": "array", "items": _typed(pattern=pattern), "minItems": 2, "maxItems": 2,
        }  # fmt: skip
    for low, high in ((0, 0), (0, 1), (1, 1), (3, 5), (7, 7), (2, 12)):
        yield f"length {low} to {high}", _typed(minLength=low, maxLength=high)
    yield "pattern and length", _typed(pattern="^[a-z]{1,9}$", minLength=3, maxLength=4)
    yield "pattern and format", _typed(pattern="^2", format="date")
    yield "a pattern without anchors", _typed(pattern="[0-9]", maxLength=6)


def _typed(**keywords: Any) -> Schema:
    return {"type": "string", **keywords}


def _numbers() -> Iterator[tuple[str, Schema]]:
    for low, high in ((0, 0), (0, 7), (-5, 5), (-1000, -900), (17, 4242), (-(10**9), 10**9)):
        yield f"integer {low} to {high}", {"type": "integer", "minimum": low, "maximum": high}
        yield f"between {low} and {high + 2}", {
            "type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high + 2,
        }  # fmt: skip
    for step in (2, 3, 7, 10, 25):
        yield f"multiple of {step}", {
            "type": "integer", "multipleOf": step, "minimum": 0, "maximum": 500,
        }  # fmt: skip
    for least, most in ((0, 1), (-2.5, 2.5), (0.1, 0.9), (99.5, 1000)):
        yield f"number {least} to {most}", {
            "type": "number", "minimum": least, "maximum": most, "multipleOf": 0.25,
        }  # fmt: skip


def _arrays() -> Iterator[tuple[str, Schema]]:
    for low, high in ((0, 0), (0, 2), (1, 1), (2, 4), (5, 5)):
        for name in ("digit", "string", "color"):
            yield f"{low} to {high} of {name}", {
                "type": "array", "items": SCALARS[name], "minItems": low, "maxItems": high,
            }  # fmt: skip
    grid = {"type": "array", "items": DIGIT, "minItems": 2, "maxItems": 2}
    yield "a grid", {"type": "array", "items": grid, "minItems": 2, "maxItems": 3}
    yield (
        "a tuple",
        {"type": "array", "prefixItems": [STRING, DIGIT], "items": False, "minItems": 2},
    )
    yield "a tuple and more", {
        "type": "array", "prefixItems": [FLAG], "items": DIGIT, "minItems": 1, "maxItems": 4,
    }  # fmt: skip
    yield "objects", {"type": "array", "items": whole(a=DIGIT, b=STRING), "maxItems": 3}
    yield "mixed", {"type": "array", "items": {"anyOf": [DIGIT, STRING, FLAG]}, "maxItems": 4}


def _objects() -> Iterator[tuple[str, Schema]]:
    for count in (0, 1, 2, 5, 10):
        properties = {f"p{index}": DIGIT for index in range(count)}
        for required in {0, count // 2, count}:
            yield f"{required} of {count} required", {
                **whole(**properties), "required": list(properties)[:required],
            }  # fmt: skip
    deep: Schema = DIGIT
    for depth in range(1, 13):
        deep = whole(inner=deep)
        if depth in (2, 4, 8, 12):
            yield f"{depth} deep", deep
    for most in (0, 1, 3):
        yield f"a map of up to {most}", {
            "type": "object", "additionalProperties": DIGIT, "maxProperties": most,
        }  # fmt: skip
    yield "keys by pattern", {
        "type": "object", "patternProperties": {"^[a-c]{1,3}$": DIGIT},
        "additionalProperties": False, "maxProperties": 3,
    }  # fmt: skip
    yield "required without properties", {
        "type": "object", "required": ["a"], "additionalProperties": DIGIT, "maxProperties": 1,
    }  # fmt: skip
    yield "as many as are required", {**whole(a=DIGIT, b=FLAG), "minProperties": 2}


def _names() -> Iterator[tuple[str, Schema]]:
    for name in NAMES:
        yield f"property {name!r}", whole(**{name: DIGIT})
    yield "all of them", whole(**dict.fromkeys(NAMES, DIGIT))


def _choices() -> Iterator[tuple[str, Schema]]:
    pairs = [("string", "digit"), ("flag", "null"), ("color", "digit"), ("fixed", "price")]
    for one, other in pairs:
        options = [SCALARS[one], SCALARS[other]]
        yield f"any of {one}, {other}", {"anyOf": options}
        yield f"one of {one}, {other}", {"oneOf": options}
        yield (
            f"any of objects of {one}, {other}",
            {"anyOf": [whole(kind={"const": n}, value=SCALARS[n]) for n in (one, other)]},
        )
        yield (
            f"one of objects of {one}, {other}",
            {"oneOf": [whole(kind={"const": n}, value=SCALARS[n]) for n in (one, other)]},
        )
    yield "nested", {"anyOf": [{"anyOf": [DIGIT, FLAG]}, {"type": "null"}]}
    yield (
        "arrays or objects",
        {"anyOf": [{"type": "array", "items": DIGIT, "maxItems": 2}, whole(a=DIGIT)]},
    )


def _references() -> Iterator[tuple[str, Schema]]:
    for name, schema in SCALARS.items():
        yield f"to {name}", {"$defs": {"it": schema}, **whole(a={"$ref": "#/$defs/it"})}
        yield (
            f"to {name} in definitions",
            {
                "definitions": {"a b/c~d": schema},
                **whole(
                    a={"$ref": "#/definitions/a b~1c~0d"}, b={"$ref": "#/definitions/a%20b~1c~0d"}
                ),
            },
        )
    following = {"anyOf": [{"type": "null"}, {"$ref": "#"}]}
    yield "a list of itself", whole(value=FLAG, next=following)
    yield (
        "a tree",
        {
            "$defs": {
                "node": whole(
                    value=DIGIT,
                    children={"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
                )
            },
            "$ref": "#/$defs/node",
        },
    )
    yield (
        "two that alternate",
        {
            "$defs": {
                "a": whole(b={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/b"}]}),
                "b": whole(a={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}),
            },
            "$ref": "#/$defs/a",
        },
    )
    yield "to a property", {**whole(a=STRING, b={"$ref": "#/properties/a"})}


def _intersections() -> Iterator[tuple[str, Schema]]:
    yield "bounds", {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 8}]}
    yield "patterns", {"allOf": [_typed(pattern="^a"), _typed(pattern="b$"), _typed(maxLength=5)]}
    yield "objects", {"allOf": [whole(a=DIGIT) | {"additionalProperties": True}, {
        "type": "object", "properties": {"b": DIGIT}, "required": ["b"], "maxProperties": 2,
    }]}  # fmt: skip
    yield (
        "a choice and its siblings",
        {
            "type": "object",
            "properties": {"kind": {"enum": ["x", "y"]}, "n": DIGIT},
            "required": ["kind", "n"],
            "additionalProperties": False,
            "anyOf": [
                {"properties": {"kind": {"const": "x"}}},
                {"properties": {"n": {"const": 4}}},
            ],
        },
    )
    yield (
        "a reference and its siblings",
        {
            "$defs": {"n": {"type": "integer", "minimum": 0}},
            **whole(a={"$ref": "#/$defs/n", "maximum": 12}),
        },
    )
    yield (
        "annotations",
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "https://example.invalid/a",
            "title": "T",
            "description": "D",
            "$comment": "C",
            "examples": [{"not": 1}],
            **whole(a={**DIGIT, "default": 3, "deprecated": True, "readOnly": False}),
        },
    )


def _realistic() -> Iterator[tuple[str, Schema]]:
    person = whole(name=STRING, age={"type": "integer", "minimum": 0, "maximum": 130})
    address = whole(street=STRING, zip=_typed(pattern="^[0-9]{5}$"), country={"enum": ["CH", "NO"]})
    yield "a person", person
    yield "a person with an address", whole(person=person, address=address)
    yield "an invoice", whole(
        number=_typed(pattern="^INV-[0-9]{4}$"),
        issued=_typed(format="date"),
        lines={
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": whole(
                text=STRING, quantity={"type": "integer", "minimum": 1, "maximum": 99},
                price={"type": "number", "minimum": 0, "maximum": 1000, "multipleOf": 0.5},
            ),
        },
        paid=FLAG,
    )  # fmt: skip
    yield (
        "a verdict",
        whole(
            label={"enum": ["spam", "ham"]},
            certainty={"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.125},
            reasons={"type": "array", "items": STRING, "maxItems": 2},
        ),
    )
    yield "a log entry", whole(
        at=_typed(format="date-time"), host=_typed(format="ipv4"), id=_typed(format="uuid"),
        level={"enum": ["debug", "info", "error"]}, fields={
            "type": "object", "additionalProperties": STRING, "maxProperties": 2,
        },
    )  # fmt: skip
    yield (
        "a step",
        whole(
            thought=_typed(maxLength=30),
            action={"anyOf": [whole(search=STRING), whole(answer=STRING), {"type": "null"}]},
        ),
    )
    for count in range(3, 13):
        kinds = list(SCALARS.items())
        fields = {f"field_{i}": kinds[(i * count) % len(kinds)][1] for i in range(count)}
        yield f"a form of {count} fields", {
            **whole(**fields), "required": list(fields)[:: 2 if count % 2 else 1],
        }  # fmt: skip
