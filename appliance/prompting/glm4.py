"""Reads tool calls in the format of GLM-4 of April 2025: a function's name, a line end, JSON.

    weather
    {"city": "Oslo"}<|assistant|>clock
    {}

    start ── name, line end, { ──> arguments ── ends ──> start
      │ other             ^
      v                   │
    text ── <|assistant|> ┘

No tag begins a call, so a first line counts only if it is the name of a function that was offered,
and an object follows; everything else is text, handed on as soon as it is none. The tag is left out
wherever it comes, as is white space around calls. The result does not depend on how the text is
cut into feeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from appliance.prompting.call_parser import CallMachine, State
from appliance.prompting.json_call import MAX_HEAD_CHARS
from appliance.prompting.pieces import Piece

TURN: Final = "<|assistant|>"
OBSERVATION, USER = "<|observation|>", "<|user|>"
TAGS: Final = (TURN,)
_HEAD = re.compile(r"([^\s{}<>`]{1,512})[ \t]*\n\s*(?=\{)")
_BEGUN = re.compile(r"([^\s{}<>`]{1,512})(\s*)")


class Glm4Parser(CallMachine):
    """One sequence's parser. `new_id` makes the id of each call; `names`: the functions'."""

    def __init__(self, new_id: Callable[[], str], names: Iterable[str]) -> None:
        super().__init__(new_id, *TAGS)
        self._names = frozenset(names)
        self._state = self._start
        self._lead: list[str] = []
        """White space in front of what is looked at."""

    def _opened(self, _tag: str) -> State:
        return self._start

    def _start(self, pieces: list[Piece]) -> bool:
        seen = self._held.lstrip()
        self._lead.append(self._held[: len(self._held) - len(seen)])
        self._held = seen
        if seen.startswith(TURN):
            self._lead = []
            return self._go(self._start, len(TURN))
        head = _HEAD.match(seen, 0, MAX_HEAD_CHARS)
        if head and head[1] in self._names:
            self._lead = []
            pieces.append(self._begin(head[1]))
            return self._go(self._arguments, head.end())
        return not self._may_begin(seen) and self._plain()

    def _may_begin(self, seen: str) -> bool:
        """Whether what follows can make a call, or a tag, of it."""
        if TURN.startswith(seen):
            return True
        begun = _BEGUN.fullmatch(seen, 0, MAX_HEAD_CHARS)
        if not begun or len(seen) >= MAX_HEAD_CHARS:
            return False
        return begun[1] in self._names or (
            not begun[2] and any(name.startswith(seen) for name in self._names)
        )

    def _arguments(self, pieces: list[Piece]) -> bool:
        return self._arguments_end(pieces) and self._go(self._start, 0)

    def _plain(self) -> bool:
        """No call begins here: text up to the next tag."""
        lead, self._lead = "" if self.calls else "".join(self._lead), []
        self._held = lead + self._held
        return self._go(self._text, 0)

    def _cut_off(self, pieces: list[Piece]) -> None:
        if self._state == self._start and (self._held or not self.calls):
            text = ("" if self.calls else "".join(self._lead)) + self._held
            if text:
                pieces.append(Piece(text=text))
