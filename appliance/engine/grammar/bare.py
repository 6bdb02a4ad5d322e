"""Arguments with bare keys and marked texts, as a grammar: Gemma 4's format.

A text stands between two tags, which are tokens, so that it has no escapes; numbers and words are
JSON's. Keys come in the order of the alphabet, as the model's template writes them. What of a
schema cannot be written so is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from appliance.engine.grammar.members import Members
from appliance.engine.grammar.schema import ANNOTATIONS, Schema
from appliance.engine.grammar.tagged import CallableTool, Rules, refused, text_schema
from appliance.prompting.gemma4 import QUOTE
from appliance.prompting.xml_call import value_types

_PLAIN: Final = frozenset({"number", "integer", "boolean", "null"})
_KEY: Final = "[A-Za-z_][A-Za-z0-9_.-]*"
_NUMBER: Final = r"/-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,16})?/"


def bare_arguments(rules: Rules, schema: Schema, param: str, tool: CallableTool) -> str:
    """The arguments of one call with their braces. Raises RequestError."""
    if not isinstance(schema, dict):
        raise refused(param, "it admits no object")
    writer = _Writer(rules, f"bare_{tool.index}", schema)
    return writer.object_of(schema, param) if tool.strict else f'"{{" {writer.any_members()} "}}"'


class _Writer(Members):
    def __init__(self, rules: Rules, name: str, root: Mapping[str, Any]) -> None:
        super().__init__(rules, name, root)
        self._made_any = False
        self._quote = rules.marked(QUOTE, (QUOTE,))

    def any_members(self) -> str:
        return f"{self._any()}_members"

    def _any(self) -> str:
        name = f"{self._name}_any"
        if not self._made_any:
            self._made_any = True
            value = f"{name}_value"
            self._rules.rule(f'{name}_members: ({name}_pair ("," {name}_pair)*)?')
            self._rules.rule(f'{name}_pair: /{_KEY}/ ":" {value}')
            self._rules.rule(f'{name}_list: "[" ({value} ("," {value})*)? "]"')
            words = f'"true" | "false" | "None" | {_NUMBER}'
            nested = f'{name}_list | "{{" {name}_members "}}"'
            self._rules.rule(f"{value}: {self._text({})} | {words} | {nested}")
        return name

    def sorted(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=str.lower)

    def object_of(self, schema: Mapping[str, Any], place: str) -> str:
        return self.rule(f'"{{" {self.members(schema, place)} "}}"')

    def pair(self, name: str, schema: object, place: str) -> str:
        if not re.fullmatch(_KEY, name):
            raise refused(place, "its name cannot be written in this model's format")
        return self.rule(f"{json.dumps(f'{name}:')} {self.value(schema, place)}")

    def value(self, schema: object, place: str) -> str:
        types = value_types(schema, self.root)
        if schema is True or (isinstance(schema, dict) and not schema.keys() - ANNOTATIONS):
            return f"{self._any()}_value"
        if types and types <= _PLAIN:
            assert isinstance(schema, dict)
            return self.json(schema, place)
        if types <= {"string", "null"} and (text := text_schema(schema)) is not None and types:
            return self._text(text)
        if isinstance(schema, dict) and types == {"array"}:
            return self.list_of(schema, place)
        if isinstance(schema, dict) and types == {"object"} and "$ref" not in schema:
            return self.object_of(schema, place)
        raise refused(place, "this kind of value is not supported in this model's format")

    def _text(self, schema: Mapping[str, Any]) -> str:
        """A text between its tags, which are nowhere inside of it."""
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values is not None:
            texts = [text for text in values if isinstance(text, str) and QUOTE not in text]
            options = (f"{self._quote} {json.dumps(text)} {self._quote}" for text in texts if text)
            empty = [f"{self._quote} {self._quote}"] if "" in texts else []
            return self.rule(" | ".join([*options, *empty]))
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        self._count += 1
        terminal = f"{self._name}_{self._count}".upper()
        self._rules.rule(f"{terminal}: /(?s:.{{{least},{most}}})/")
        return self.rule(f"{self._quote} {terminal} {self._quote}")
