"""Reads tool calls that are a list of JSON objects between two tags, while it is generated.

    text ── begin, [ ──> list ── { ──> object ── head ──> arguments ── ends ──> tail
     ^                   │  ^                                                   │ }
     │                   │  └───────────────────────────────────────────────────┘
     └── ], or no call ──┴──────────────┘

What an object's head is, up to its arguments, a format says (apertus.py, cohere.py). The arguments
are handed on while they are generated; what is no call is text, and a closing tag is dropped
wherever it comes. White space around calls is dropped. The result does not depend on how the text
is cut into feeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from appliance.prompting.call_parser import CallMachine, State
from appliance.prompting.json_call import MAX_HEAD_CHARS, ObjectEnd, json_string
from appliance.prompting.pieces import Piece


class ListedCalls(CallMachine):
    """One sequence's parser.

    Args:
        new_id: makes the id of each call.
        tags: what opens a list, and what closes it.
        head: an object up to the brace that opens its arguments; its first group is the name.
    """

    def __init__(
        self, new_id: Callable[[], str], tags: tuple[str, str], head: re.Pattern[str]
    ) -> None:
        super().__init__(new_id, *tags)
        self._tags, self._head = tags, head
        self._object_end = ObjectEnd()
        self._searched = 0
        self._lead = ""
        """What came in front of the first call."""

    def _opened(self, tag: str) -> State:
        self._lead = self._tags[0]
        return self._begun if tag == self._tags[0] else self._text

    def _begun(self, pieces: list[Piece]) -> bool:
        self._held = self._held.lstrip()
        if not self._held:
            return False
        if self._held.startswith("["):
            self._lead = f"{self._tags[0]}["
            return self._go(self._list, 1)
        return self._no_call(pieces, self._lead)

    def _list(self, pieces: list[Piece]) -> bool:
        self._held = self._held.lstrip(" \t\r\n" if self._lead else ", \t\r\n")
        if not self._held:
            return False
        if self._held.startswith("]") and not self._lead:
            return self._go(self._text, 1)
        if not self._held.startswith("{"):
            return self._no_call(pieces, self._lead)
        self._object_end, self._searched = ObjectEnd(), 0
        return self._go(self._object, 0)

    def _object(self, pieces: list[Piece]) -> bool:
        head = self._head.match(self._held, 0, MAX_HEAD_CHARS)
        name = json_string(head[1]) if head else None
        if head and name is not None:
            self._lead = ""
            pieces.append(self._begin(name))
            return self._go(self._arguments, head.end())
        end = self._object_end.find(self._held[:MAX_HEAD_CHARS], self._searched)
        if end is None and len(self._held) < MAX_HEAD_CHARS:
            self._searched = len(self._held)
            return False
        return self._no_call(pieces, self._lead)

    def _arguments(self, pieces: list[Piece]) -> bool:
        if not self._arguments_end(pieces):
            return False
        self._value = ObjectEnd(depth=1)
        return self._go(self._tail, 0)

    def _tail(self, _pieces: list[Piece]) -> bool:
        return self._skipped() and self._go(self._list, 0)

    def _cut_off(self, pieces: list[Piece]) -> None:
        if self._state in (self._begun, self._list, self._object) and self._lead + self._held:
            pieces.append(Piece(text=self._lead + self._held))
