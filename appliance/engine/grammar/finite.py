"""Finds schemas that nothing finite satisfies, because they require themselves.

A grammar for one would compile, and its output never end. The least fixpoint over the parts: a
part is founded if some finite value satisfies it, as far as recursion can tell. It errs on the
side of founded; what is unsatisfiable for another reason is the compiler's to find.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

_CONTAINERS = frozenset({"array", "object"})
_MAX_PASSES: Final = 20
"""A pass in this order settles all but loops within loops; so deep a nest is let through."""


def is_endless(root: object) -> bool:
    """Whether no finite value satisfies the schema `root`, whose references all lead somewhere."""
    parts = dict(_parts(root, ""))
    order = _references_first(parts)
    founded: set[str] = set()
    for _ in range(_MAX_PASSES):
        news = [p for p in order if p not in founded and _note(parts[p], p, founded)]
        if "" in founded:
            return False
        if not news:
            return True
    return False


def _note(schema: object, pointer: str, founded: set[str]) -> bool:
    """Add `pointer` to `founded` if it is; at once, so that the rest of the pass profits."""
    if not _founded(schema, pointer, founded):
        return False
    founded.add(pointer)
    return True


def _parts(schema: object, pointer: str) -> Iterator[tuple[str, object]]:
    if isinstance(schema, dict):
        for name, value in schema.items():
            yield from _parts(value, f"{pointer}/{_escaped(name)}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from _parts(value, f"{pointer}/{index}")
    yield pointer, schema


def _references_first(parts: dict[str, object]) -> list[str]:
    """All places; what a place contains or refers to before it, but where that is a loop."""
    order: list[str] = []
    seen: set[str] = set()
    stack = [("", False)]
    while stack:
        pointer, left = stack.pop()
        if left:
            order.append(pointer)
        elif pointer not in seen and pointer in parts:
            seen.add(pointer)
            stack.append((pointer, True))
            stack += [(place, False) for place in _leads_to(parts[pointer], pointer)]
    return order


def _leads_to(schema: object, pointer: str) -> list[str]:
    if isinstance(schema, list):
        return [f"{pointer}/{index}" for index in range(len(schema))]
    if not isinstance(schema, dict):
        return []
    places = [f"{pointer}/{_escaped(name)}" for name in schema]
    reference = schema.get("$ref")
    return [*places, unquote(reference[1:])] if isinstance(reference, str) else places


def _founded(schema: object, pointer: str, founded: set[str]) -> bool:
    if not isinstance(schema, dict):
        return True
    reference = schema.get("$ref")
    if isinstance(reference, str) and unquote(reference[1:]) not in founded:
        return False
    for keyword, enough in (("anyOf", any), ("oneOf", any), ("allOf", all)):
        options = schema.get(keyword)
        if isinstance(options, list) and not enough(
            f"{pointer}/{keyword}/{index}" in founded for index in range(len(options))
        ):
            return False
    if "enum" in schema or "const" in schema:
        return True
    types = schema.get("type")
    names = {types} if isinstance(types, str) else set(types) if isinstance(types, list) else None
    if names is None or names - _CONTAINERS:
        return True
    return ("object" in names and _object(schema, pointer, founded)) or (
        "array" in names and _array(schema, pointer, founded)
    )


def _object(schema: dict[str, object], pointer: str, founded: set[str]) -> bool:
    required, properties = schema.get("required"), schema.get("properties")
    for name in required if isinstance(required, list) else ():
        if isinstance(properties, dict) and name in properties:
            place = f"{pointer}/properties/{_escaped(name)}"
        elif "additionalProperties" in schema and "patternProperties" not in schema:
            place = f"{pointer}/additionalProperties"
        else:
            continue
        if place not in founded:
            return False
    return True


def _array(schema: dict[str, object], pointer: str, founded: set[str]) -> bool:
    least, prefix = schema.get("minItems", 0), schema.get("prefixItems")
    assert isinstance(least, int)
    ahead = len(prefix) if isinstance(prefix, list) else 0
    if any(f"{pointer}/prefixItems/{i}" not in founded for i in range(min(least, ahead))):
        return False
    return least <= ahead or "items" not in schema or f"{pointer}/items" in founded


def _escaped(name: str) -> str:
    """RFC 6901, section 3."""
    return name.replace("~", "~0").replace("/", "~1")
