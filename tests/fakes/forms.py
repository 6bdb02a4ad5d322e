"""JSON schemas as the fake engine understands them: is a text such a value, and what is the least.

Owns a subset of JSON Schema, listed in KNOWN; a keyword that is not in it, or a pattern that looks
around itself, is named and refused. The least text for a pattern is beyond it.
"""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema

from appliance.pb import engine_v1_pb2 as pb

KNOWN = frozenset(
    {
        "$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default",
        "description", "enum", "items", "minItems", "minimum", "pattern", "properties",
        "required",
        "title", "type",
    }
)  # fmt: skip
_LOOKS_AROUND = re.compile(r"\(\?[^:]")
_LEAST: dict[str, Any] = {
    "null": None,
    "boolean": False,
    "integer": 0,
    "number": 0,
    "string": "",
    "array": [],
    "object": {},
}


def formed(wanted: pb.StructuredOutput, text: str) -> str:
    """`text` if it has the form, else the least value that has."""
    schema = {"type": "object"} if wanted.json_object else json.loads(wanted.json_schema)
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return json.dumps(least(schema))
    return text


def least(schema: Any, root: Any = None) -> Any:
    """A value with nothing in it that `schema` does not require."""
    root = schema if root is None else root
    if not isinstance(schema, dict):
        return None
    if "$ref" in schema:
        target = root
        for step in schema["$ref"].split("/")[1:]:
            target = target[step]
        return least(target, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        options = schema["anyOf"]
        return None if {"type": "null"} in options else least(options[0], root)
    kind = schema.get("type", "object" if "properties" in schema else "null")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties", {})
        return {n: least(properties.get(n, {}), root) for n in schema.get("required", ())}
    if kind == "array":
        return [least(schema.get("items", {}), root)] * schema.get("minItems", 0)
    if kind in ("integer", "number"):
        return max(0, schema.get("minimum", 0))
    return _LEAST[kind]


def unknown_keyword(schema: Any, place: str) -> str | None:
    """Where the first keyword stands that is not in KNOWN."""
    if not isinstance(schema, dict):
        return None
    inner: list[tuple[Any, str]] = []
    for keyword, value in schema.items():
        at = f"{place}.{keyword}"
        if keyword not in KNOWN or (keyword == "pattern" and _LOOKS_AROUND.search(value)):
            return at
        if keyword in ("properties", "$defs"):
            inner += [(item, f"{at}.{name}") for name, item in value.items()]
        elif keyword == "anyOf":
            inner += [(item, f"{at}[{index}]") for index, item in enumerate(value)]
        elif keyword in ("items", "additionalProperties"):
            inner.append((value, at))
    return next((f for item, at in inner if (f := unknown_keyword(item, at)) is not None), None)
