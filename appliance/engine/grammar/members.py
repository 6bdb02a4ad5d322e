"""What stands in an object and in a list, as a grammar, where arguments are no JSON.

A format says how a key and a value are written (bare.py, pythonic.py). What of a schema cannot be
written so is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from appliance.engine.grammar.schema import ANNOTATIONS
from appliance.engine.grammar.tagged import DEFINITIONS, Rules, parts_of_object, refused

_OF_LISTS = ANNOTATIONS | {"type", "items", "minItems", "maxItems"}


class Members:
    """The rules of one call's arguments. `root`: what its schemas refer into.

    comma: what stands between two members.
    """

    comma = ","

    def __init__(self, rules: Rules, name: str, root: Mapping[str, Any]) -> None:
        self._rules = rules
        self._name = name
        self._count = 0
        self.root = root

    def value(self, schema: object, place: str) -> str:
        """A value of `schema`. Raises RequestError."""
        raise NotImplementedError

    def pair(self, name: str, schema: object, place: str) -> str:
        """A member with its key. Raises RequestError."""
        raise NotImplementedError

    def any_members(self) -> str:
        """Any, or none."""
        raise NotImplementedError

    def sorted(self, names: Iterable[str]) -> list[str]:
        """Keys in the order in which they are written."""
        return list(names)

    def members(self, schema: Mapping[str, Any], place: str) -> str:
        """What stands in an object of `schema`, whose keys are known."""
        properties, required = parts_of_object(schema, place)
        if not properties and schema.get("additionalProperties", True) is not False:
            return self.any_members()
        comma, first, rest = json.dumps(self.comma), "", ""
        # From the last on: what may follow a key, and what an object may begin with.
        for name in reversed(self.sorted(properties)):
            inner, at = properties[name], f"{place}.properties.{name}"
            if inner is False and name not in required:
                continue
            pair = self.pair(name, inner, at)
            begun = f"{pair} {rest}"
            if name in required:
                first, rest = self.rule(begun), self.rule(f"{comma} {begun}")
            else:
                later = f" | {first}" if first else " | "
                first = self.rule(f"{begun}{later}")
                rest = self.rule(f"({comma} {pair})? {rest}")
        return first

    def list_of(self, schema: Mapping[str, Any], place: str) -> str:
        """A list with its brackets."""
        for key in schema:
            if key not in _OF_LISTS:
                raise refused(f"{place}.{key}", f"`{key}` of a list is not supported")
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return self.rule('"[" "]"')
        value = self.value(schema.get("items", True), f"{place}.items")
        further = "" if most is None else most - 1
        more = f"({json.dumps(self.comma)} {value}){{{max(least - 1, 0)},{further}}}"
        body = f"{value} {more}" if least else f"({value} {more})?"
        return self.rule(f'"[" {body} "]"')

    def json(self, schema: Mapping[str, Any], place: str) -> str:
        """A value that is written in JSON."""
        definitions = {key: self.root[key] for key in DEFINITIONS if key in self.root}
        self._count += 1
        name = f"{self._name}_json{self._count}"
        return self._rules.json(name, {**definitions, **schema}, place)

    def rule(self, text: str) -> str:
        """Add a rule; its name."""
        self._count += 1
        name = f"{self._name}_{self._count}"
        self._rules.rule(f"{name}: {text}")
        return name
