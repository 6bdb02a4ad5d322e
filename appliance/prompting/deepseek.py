"""Reads tool calls in DeepSeek's formats.

    <|calls begin|><|call begin|>function<|sep|>weather     V3, R1
    ```json
    {"city": "Oslo"}
    ```<|call end|><|calls end|>

    <|calls begin|><|call begin|>weather<|sep|>{"city": "Oslo"}<|call end|><|calls end|>   V3.1

    text ── calls begin ──> between ── call begin ──> head ── { ──> arguments ── ends ──> tail
     ^                      │    ^                     │ call end                          │
     └──────── other ───────┘    └───────── call end ──┼───────────────────────────────────┘
     └──────────────────── no call ────────────────────┘

The tags' bars and spaces are of their own: U+FF5C and U+2581. The arguments are handed on while
they are generated. What has no such form is text. White space around calls is dropped. The
result does not depend on how the text is cut into feeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from appliance.prompting.call_parser import CallMachine, State
from appliance.prompting.json_call import MAX_HEAD_CHARS
from appliance.prompting.pieces import Piece, first_tag

CALLS_BEGIN = "<\uff5ctool\u2581calls\u2581begin\uff5c>"
CALLS_END = "<\uff5ctool\u2581calls\u2581end\uff5c>"
CALL_BEGIN = "<\uff5ctool\u2581call\u2581begin\uff5c>"
CALL_END = "<\uff5ctool\u2581call\u2581end\uff5c>"
SEPARATOR = "<\uff5ctool\u2581sep\uff5c>"
TAGS = (CALLS_BEGIN, CALL_BEGIN, SEPARATOR, CALL_END, CALLS_END)
_HEAD = re.compile(
    rf"\s*([^\n<]*)(?:{SEPARATOR})(?:([^\n<{{`]+)\s*```(?:json)?)?\s*(?=\{{)",
)
_ENDS = (CALL_BEGIN, CALL_END, CALLS_END)


class DeepSeekParser(CallMachine):
    """One sequence's parser. `new_id` makes the id of each call."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        super().__init__(new_id, CALLS_BEGIN, CALL_BEGIN)
        self._searched = 0

    def _opened(self, tag: str) -> State:
        self._searched = 0
        return self._between if tag == CALLS_BEGIN else self._head

    def _between(self, pieces: list[Piece]) -> bool:
        self._held = self._held.lstrip()
        for tag, state in ((CALL_BEGIN, self._head), (CALLS_END, self._text)):
            if self._held.startswith(tag):
                self._searched = 0
                return self._go(state, len(tag))
        if any(tag.startswith(self._held) for tag in (CALL_BEGIN, CALLS_END)):
            return False
        return self._no_call(pieces, "")

    def _head(self, pieces: list[Piece]) -> bool:
        close, _ = first_tag(self._held, _ENDS, self._searched)
        limit = MAX_HEAD_CHARS if close < 0 else min(close, MAX_HEAD_CHARS)
        head = _HEAD.match(self._held, 0, limit)
        if head:
            pieces.append(self._begin((head[2] or head[1]).strip()))
            return self._go(self._arguments, head.end())
        if close >= 0 or len(self._held) >= MAX_HEAD_CHARS:
            return self._no_call(pieces, CALL_BEGIN)
        self._searched = max(0, len(self._held) - max(map(len, _ENDS)) + 1)
        return False

    def _arguments(self, pieces: list[Piece]) -> bool:
        return self._arguments_end(pieces) and self._go(self._tail, 0)

    def _tail(self, _pieces: list[Piece]) -> bool:
        place, tag = first_tag(self._held, _ENDS)
        if not tag:
            self._held = self._held[-max(map(len, _ENDS)) + 1 :]
            return False
        self._searched = 0
        states: dict[str, State] = {
            CALL_BEGIN: self._head,
            CALL_END: self._between,
            CALLS_END: self._text,
        }
        return self._go(states[tag], place + len(tag))

    def _cut_off(self, pieces: list[Piece]) -> None:
        if self._state == self._head:
            pieces.append(Piece(text=CALL_BEGIN + self._held))
        elif self._state == self._between and self._held:
            pieces.append(Piece(text=self._held))
