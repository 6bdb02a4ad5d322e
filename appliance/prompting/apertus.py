"""Reads tool calls in the format of Apertus.

    <|tools_prefix|>[{"weather": {"city": "Oslo"}}, {"news": {}}]<|tools_suffix|>

    text ── prefix, [ ──> list ── {"name": ──> arguments ── ends ──> tail
     ^                    │  ^                                       │ }
     │                    │  └───────────────────────────────────────┘
     └── ], or no call ───┘

A call is an object of one key, the function's name. The arguments are handed on while they are
generated; what is no call is text. The closing tag ends the turn and is no text where it comes.
White space around calls is dropped. The result does not depend on how the text is cut into feeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from appliance.prompting.call_parser import CallMachine, State
from appliance.prompting.json_call import MAX_HEAD_CHARS, ObjectEnd, json_string
from appliance.prompting.pieces import Piece

BEGIN, END = "<|tools_prefix|>", "<|tools_suffix|>"
TAGS: Final = (BEGIN, END)
_HEAD = re.compile(r'\{\s*("(?:[^"\\]|\\.)*")\s*:\s*(?=\{)', re.DOTALL)
_MAYBE = re.compile(r'\{\s*(?:"(?:[^"\\]|\\.)*(?:\\?|"\s*(?::\s*)?))?', re.DOTALL)
"""What can become a head."""


class ApertusParser(CallMachine):
    """One sequence's parser. `new_id` makes the id of each call."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        super().__init__(new_id, BEGIN, END)
        self._lead = ""
        """What came in front of the first call."""

    def _opened(self, tag: str) -> State:
        self._lead = BEGIN
        return self._begun if tag == BEGIN else self._text

    def _begun(self, pieces: list[Piece]) -> bool:
        self._held = self._held.lstrip()
        if not self._held:
            return False
        if self._held.startswith("["):
            self._lead = f"{BEGIN}["
            return self._go(self._list, 1)
        return self._no_call(pieces, self._lead)

    def _list(self, pieces: list[Piece]) -> bool:
        self._held = self._held.lstrip(", \t\r\n")
        if not self._held:
            return False
        if self._held.startswith("]"):
            return self._go(self._text, 1)
        head = _HEAD.match(self._held, 0, MAX_HEAD_CHARS)
        name = json_string(head[1]) if head else None
        if head and name is not None:
            self._lead = ""
            pieces.append(self._begin(name))
            return self._go(self._arguments, head.end())
        if len(self._held) < MAX_HEAD_CHARS and _MAYBE.fullmatch(self._held):
            return False
        return self._no_call(pieces, self._lead)

    def _arguments(self, pieces: list[Piece]) -> bool:
        if not self._arguments_end(pieces):
            return False
        self._value = ObjectEnd(depth=1)
        return self._go(self._tail, 0)

    def _tail(self, _pieces: list[Piece]) -> bool:
        end = self._value.find(self._held)
        self._held = "" if end is None else self._held[end:]
        return end is not None and self._go(self._list, 0)

    def _cut_off(self, pieces: list[Piece]) -> None:
        if self._state in (self._begun, self._list) and self._lead + self._held:
            pieces.append(Piece(text=self._lead + self._held))
