"""Arguments with bare keys and marked texts, as a grammar: Gemma 4's format.

A text stands between two tags, which are tokens, so that it has no escapes; numbers and words are
JSON's. Keys come in the order of the alphabet, as the model's template writes them. What of a
schema cannot be written so is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from appliance.engine.grammar.schema import ANNOTATIONS, Schema
from appliance.engine.grammar.tagged import (
    DEFINITIONS,
    CallableTool,
    Rules,
    parts_of_object,
    refused,
    text_schema,
)
from appliance.prompting.gemma4 import QUOTE
from appliance.prompting.xml_call import value_types

_OF_LISTS = ANNOTATIONS | {"type", "items", "minItems", "maxItems"}
_PLAIN: Final = frozenset({"number", "integer", "boolean", "null"})
_KEY: Final = "[A-Za-z_][A-Za-z0-9_.-]*"
_NUMBER: Final = r"/-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,16})?/"


def bare_arguments(rules: Rules, schema: Schema, param: str, tool: CallableTool) -> str:
    """The arguments of one call with their braces. Raises RequestError."""
    writer = _Writer(rules, tool.index)
    if not tool.strict:
        return writer.anything("object")
    if not isinstance(schema, dict):
        raise refused(param, "it admits no object")
    writer.root = schema
    return writer.object_of(schema, param)


class _Writer:
    def __init__(self, rules: Rules, index: int) -> None:
        self._rules = rules
        self._name = f"bare_{index}"
        self._count = 0
        self._made_any = False
        self._quote = rules.marked(QUOTE, (QUOTE,))
        self.root: Mapping[str, Any] = {}

    def anything(self, kind: str) -> str:
        """Any value, or any object: the name of its rule."""
        name = f"{self._name}_any"
        if not self._made_any:
            self._made_any = True
            value = f"{name}_value"
            self._rules.rule(f'{name}_object: "{{" ({name}_pair ("," {name}_pair)*)? "}}"')
            self._rules.rule(f'{name}_pair: /{_KEY}/ ":" {value}')
            self._rules.rule(f'{name}_list: "[" ({value} ("," {value})*)? "]"')
            text = self._text({})
            words = f'"true" | "false" | "None" | {_NUMBER}'
            self._rules.rule(f"{value}: {text} | {words} | {name}_list | {name}_object")
        return f"{name}_{kind}"

    def object_of(self, schema: Mapping[str, Any], place: str) -> str:
        """An object of `schema`, whose keys are known."""
        properties, required = parts_of_object(schema, place)
        if not properties and schema.get("additionalProperties", True) is not False:
            return self.anything("object")
        first, rest = "", ""
        # From the last on: what may follow a key, and what an object may begin with.
        for name in sorted(properties, key=str.lower, reverse=True):
            inner, at = properties[name], f"{place}.properties.{name}"
            if inner is False and name not in required:
                continue
            pair = self._pair(name, inner, at)
            begun = f"{pair} {rest}"
            if name in required:
                first, rest = self._rule(begun), self._rule(f'"," {begun}')
            else:
                later = f" | {first}" if first else " | "
                first = self._rule(f"{begun}{later}")
                rest = self._rule(f'("," {pair})? {rest}')
        return self._rule(f'"{{" {first} "}}"')

    def _pair(self, name: str, schema: object, place: str) -> str:
        if not re.fullmatch(_KEY, name):
            raise refused(place, "its name cannot be written in this model's format")
        return self._rule(f"{json.dumps(f'{name}:')} {self._value(schema, place)}")

    def _value(self, schema: object, place: str) -> str:
        types = value_types(schema, self.root)
        if schema is True or (isinstance(schema, dict) and not schema.keys() - ANNOTATIONS):
            return self.anything("value")
        if types and types <= _PLAIN:
            assert isinstance(schema, dict)
            definitions = {key: self.root[key] for key in DEFINITIONS if key in self.root}
            self._count += 1
            return self._rules.json(
                f"{self._name}_json{self._count}", {**definitions, **schema}, place
            )
        if types <= {"string", "null"} and (text := text_schema(schema)) is not None and types:
            return self._text(text)
        if isinstance(schema, dict) and types == {"array"}:
            return self._list(schema, place)
        if isinstance(schema, dict) and types == {"object"} and "$ref" not in schema:
            return self.object_of(schema, place)
        raise refused(place, "this kind of value is not supported in this model's format")

    def _list(self, schema: Mapping[str, Any], place: str) -> str:
        for key in schema:
            if key not in _OF_LISTS:
                raise refused(f"{place}.{key}", f"`{key}` of a list is not supported")
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return self._rule('"[" "]"')
        value = self._value(schema.get("items", True), f"{place}.items")
        further = "" if most is None else most - 1
        more = f'("," {value}){{{max(least - 1, 0)},{further}}}'
        body = f"{value} {more}" if least else f"({value} {more})?"
        return self._rule(f'"[" {body} "]"')

    def _text(self, schema: Mapping[str, Any]) -> str:
        """A text between its tags, which are nowhere inside of it."""
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values is not None:
            texts = [text for text in values if isinstance(text, str) and QUOTE not in text]
            options = (f"{self._quote} {json.dumps(text)} {self._quote}" for text in texts if text)
            empty = [f"{self._quote} {self._quote}"] if "" in texts else []
            return self._rule(" | ".join([*options, *empty]))
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        self._count += 1
        terminal = f"{self._name}_{self._count}".upper()
        self._rules.rule(f"{terminal}: /(?s:.{{{least},{most}}})/")
        return self._rule(f"{self._quote} {terminal} {self._quote}")

    def _rule(self, text: str) -> str:
        self._count += 1
        name = f"{self._name}_{self._count}"
        self._rules.rule(f"{name}: {text}")
        return name
