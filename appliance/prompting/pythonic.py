"""Reads tool calls that are a list as Python would write it, while it is generated.

    [weather(city="Oslo", days=[1, 2]), clock()]

    begun ── [ ──> list ── name ( ──> arguments ── last ) ──> list ── ] ──> tail
      │             │ no call          (python_arguments.py)
      v             v
    text <──────────┘

Where a list may begin, a format says: behind a tag (LFM2), or with the turn and without one
(Llama), where a word in front of a bracket counts only if it is a function that was offered, or a
key follows. In place of a call a JSON object may stand, as in Hermes's format. What is no call is
text. White space around calls is dropped. The result does not depend on how the text is cut into
feeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from appliance.prompting.call_parser import State
from appliance.prompting.json_call import MAX_HEAD_CHARS, Found, JsonCall, ObjectEnd
from appliance.prompting.pieces import Piece
from appliance.prompting.python_arguments import KEY, KEY_BEGUN, PythonArguments

LLAMA: Final = ("<|python_start|>", "<|python_end|>", "<|python_tag|>")
"""What Llama's models put around a list, or in front of it."""
_NAME = r"[A-Za-z_][A-Za-z0-9_.-]{0,255}"
_CALL = re.compile(rf"({_NAME})\s*\(")
_CALL_BEGUN = re.compile(rf"{_NAME}\s*")


class PythonicCalls(PythonArguments):
    """One sequence's parser.

    Args:
        new_id: makes the id of each call.
        tags: what opens a list, and what closes it.
        tools: the names of each function's parameters.
        at_start: whether a list needs no tag; then the tags are left out wherever they stand.
    """

    def __init__(
        self,
        new_id: Callable[[], str],
        tags: Iterable[str],
        tools: Mapping[str, Sequence[str]],
        *,
        at_start: bool = False,
    ) -> None:
        super().__init__(new_id, tags)
        self._tools, self._at_start = tools, at_start
        self._lead: list[str] = []
        """What came in front of a list's first call."""
        self._fresh = True
        """No call of the list was read."""
        self._call = JsonCall()
        if at_start:
            self._state = self._begun

    def _opened(self, tag: str) -> State:
        self._lead, self._fresh = [] if self._at_start else [tag], True
        return self._begun if self._at_start or tag == self._tags[0] else self._text

    def _begun(self, pieces: list[Piece]) -> bool:
        self._leave_space()
        if not self._held or self._tag_begun():
            return False
        for tag in self._tags:
            if self._held.startswith(tag):
                return self._go(self._opened(tag), len(tag))
        self._fresh = True
        if self._held.startswith("["):
            self._lead.append("[")
            return self._go(self._list, 1)
        return self._none(pieces) if self._at_start else self._go(self._list, 0)

    def _list(self, pieces: list[Piece]) -> bool:
        if self._fresh:
            self._leave_space()
        else:
            self._held = self._held.lstrip(",; \t\r\n")
        if not self._held or self._tag_begun():
            return False
        if self._held[0] == "]" and not self._fresh:
            return self._go(self._tail, 1)
        if self._at_tag() and not self._fresh:
            return self._go(self._tail, 0)
        if self._held[0] == "{":
            self._call = JsonCall()
            return self._go(self._object, 0)
        seen = self._held[:MAX_HEAD_CHARS]
        call = _CALL.match(seen)
        known = self._is_call(call[1], seen[call.end() :].lstrip()) if call else None
        if call and known:
            pieces.append(self._begin_call(call[1], self._tools.get(call[1], ())))
            self._lead, self._fresh = [], False
            return self._go(self._argument, call.end())
        undecided = known is None if call else _CALL_BEGUN.fullmatch(seen)
        return not (undecided and len(seen) < MAX_HEAD_CHARS) and self._none(pieces)

    def _is_call(self, name: str, inside: str) -> bool | None:
        """Whether a name in front of a bracket is a function's; None: it may be."""
        if not self._at_start or not self._fresh or name in self._tools:
            return True
        if inside.startswith(")") or KEY.match(inside):
            return True
        return None if not inside or KEY_BEGUN.fullmatch(inside) else False

    def _object(self, pieces: list[Piece]) -> bool:
        found = self._call.look(self._held)
        if found is Found.UNDECIDED:
            return False
        if found is Found.NO_CALL:
            return self._none(pieces)
        self._lead, self._fresh = [], False
        pieces.append(self._begin(self._call.name, self._call.arguments_json))
        return self._go(self._json if found is Found.HEAD else self._list, self._call.end)

    def _json(self, pieces: list[Piece]) -> bool:
        if not self._arguments_end(pieces):
            return False
        self._value = ObjectEnd(depth=1)
        return self._go(self._json_tail, 0)

    def _json_tail(self, _pieces: list[Piece]) -> bool:
        return self._skipped() and self._go(self._list, 0)

    def _tail(self, _pieces: list[Piece]) -> bool:
        """Behind a list."""
        self._held = self._held.lstrip()
        return bool(self._held) and self._go(self._begun if self._at_start else self._text, 0)

    def _leave_space(self) -> None:
        seen = self._held.lstrip()
        if len(seen) < len(self._held):
            self._lead.append(self._held[: len(self._held) - len(seen)])
        self._held = seen

    def _none(self, pieces: list[Piece]) -> bool:
        """What came so far is no call."""
        return self._no_call(pieces, self._taken_back())

    def _taken_back(self) -> str:
        lead, self._lead = "".join(self._lead), []
        return lead.lstrip() if self.calls else lead

    def _cut_off(self, pieces: list[Piece]) -> None:
        if self._state not in (self._begun, self._list, self._object):
            super()._cut_off(pieces)
        elif (text := self._taken_back() + self._held) and (text.strip() or not self.calls):
            pieces.append(Piece(text=text))
