"""Reads tool calls whose arguments stand in tags of their own.

    <tool_call> <function=weather> <parameter=city> Oslo </parameter> </function> </tool_call>

    text ── block opens ──> block ── call opens ──> call ── parameter opens ──> value
     ^                      │   ^                   │  ^                          │
     └──── block closes ────┘   └─── call closes ───┘  └──── parameter closes ────┘

MiniMax's, Qwen3-Coder's, Seed-OSS's and GLM's formats are such; in GLM's a block is a call. A value
has the type that the tool's schema gives it: text is handed on while it is generated, anything else
when it is complete. A value without a declared type is JSON if it reads as JSON, else text. A list
or an object may be written as Python does, since Seed-OSS's template writes them so. Between the
tags nothing counts. The result does not depend on how the text is cut into feeds.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from appliance.prompting.call_parser import CallMachine, State
from appliance.prompting.json_call import MAX_HEAD_CHARS, ObjectEnd
from appliance.prompting.pieces import Piece, first_tag, unsafe_suffix

MAX_VALUE_CHARS = 1 << 20
"""A value that is no text is held back until it is complete; a longer one is text."""
_MAX_LITERAL_CHARS = 16 * 1024
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "boolean": bool,
    "null": type(None),
    "object": dict,
    "array": list,
    "number": (int, float),
    "integer": int,
}
_JSON = frozenset(_TYPES) - {"string"}
_PYTHON: Mapping[str, str] = {"True": "true", "False": "false", "None": "null"}
"""As Qwen3-Coder's template writes them, and so its model."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a format writes the tags.

    call, parameter: what opens them, in front of the name; `name_end` comes behind it.
    padded: whether a line end stands at each end of a value, which does not belong to it.
    until: what ends a call's name and is no part of its tag; none: `name_end` ends it, too.
    value: what opens a value, if more than `name_end` stands between it and its name.
    kinds: what stands in place of `name_end` behind a parameter whose value is text, and behind
        any other, if the format tells them apart.
    marks: those of the tags, or of their parts, beside the block's, that are tokens.
    line: what the model writes behind a parameter, and in front of `value`.
    """

    block: tuple[str, str]
    call: tuple[str, str]
    parameter: tuple[str, str]
    name_end: str
    padded: bool
    until: tuple[str, ...] = ()
    value: str = ""
    kinds: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    line: str = "\n"

    @property
    def tags(self) -> tuple[str, ...]:
        """What is part of the text, even where a vocabulary has it as a special token."""
        whole = (tag for tag in self.block if not any(mark in tag for mark in self.marks))
        return (*whole, *self.marks)

    def name_ends(self, *, text: bool) -> str:
        """What stands behind the name of a parameter whose value is text, or is none."""
        return self.kinds[0 if text else 1] if self.kinds else self.name_end


Types = Mapping[str, frozenset[str]]
"""Of each parameter of a tool, the types that its schema names; none if it names none."""


def parameter_types(parameters_json: str) -> Types:
    """The types of a tool's parameters; what is no schema says nothing."""
    try:
        schema = json.loads(parameters_json or "{}")
    except (ValueError, RecursionError):
        return {}
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return {}
    return {name: value_types(inner, schema) for name, inner in properties.items()}


def value_types(schema: object, root: object) -> frozenset[str]:
    """The types that a schema names; none if it names none. `root`: what it refers into."""
    return _types_of(schema, root, 0)


def typed(text: str, types: frozenset[str]) -> str:
    """A parameter's value as JSON: the value that `text` is, if it has one of `types`."""
    spelled = _PYTHON.get(text)
    if spelled is not None and types & {"boolean", "null"}:
        text = spelled
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return _literal(text, types) or json.dumps(text, ensure_ascii=False)
    if types:
        fits = any(_is(value, name) for name in types - {"string"})
    else:
        fits = not isinstance(value, str)  # without a declared type, quotes belong to the text
    return text.strip() if fits else json.dumps(text, ensure_ascii=False)


