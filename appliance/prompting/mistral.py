"""Reads tool calls in Mistral's formats, and in Granite's, which has a tag of its own.

    [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}}, {"name": ...}]
    [TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Oslo"}[TOOL_CALLS]...
    [TOOL_CALLS]weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]...

    text ── [TOOL_CALLS] ──> begun ── [ ──> list ── { ──> object ── "arguments": ──┐
     ^                       │  │ other      ^   │ ]                               v
     │                       │  v            └───┼─ outer } ── tail <── ends ── arguments
     ├───────────────────────┘ name ── { ──> arguments
     └── no call, or after it ───┴───────────────┴──────┘

The arguments are handed on while they are generated; what is no call is text. An id that the
model wrote is left out, since each call gets one here. White space around calls is dropped. The
result does not depend on how the text is cut into feeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from appliance.prompting.call_parser import CallMachine, State
from appliance.prompting.json_call import MAX_HEAD_CHARS, Found, JsonCall, ObjectEnd
from appliance.prompting.pieces import Piece

BEGIN, CALL_ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
TAGS = (BEGIN, CALL_ID, ARGUMENTS)
_NAME = re.compile(r"\s*([^\[\s{]+)\s*(?:\[CALL_ID\]([^\[{]*))?(?:\[ARGS\])?\s*(?=\{)")


class MistralParser(CallMachine):
    """One sequence's parser. `new_id` makes the id of each call, which `tag` begins."""

    def __init__(self, new_id: Callable[[], str], tag: str = BEGIN) -> None:
        super().__init__(new_id, tag)
        self._tag = tag
        self._call = JsonCall()
        self._in_list = False
        self._lead = ""
        """What came in front of a list's first call."""

    def _opened(self, _tag: str) -> State:
        self._in_list, self._lead = False, self._tag
        return self._begun

    def _begun(self, _pieces: list[Piece]) -> bool:
        self._held = self._held.lstrip()
        if not self._held:
            return False
        if self._held.startswith("["):
            self._in_list, self._lead = True, f"{self._tag}["
            return self._go(self._list, 1)
        return self._go(self._name, 0)

    def _list(self, pieces: list[Piece]) -> bool:
        self._held = self._held.lstrip(" \t\r\n" if self._lead else ", \t\r\n")
        if not self._held:
            return False
        if self._held.startswith("{"):
            self._call = JsonCall()
            return self._go(self._object, 0)
        if self._held.startswith("]") and not self._lead:
            return self._go(self._text, 1)
        return self._no_call(pieces, self._lead)

    def _object(self, pieces: list[Piece]) -> bool:
        call = self._call
        found = call.look(self._held)
        if found is Found.UNDECIDED:
            return False
        if found is Found.NO_CALL:
            return self._no_call(pieces, self._lead)
        self._lead = ""
        pieces.append(self._begin(call.name, call.arguments_json))
        return self._go(self._arguments if found is Found.HEAD else self._list, call.end)

    def _name(self, pieces: list[Piece]) -> bool:
        again = self._held.find(self._tag)
        limit = MAX_HEAD_CHARS if again < 0 else min(again, MAX_HEAD_CHARS)
        head = _NAME.match(self._held, 0, limit)
        if head:
            pieces.append(self._begin(head[1]))
            return self._go(self._arguments, head.end())
        if again >= 0 or len(self._held) >= MAX_HEAD_CHARS:
            return self._no_call(pieces, self._tag)
        return False

    def _arguments(self, pieces: list[Piece]) -> bool:
        if not self._arguments_end(pieces):
            return False
        self._value = ObjectEnd(depth=1)
        return self._go(self._tail if self._in_list else self._text, 0)

    def _tail(self, _pieces: list[Piece]) -> bool:
        end = self._value.find(self._held)
        self._held = "" if end is None else self._held[end:]
        return end is not None and self._go(self._list, 0)

    def _cut_off(self, pieces: list[Piece]) -> None:
        if self._state in (self._begun, self._name, self._list, self._object):
            text = self._lead + self._held
            if text:
                pieces.append(Piece(text=text))
