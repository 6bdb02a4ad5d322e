"""Arguments in tags of their own, as a grammar: MiniMax's, Qwen3-Coder's and GLM's formats.

What is written between two tags is bare text for a parameter that is text, JSON for any other;
so what a reader makes of it depends on the schema, and only a schema is honoured that leaves no
doubt. What cannot be written so is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from appliance.engine.grammar.pattern import literal
from appliance.engine.grammar.schema import ANNOTATIONS, Schema
from appliance.errors import RequestError
from appliance.prompting.xml_call import Dialect, value_types

_OF_OBJECTS = ANNOTATIONS | {"type", "properties", "required", "additionalProperties"}
DEFINITIONS = ("$defs", "definitions")
_OF_TEXTS = ANNOTATIONS | {"type", "enum", "const", "minLength", "maxLength"}


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A function that may be called. `index`: its place in the request.

    strict: whether its arguments must satisfy `parameters_json`; else any object does.
    """

    index: int
    name: str
    parameters_json: str
    strict: bool


class Rules(Protocol):
    """The grammar that is being composed."""

    def rule(self, text: str) -> None: ...

    def json(self, name: str, schema: Schema, param: str) -> str: ...

    def marked(self, text: str, marks: Collection[str]) -> str: ...

    def cut(self, text: str, marks: Collection[str]) -> tuple[str, str]: ...


def tagged_arguments(
    rules: Rules, dialect: Dialect, schema: Schema, param: str, tool: CallableTool
) -> str:
    """The arguments of one call, as a sequence of rules. Raises RequestError."""
    writer = _Writer(rules, dialect, tool.index)
    if not tool.strict and dialect.parameter[1].format("") == dialect.parameter[1]:
        return writer.anything()
    if not tool.strict:  # what closes a value names it
        return writer.named(_names(tool.parameters_json))
    if not isinstance(schema, dict):
        raise refused(param, "it admits no object")
    properties, required = parts_of_object(schema, param)
    parts: list[str] = []
    for number, (name, inner) in enumerate(properties.items()):
        place = f"{param}.properties.{name}"
        if inner is False and name not in required:
            continue
        written = writer.parameter(number, name, inner, schema, place)
        parts.append(written if name in required else f"({written})?")
    return " ".join(parts)


