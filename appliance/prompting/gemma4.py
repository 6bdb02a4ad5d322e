"""Reads tool calls in the format of Gemma 4, whose arguments are almost JSON.

    <|tool_call>call:weather{city:<|"|>Oslo<|"|>,days:[1,2],area:{lat:47.4}}<tool_call|>

    text ── begin ──> head ── { ──> value ── { [ , : and words ──> value ── last } ──> tail
     ^                │ no call      │  ^                                               │
     │<───────────────┘       quote  v  │ quote                                         │ end
     │                              string                                              │
     └──────────────────────────────────────────────────────────────────────────────────┘

Texts stand between tags, keys without any quotes. What is read is handed on as JSON while it is
generated: a word when it is complete, a text as it comes. A closing tag is dropped wherever it
comes. The result does not depend on how the text is cut into feeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Final

from appliance.prompting.call_parser import CallMachine, State
from appliance.prompting.json_call import MAX_HEAD_CHARS
from appliance.prompting.pieces import Piece, unsafe_suffix

BEGIN, END, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
RESPONSE, TURN_END = "<|tool_response>", "<turn|>"
CHANNEL, CHANNEL_END = "<|channel>", "<channel|>"
THOUGHT: Final = f"{CHANNEL}thought\n"
TAGS: Final = (BEGIN, END, QUOTE, CHANNEL, CHANNEL_END)
_HEAD = re.compile(r"\s*call:([^{}<]{1,512})\{")
_WORD = re.compile(r"[^,:{}\[\]<]*")
_SPELLED: Final[Mapping[str, str]] = {"None": "null", "True": "true", "False": "false"}
"""As the published template writes what is nothing, and as Python would the others."""
_CLOSING: Final = {"{": "}", "[": "]"}


class Gemma4Parser(CallMachine):
    """One sequence's parser. `new_id` makes the id of each call."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        super().__init__(new_id, BEGIN, END)
        self._open: list[str] = []
        """The brackets that are open."""
        self._comma = False
        """A comma was read, and is written when something follows it."""
        self._key = False
        """The next word or text is a key."""

    def _opened(self, tag: str) -> State:
        return self._head if tag == BEGIN else self._text

    def _head(self, pieces: list[Piece]) -> bool:
        head = _HEAD.match(self._held, 0, MAX_HEAD_CHARS)
        name = head[1].strip() if head else ""
        if head and name:
            pieces.append(self._begin(name, "{"))
            self._open, self._comma, self._key = ["{"], False, True
            return self._go(self._inside, head.end())
        if not head and len(self._held) < MAX_HEAD_CHARS and _may_begin(self._held):
            return False
        return self._no_call(pieces, BEGIN)

    def _inside(self, pieces: list[Piece]) -> bool:
        """Between texts: brackets, commas and words."""
        self._held = self._held.lstrip()
        if not self._held:
            return False
        first = self._held[0]
        if first == "<":
            return self._tag(pieces)
        if first in "{[":
            self._write(pieces, first)
            self._open.append(first)
            self._key = first == "{"
            return self._go(self._inside, 1)
        if first in "}]":
            return self._close(pieces)
        if first in ",:":
            self._comma = first == ","
            self._key = self._comma and self._open[-1] == "{"
            return self._go(self._inside, 1)
        return self._word(pieces)

    def _tag(self, pieces: list[Piece]) -> bool:
        if self._held.startswith(QUOTE):
            self._write(pieces, '"')
            return self._go(self._string, len(QUOTE))
        if self._held.startswith(END):
            return self._go(self._text, len(END))  # without its last braces: it is cut off there
        if QUOTE.startswith(self._held) or END.startswith(self._held):
            return False
        return self._go(self._inside, 1)

    def _close(self, pieces: list[Piece]) -> bool:
        pieces.append(self._more(_CLOSING[self._open.pop()]))
        self._comma = self._key = False
        return self._go(self._inside if self._open else self._tail, 1)

    def _word(self, pieces: list[Piece]) -> bool:
        """A key, a number, or what else has no quotes."""
        found = _WORD.match(self._held, 0, MAX_HEAD_CHARS)
        assert found is not None
        if found.end() == len(self._held) < MAX_HEAD_CHARS:
            return False
        text = found[0].strip()
        self._write(pieces, _quoted(text) if self._key else _valued(text))
        self._end_of_text(pieces)
        return self._go(self._inside, found.end())

    def _string(self, pieces: list[Piece]) -> bool:
        place = self._held.find(QUOTE)
        if place < 0:
            safe = len(self._held) - unsafe_suffix(self._held, QUOTE)
            self._said(pieces, safe)
            return False
        self._said(pieces, place)
        pieces.append(self._more('"'))
        self._end_of_text(pieces)
        return self._go(self._inside, len(QUOTE))

    def _tail(self, _pieces: list[Piece]) -> bool:
        return self._go(self._text, 0)

    def _said(self, pieces: list[Piece], count: int) -> None:
        """Hand on some characters of a text."""
        text, self._held = self._held[:count], self._held[count:]
        if text:
            pieces.append(self._more(_quoted(text)[1:-1]))

    def _write(self, pieces: list[Piece], text: str) -> None:
        comma, self._comma = ", " if self._comma else "", False
        pieces.append(self._more(comma + text))

    def _end_of_text(self, pieces: list[Piece]) -> None:
        if self._key:
            pieces.append(self._more(": "))
        self._key = False

    def _cut_off(self, pieces: list[Piece]) -> None:
        if self._state == self._head:
            pieces.append(Piece(text=BEGIN + self._held))
        elif self._state == self._string:
            self._said(pieces, len(self._held))


def _may_begin(text: str) -> bool:
    """Whether what follows can make a head of it."""
    seen = text.lstrip()
    return "call:".startswith(seen[:5]) and not set(seen) & {"}", "<"} and len(seen) <= 520


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _valued(text: str) -> str:
    """A value without quotes, as JSON; as text if it is none."""
    spelled = _SPELLED.get(text, text)
    if spelled in ("null", "true", "false"):
        return spelled
    try:
        value = json.loads(spelled, parse_constant=_quoted)
    except (ValueError, RecursionError):
        return _quoted(text)
    return spelled if isinstance(value, int | float) else _quoted(text)
