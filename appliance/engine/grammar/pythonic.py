"""Arguments as Python would write them, as a grammar: LFM2's and Llama's formats.

Texts and numbers are written as in JSON, whose escapes are Python's too; so all that a schema says
of these is held. Words are Python's, keys come as the schema has them, and those of objects are
texts. What of a schema cannot be written so is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from appliance.engine.grammar.members import Members
from appliance.engine.grammar.schema import ANNOTATIONS, Schema
from appliance.engine.grammar.tagged import CallableTool, Rules, refused
from appliance.prompting.python_arguments import python_literal
from appliance.prompting.xml_call import value_types

_KEY: Final = "[A-Za-z_][A-Za-z0-9_]*"
_IN_JSON: Final = (frozenset({"string"}), frozenset({"number"}), frozenset({"integer"}))
_WORDS: Final[Mapping[str, str]] = {"boolean": '"True" | "False"', "null": '"None"'}
_LISTED: Final = ANNOTATIONS | {"type", "enum", "const"}


def python_arguments(rules: Rules, schema: Schema, param: str, tool: CallableTool) -> str:
    """The arguments of one call without their brackets. Raises RequestError."""
    if not isinstance(schema, dict):
        raise refused(param, "it admits no object")
    writer = _Writer(rules, f"python_{tool.index}", schema)
    return writer.members(schema, param) if tool.strict else writer.any_members()


class _Writer(Members):
    comma = ", "

    def __init__(self, rules: Rules, name: str, root: Mapping[str, Any]) -> None:
        super().__init__(rules, name, root)
        self._made_any = False
        self._inside = 0
        """How many objects are open: their keys are texts."""

    def any_members(self) -> str:
        return f"{self._any()}_{'pairs' if self._inside else 'arguments'}"

    def _any(self) -> str:
        name = f"{self._name}_any"
        if not self._made_any:
            self._made_any = True
            value, text = f"{name}_value", self.json({"type": "string"}, "")
            self._rules.rule(f'{name}_argument: /{_KEY}/ "=" {value}')
            self._rules.rule(f'{name}_pair: {text} ": " {value}')
            for kind in ("argument", "pair"):
                one = f"{name}_{kind}"
                self._rules.rule(f'{one}s: ({one} (", " {one})*)?')
            self._rules.rule(f'{name}_list: "[" ({value} (", " {value})*)? "]"')
            words = f"{self.json({'type': 'number'}, '')} | {' | '.join(_WORDS.values())}"
            nested = f'{name}_list | "{{" {name}_pairs "}}"'
            self._rules.rule(f"{value}: {text} | {words} | {nested}")
        return name

    def pair(self, name: str, schema: object, place: str) -> str:
        if self._inside:
            key = f"{json.dumps(name, ensure_ascii=False)}: "
        elif re.fullmatch(_KEY, name):
            key = f"{name}="
        else:
            raise refused(place, "its name cannot be written in this model's format")
        return self.rule(f"{json.dumps(key, ensure_ascii=False)} {self.value(schema, place)}")

    def value(self, schema: object, place: str) -> str:
        if schema is True or (isinstance(schema, dict) and not schema.keys() - ANNOTATIONS):
            return f"{self._any()}_value"
        types = value_types(schema, self.root)
        if not isinstance(schema, dict) or not types:
            raise refused(place, "this kind of value is not supported in this model's format")
        if types in _IN_JSON:
            return self.json(schema, place)
        if "enum" in schema or "const" in schema:
            return self._listed(schema, types, place)
        options = schema.get("anyOf")
        if options is not None and not schema.keys() - ANNOTATIONS - {"anyOf"}:
            values = [self.value(o, f"{place}.anyOf[{i}]") for i, o in enumerate(options)]
        elif "type" in schema:
            values = [self._of(name, schema, place) for name in sorted(types)]
        else:
            raise refused(place, "this kind of value is not supported in this model's format")
        return self.rule(" | ".join(values))

    def _of(self, kind: str, schema: Mapping[str, Any], place: str) -> str:
        """A value of one of the types that `schema` names."""
        if kind in _WORDS:
            if schema.keys() & {"anyOf", "oneOf", "allOf", "not", "$ref"}:
                raise refused(place, "this kind of value is not supported in this model's format")
            return self.rule(_WORDS[kind])
        if kind == "array":
            return self.list_of({**schema, "type": kind}, place)
        if kind != "object":
            return self.json({**schema, "type": kind}, place)
        self._inside += 1
        members = self.members({**schema, "type": kind}, place)
        self._inside -= 1
        return self.rule(f'"{{" {members} "}}"')

    def _listed(self, schema: Mapping[str, Any], types: frozenset[str], place: str) -> str:
        """One of some values."""
        if schema.keys() - _LISTED:
            raise refused(place, "this kind of value is not supported in this model's format")
        values = [schema["const"]] if "const" in schema else schema["enum"]
        fitting = (value for value in values if value_types({"const": value}, {}) & types)
        texts = list(map(python_literal, fitting))
        if not texts:
            raise refused(place, "it admits no value")
        return self.rule(" | ".join(json.dumps(text, ensure_ascii=False) for text in texts))