class _Writer:
    def __init__(self, rules: Rules, dialect: Dialect, index: int) -> None:
        self._rules = rules
        self._dialect = dialect
        self._index = index
        self._edge = "\n" if dialect.padded else ""
        self._tag = dialect.parameter[1]
        between = f"{dialect.line}{dialect.value}" if dialect.value else ""
        self._behind_name = f"{between}{self._edge}"
        self._line = json.dumps(dialect.line) if dialect.line else ""

    @property
    def _close(self) -> str:
        """Behind a value."""
        return f"{self._edge}{self._tag}"

    def named(self, names: Iterable[str]) -> str:
        """Any of these parameters, of any text."""
        parts = (self.parameter(i, name, True, {}, "") for i, name in enumerate(names))
        return " ".join(f"({part})?" for part in parts)

    def anything(self) -> str:
        """Any parameters, of any text."""
        name, end = f"any_{self._index}", self._marked(self._name_end(text=True))
        value, opening = self._text(f"{name}_value", {}), self._marked(self._dialect.parameter[0])
        self._rules.rule(f"{name}: {opening} /[A-Za-z_][A-Za-z0-9_.-]*/ {end} {value} {self._line}")
        return f"{name}*"

    def _name_end(self, *, text: bool) -> str:
        """From a parameter's name to its value, which is text or is none."""
        return f"{self._dialect.name_ends(text=text)}{self._behind_name}"

    def parameter(
        self, number: int, name: str, schema: object, root: dict[str, Any], place: str
    ) -> str:
        """One parameter with its tags; the name of its rule."""
        rule = f"parameter_{self._index}_{number}"
        dialect = self._dialect
        parts = ("\n", dialect.name_end, *dialect.marks)
        if any(part in name for part in parts) or name != name.strip() or not name:
            raise refused(place, "its name cannot be written in this model's format")
        self._tag = dialect.parameter[1].format(name)
        value = self._value(rule, schema, root, place)
        types = value_types(schema, root)
        end = self._name_end(text=not types or "string" in types)
        opening = self._marked(f"{dialect.parameter[0]}{name}{end}")
        self._rules.rule(f"{rule}: {opening} {value} {self._line}")
        return rule

    def _value(self, rule: str, schema: object, root: dict[str, Any], place: str) -> str:
        """A value and its closing tag."""
        types = value_types(schema, root)
        if types and "string" not in types:
            assert isinstance(schema, dict)
            definitions = {key: root[key] for key in DEFINITIONS if key in root}
            value = self._rules.json(f"{rule}_json", {**definitions, **schema}, place)
            return f"{value} {self._marked(self._close)}"
        if types - {"string", "null"}:
            raise refused(place, "a value that may be text or something else is not supported")
        text = text_schema(schema)
        if text is None or (not types and text.keys() - ANNOTATIONS):
            raise refused(place, "this kind of text is not supported in this model's format")
        return self._text(f"{rule}_text", text)

    def _text(self, name: str, schema: dict[str, Any]) -> str:
        """Bare text and its closing tag, which is nowhere inside of it."""
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values is not None:
            texts = [value for value in values if isinstance(value, str)]
            options = [text for text in texts if self._tag not in text]
            return f"({' | '.join(self._marked(option + self._close) for option in options)})"
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        close, tag = literal(self._close), literal(self._tag)
        head, rest = self._rules.cut(self._close, self._dialect.marks)
        if rest:
            terminal = name.upper()
            end = literal(head) if head else ""
            text = f"/(?s:.{{{least},{most}}}){end}/ & ~/(?s:.*){tag}(?s:.*)/"
            self._rules.rule(f"{terminal}: {text}")
            return f"{terminal} {rest}"
        self._rules.rule(
            f"{name}[lazy]: /(?s:.{{{least},{most}}}){close}/ & ~/(?s:.*){tag}(?s:.+)/"
        )
        return name

    def _marked(self, text: str) -> str:
        return self._rules.marked(text, self._dialect.marks)


def parts_of_object(
    schema: Mapping[str, Any], place: str
) -> tuple[Mapping[str, Any], Collection[str]]:
    """Properties, and which of them are required, of an object. Raises RequestError."""
    for key in schema:
        if key not in _OF_OBJECTS and key not in DEFINITIONS:
            raise refused(f"{place}.{key}", f"`{key}` of an object is not supported")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    assert isinstance(properties, dict)  # the schema was checked
    assert isinstance(required, list)
    for name in required:
        if name not in properties:
            raise refused(f"{place}.required", f"{name!r} is not among its properties")
    return properties, required


def text_schema(schema: object) -> dict[str, Any] | None:
    """The schema of a text, out of the options of one; None if it is none that is supported."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        return None
    options = schema.get("anyOf")
    if options is not None and not schema.keys() - ANNOTATIONS - {"anyOf"}:
        texts = [option for option in options if option.get("type") == "string"]
        nulls = [option for option in options if option.get("type") == "null"]
        # To write text always is to satisfy the schema, which admits more.
        return text_schema(texts[0]) if len(texts) + len(nulls) == len(options) else None
    values = [schema["const"]] if "const" in schema else schema.get("enum", [""])
    if schema.keys() - _OF_TEXTS or not any(isinstance(value, str) for value in values):
        return None
    return schema


def _names(parameters_json: str) -> list[str]:
    """The parameters that a schema names and tags can."""
    try:
        properties = json.loads(parameters_json or "{}").get("properties", {})
    except (ValueError, AttributeError, RecursionError):
        return []
    names = properties if isinstance(properties, dict) else {}
    return [name for name in names if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name)]


def refused(param: str, why: str) -> RequestError:
    return RequestError(
        f"calls of this model cannot be held to the schema: {why}",
        param=param,
        hint="simplify the schema, or let the model choose freely whether to call",
        code="unsupported_parameter",
    )
