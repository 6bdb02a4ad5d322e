"""Reads tool calls in the format of Llama 3: a call is the whole message.

    {"name": "weather", "parameters": {"city": "Oslo"}}
    <|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}; {"name": ...}

    start ── { or tag ──> object ── "parameters": ──> arguments ── value ends ──> tail
      │ other               │ no call                    ^                          │ outer }
      v                     v                            └── object <── ; { ── between
    text <──────────────────┴──────────────────────────────────── other ──────────┘

An object counts as a call only if it has a name and an object of arguments; every other answer
is text, handed on as soon as its first key shows that it is none. White space around calls is
dropped. The result does not depend on how the text is cut into feeds.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.prompting.call_parser import CallMachine
from appliance.prompting.json_call import Found, JsonCall, ObjectEnd
from appliance.prompting.pieces import Piece

TAG = "<|python_tag|>"


class LlamaParser(CallMachine):
    """One sequence's parser. `new_id` makes the id of each call; `tags` lead to one."""

    def __init__(self, new_id: Callable[[], str], *tags: str) -> None:
        super().__init__(new_id, *(tags or (TAG,)))
        self._state = self._start
        self._lead: list[str] = []
        """What came in front of the object that is looked at: white space, the tag."""
        self._call = JsonCall()

    def _start(self, pieces: list[Piece]) -> bool:
        seen = self._held.lstrip()
        self._lead.append(self._held[: len(self._held) - len(seen)])
        self._held = seen
        if seen.startswith(TAG) and TAG not in self._lead:
            self._lead.append(TAG)
            return self._go(self._start, len(TAG))
        if seen.startswith("{"):
            self._call = JsonCall()
            return self._go(self._object, 0)
        if not seen or (TAG.startswith(seen) and TAG not in self._lead):
            return False
        return self._plain(pieces)

    def _object(self, pieces: list[Piece]) -> bool:
        call = self._call
        found = call.look(self._held)
        if found is Found.UNDECIDED:
            return False
        if found is Found.NO_CALL:
            return self._plain(pieces)
        self._lead = []
        pieces.append(self._begin(call.name, call.arguments_json))
        return self._go(self._arguments if found is Found.HEAD else self._between, call.end)

    def _arguments(self, pieces: list[Piece]) -> bool:
        if not self._arguments_end(pieces):
            return False
        self._value = ObjectEnd(depth=1)
        return self._go(self._tail, 0)

    def _tail(self, _pieces: list[Piece]) -> bool:
        return self._skipped() and self._go(self._between, 0)

    def _between(self, pieces: list[Piece]) -> bool:
        self._held = self._held.lstrip("; \t\r\n")
        if not self._held:
            return False
        return self._go(self._start, 0)

    def _plain(self, pieces: list[Piece]) -> bool:
        """No call begins here: all the rest is text."""
        text = "".join(self._lead) + self._held
        self._lead, self._held = [], ""
        if text:
            pieces.append(Piece(text=text))
        self._state = self._rest
        return False

    def _rest(self, pieces: list[Piece]) -> bool:
        if self._held:
            pieces.append(Piece(text=self._held))
            self._held = ""
        return False

    def _cut_off(self, pieces: list[Piece]) -> None:
        if self._state in (self._start, self._object) and (self._held or not self.calls):
            self._plain(pieces)
