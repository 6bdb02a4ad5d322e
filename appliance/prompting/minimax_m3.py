"""Reads tool calls in the format of MiniMax-M3, whose arguments are elements, one in another.

    #<tool_call>
    #<invoke name="weather">#<city>Oslo#</city>#<days>#<item>1#</item>#</days>#</invoke>
    #</tool_call>

    text ── block opens ──> block ── call opens ──> inside ── element opens ──> element ─┐
     ^                      │   ^                   │    ^                      ^  │     │ opens,
     └──── block closes ────┘   └─── call closes ───┘    └──── the outermost ───┘  └─────┘ closes

The mark in front of each tag, here #, is a token. An element of others is a list if they are called
`item`, else an object; one of text has the type that the tool's schema gives it. Text of the call
itself is handed on while it is generated, any other argument when it is complete. The result does
not depend on how the text is cut into feeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from appliance.prompting.call_parser import CallMachine, State
from appliance.prompting.json_call import MAX_HEAD_CHARS
from appliance.prompting.pieces import Piece, unsafe_suffix
from appliance.prompting.xml_call import Dialect, typed, value_types

MARK: Final = "]<]minimax[>["
BLOCK: Final = ("<tool_call>", "</tool_call>")
M3: Final = Dialect(
    block=(MARK + BLOCK[0], MARK + BLOCK[1]),
    call=(f'{MARK}<invoke name="', f"{MARK}</invoke>"),
    parameter=(f"{MARK}<", f"{MARK}</{{}}>"),
    name_end=">",
    padded=False,
    marks=(MARK,),
    line="",
)
"""As calls are forced: what is no text is written in JSON, which reads as the same."""
TAGS: Final = (MARK, *BLOCK)
_TAG = re.compile(re.escape(MARK) + r"<([^>]*)>")
_CALL = re.compile(r'invoke name="([^"]+)"')
_ITEM = "item"
_DEEPEST = 32


@dataclass(slots=True)
class _Element:
    """One that is open, with what its schema says of it."""

    name: str
    schema: Any
    types: frozenset[str]
    text: list[str] = field(default_factory=list)
    inner: list[tuple[str, str]] = field(default_factory=list)
    """Names and values, in JSON, of those in it."""

    def value(self) -> str:
        """In JSON."""
        text = "".join(self.text)
        if self.inner:
            if all(name == _ITEM for name, _ in self.inner):
                return f"[{', '.join(value for _, value in self.inner)}]"
            pairs = (f"{_quoted(name)}: {value}" for name, value in dict(self.inner).items())
            return f"{{{', '.join(pairs)}}}"
        if not text and "string" not in self.types and self.types & {"array", "object"}:
            return "[]" if "array" in self.types else "{}"
        return typed(text, self.types)


class NestedCalls(CallMachine):
    """One sequence's parser. `new_id` makes the id of each call; `tools`: schemas by tool."""

    def __init__(self, new_id: Callable[[], str], tools: Mapping[str, Any]) -> None:
        super().__init__(new_id, M3.block[0])
        self._tools = tools
        self._schema: Any = {}
        self._open: list[_Element] = []
        self._arguments = 0
        self._in_text = False
        """The argument that is read is text, and its opening quote was handed on."""

    def _opened(self, tag: str) -> State:
        return self._block

    def _block(self, pieces: list[Piece]) -> bool:
        tag = self._next()
        if tag is None:
            return False
        name = _CALL.fullmatch(tag)
        if name:
            self._schema, self._arguments = self._tools.get(name[1], {}), 0
            pieces.append(self._begin(name[1], "{"))
            return self._go(self._inside, 0)
        return self._go(self._text if tag == BLOCK[1][1:-1] else self._block, 0)

    def _inside(self, pieces: list[Piece]) -> bool:
        tag = self._next()
        if tag is None:
            return False
        if tag in ("/invoke", BLOCK[1][1:-1]):
            return self._close_call(tag, pieces)
        if tag and not tag.startswith("/"):
            self._open_element(tag, self._schema)
            comma = ", " if self._arguments else ""
            self._arguments += 1
            pieces.append(self._more(f"{comma}{_quoted(tag)}: "))
            self._in_text = self._open[0].types == {"string"}
            if self._in_text:
                pieces.append(self._more('"'))
            return self._go(self._element, 0)
        return True

    def _element(self, pieces: list[Piece]) -> bool:
        text, tag = self._until_tag()
        if text and self._in_text:
            pieces.append(self._more(_quoted(text)[1:-1]))
        elif text:
            self._open[-1].text.append(text)
        if tag is None:
            return False
        names = [element.name for element in self._open]
        if tag.startswith("/") and tag[1:] in names:
            self._close_down_to(names.index(tag[1:]), pieces)
            return self._go(self._element if self._open else self._inside, 0)
        if tag in ("/invoke", BLOCK[1][1:-1]):
            self._close_down_to(0, pieces)
            return self._close_call(tag, pieces)
        if tag and not tag.startswith("/") and not self._in_text and len(names) < _DEEPEST:
            self._open_element(tag, self._open[-1].schema)
        return True

    def _open_element(self, name: str, outer: Any) -> None:  # noqa: ANN401  # any JSON
        schema = _inner(outer, name)
        self._open.append(_Element(name, schema, value_types(schema, self._schema)))

    def _close_down_to(self, place: int, pieces: list[Piece]) -> None:
        """Close all that are open in the one at `place`, and that."""
        while len(self._open) > place:
            element = self._open.pop()
            if self._open:
                self._open[-1].inner.append((element.name, element.value()))
            else:
                pieces.append(self._more('"' if self._in_text else element.value()))
                self._in_text = False

    def _close_call(self, tag: str, pieces: list[Piece]) -> bool:
        pieces.append(self._more("}"))
        return self._go(self._block if tag == "/invoke" else self._text, 0)

    def _next(self) -> str | None:
        """What the next tag says, taken out of the text with all before it; None: none yet."""
        return self._until_tag()[1]

    def _until_tag(self) -> tuple[str, str | None]:
        """Text, taken out, and what the tag behind it says; None if it is not complete."""
        place = self._held.find(MARK)
        if place < 0:
            safe = len(self._held) - unsafe_suffix(self._held, MARK)
            text, self._held = self._held[:safe], self._held[safe:]
            return text, None
        text, self._held = self._held[:place], self._held[place:]
        tag = _TAG.match(self._held, 0, MAX_HEAD_CHARS)
        if tag:
            self._held = self._held[tag.end() :]
            return text, tag[1]
        begun = self._held[len(MARK) : len(MARK) + 1]
        if len(self._held) < MAX_HEAD_CHARS and begun in ("", "<"):
            return text, None
        self._held = self._held[len(MARK) :]  # a mark in front of nothing
        return text, ""

    def _cut_off(self, pieces: list[Piece]) -> None:
        """What is text was handed on; of any other argument nothing is certain."""


def schema_of(parameters_json: str) -> object:
    """A tool's schema; what is none says nothing."""
    try:
        return json.loads(parameters_json or "{}")
    except (ValueError, RecursionError):
        return {}


def _inner(schema: Any, name: str) -> Any:  # noqa: ANN401  # any JSON
    """What a schema says of an element in it."""
    if not isinstance(schema, dict):
        return {}
    properties = schema.get("properties")
    if isinstance(properties, dict) and name in properties:
        return properties[name]
    return schema.get("items", {}) if name == _ITEM else {}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