def _literal(text: str, types: frozenset[str]) -> str:
    """The list or object that Python writes as `text`, in JSON; empty if it is none."""
    if len(text) > _MAX_LITERAL_CHARS or not types & {"array", "object"}:
        return ""
    try:
        value = ast.literal_eval(text.strip())
        fits = any(_is(value, name) for name in types & {"array", "object"})
        return json.dumps(value, ensure_ascii=False, allow_nan=False) if fits else ""
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ""


class XmlParser(CallMachine):
    """One sequence's parser. `new_id` makes the id of each call; `tools`: types by tool."""

    def __init__(
        self, new_id: Callable[[], str], dialect: Dialect, tools: Mapping[str, Types]
    ) -> None:
        super().__init__(new_id, dialect.block[0])
        self._dialect = dialect
        self._tools = tools
        self._types: Types = {}
        self._parameters = 0
        self._name = ""
        self._pending = ""
        """The tag that was taken out of the text last."""
        self._parts: list[str] = []
        """Of a value that is no text, held back."""
        self._length = 0
        self._in_text = False
        """The value that is read is text, and its opening quote was handed on."""
        self._edge = self._first = True

    def _opened(self, tag: str) -> State:
        if tag == self._dialect.call[0]:  # which is looked for inside
            self._held = tag + self._held
        return self._block

    def _block(self, pieces: list[Piece]) -> bool:
        call, (_, close) = self._dialect.call, self._dialect.block
        tag = self._next_tag(call[0], close)
        if tag == close:
            return self._go(self._text, 0)
        name = self._tag_name(self._dialect.until) if tag else None
        if not name:
            return name is not None
        self._types, self._parameters = self._tools.get(name, {}), 0
        pieces.append(self._begin(name, "{"))
        return self._go(self._inside, 0)

    def _inside(self, pieces: list[Piece]) -> bool:
        parameter, (_, close) = self._dialect.parameter, self._dialect.call
        tag = self._next_tag(parameter[0], close, self._dialect.call[0], self._dialect.block[1])
        if tag and tag != parameter[0]:
            pieces.append(self._more("}"))
            if tag == self._dialect.call[0]:  # the call before was not closed
                self._held = tag + self._held
            return self._go(self._text if tag == self._dialect.block[1] else self._block, 0)
        kinds = self._dialect.kinds
        name = self._tag_name(kinds) if tag else None
        if not name:
            return name is not None
        self._name = name
        if kinds:
            is_text = self._held.startswith(kinds[0])
            self._held = self._held.removeprefix(kinds[0 if is_text else 1])
            self._types = {**self._types, name: frozenset({"string"}) if is_text else _JSON}
        return self._go(self._named if self._dialect.value else self._valued, 0)

    def _named(self, _pieces: list[Piece]) -> bool:
        """Behind a parameter's name: a name without a value is none."""
        value, others = self._dialect.value, (self._dialect.parameter[0], *self._dialect.block)
        tag = self._next_tag(value, *others)
        if tag in others:
            self._held = tag + self._held
        return bool(tag) and self._go(self._valued if tag == value else self._inside, 0)

    def _valued(self, pieces: list[Piece]) -> bool:
        comma = ", " if self._parameters else ""
        self._parameters += 1
        pieces.append(self._more(f"{comma}{json.dumps(self._name, ensure_ascii=False)}: "))
        self._parts, self._length = [], 0
        self._in_text, self._edge, self._first = False, self._dialect.padded, True
        self._value = ObjectEnd()
        return self._go(self._parameter, 0)

    def _parameter(self, pieces: list[Piece]) -> bool:
        close = self._dialect.parameter[1]
        if self._edge and self._held:
            self._held, self._edge = self._held.removeprefix("\n"), False
        if self._first and self._held:
            self._first = False
            types = self._types.get(self._name, frozenset())
            if self._held[0] in "{[" and types & {"object", "array"} and "string" not in types:
                return self._go(self._json, 0)
        place = self._held.find(close)
        if place < 0:
            held = f"\n{close}" if self._dialect.padded else close
            safe = len(self._held) - max(unsafe_suffix(self._held, t) for t in (held, close))
            self._take(self._held[:safe], pieces)
            self._held = self._held[safe:]
            return False
        self._take(self._held[:place], pieces, last=True)
        return self._go(self._inside, place + len(close))

    def _json(self, pieces: list[Piece]) -> bool:
        """An object or a list: a closing tag inside of its strings is one of its characters."""
        end = self._value.find(self._held)
        self._take(self._held[:end], pieces)
        self._held = "" if end is None else self._held[end:]
        return end is not None and self._go(self._parameter, 0)

    def _take(self, text: str, pieces: list[Piece], *, last: bool = False) -> None:
        """Some of a value; `last`: the value is complete."""
        if last and self._dialect.padded:
            text = text.removesuffix("\n")
        types = self._types.get(self._name, frozenset())
        if not text and not last:
            return
        if not self._in_text:
            self._parts.append(text)
            self._length += len(text)
            is_text = types == {"string"} or self._length > MAX_VALUE_CHARS
            if not is_text and not last:
                return
            text, self._parts = "".join(self._parts), []
            if not is_text:
                pieces.append(self._more(typed(text, types)))
                return
            self._in_text = True
            pieces.append(self._more('"'))
        quoted = json.dumps(text, ensure_ascii=False)[1:-1] + ('"' if last else "")
        if quoted:
            pieces.append(self._more(quoted))

    def _next_tag(self, *tags: str) -> str:
        """The next of `tags`, taken out of the text with all before it; "" if there is none."""
        place, tag = first_tag(self._held, tags)
        if tag:
            self._held = self._held[place + len(tag) :]
            self._pending = tag
        else:
            longest = max(map(len, tags))
            self._held = self._held[-longest + 1 :]
        return tag

    def _tag_name(self, until: tuple[str, ...] = ()) -> str | None:
        """The name in the tag just opened; "" if it has none, None if it is not complete.

        One of `until` ends it, or the dialect's own end, which is taken with it.
        """
        place, end = first_tag(self._held[:MAX_HEAD_CHARS], until or (self._dialect.name_end,))
        if not end:
            if len(self._held) >= MAX_HEAD_CHARS:
                return ""
            self._held = self._pending + self._held  # so that the tag is found again
            return None
        name, self._held = self._held[:place], self._held[place:]
        self._held = self._held if until else self._held.removeprefix(end)
        return name.strip()

    def _cut_off(self, pieces: list[Piece]) -> None:
        if self._state == self._parameter and self._in_text and self._held:
            pieces.append(self._more(json.dumps(self._held, ensure_ascii=False)[1:-1]))


def _no_number(text: str) -> object:
    raise ValueError(text)  # NaN and Infinity, which Python reads and JSON has not


def _is(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES.get(name, ()))


_DEEPEST = 16


def _types_of(schema: object, root: object, depth: int) -> frozenset[str]:
    """The types that a property's schema names, through its options and references."""
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return frozenset()
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset({named})
    if isinstance(named, list):
        return frozenset(name for name in named if isinstance(name, str))
    if "const" in schema or isinstance(schema.get("enum"), list):
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return frozenset(name for value in values for name in _TYPES if _is(value, name))
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _types_of(_referred(reference, root), root, depth + 1)
    options = schema.get("anyOf") or schema.get("oneOf") or ()
    found = [_types_of(option, root, depth + 1) for option in options]
    return frozenset().union(*found) if all(found) else frozenset()


def _referred(reference: str, root: object) -> object:
    value = root
    for key in map(unquote, reference.removeprefix("#/").split("/")):
        key = re.sub("~1", "/", key).replace("~0", "~")
        value = value.get(key) if isinstance(value, dict) else None
    return value
