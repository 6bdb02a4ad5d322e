"""Reads tool calls that stand one by one in a section, each between tags of its own.

    text ── begin ──> between ── call begins ──> head ── { ──> arguments ── ends ──> tail
     ^                │    ^                      │ call ends                         │
     └──── other ─────┘    └──────── call ends ───┼───────────────────────────────────┘
     └──────────────────── no call ───────────────┘

What a call's head is, up to its arguments, a format says (deepseek.py, kimi.py). The arguments are
handed on while they are generated. What has no such form is text. White space around calls is
dropped. The result does not depend on how the text is cut into feeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from appliance.prompting.call_parser import CallMachine, State
from appliance.prompting.json_call import MAX_HEAD_CHARS
from appliance.prompting.pieces import Piece, first_tag


@dataclass(frozen=True, slots=True)
class Section:
    """The tags of a section and of each call in it.

    head: a call behind its tag, up to the brace that opens its arguments; the last of its groups
        that is not empty is the name.
    """

    begin: str
    end: str
    call_begin: str
    call_end: str
    head: re.Pattern[str]

    @property
    def ends(self) -> tuple[str, ...]:
        """What may stand behind a call."""
        return (self.call_begin, self.call_end, self.end)


class SectionedCalls(CallMachine):
    """One sequence's parser. `new_id` makes the id of each call."""

    def __init__(self, new_id: Callable[[], str], section: Section) -> None:
        super().__init__(new_id, section.begin, section.call_begin)
        self._section = section
        self._searched = 0

    def _opened(self, tag: str) -> State:
        self._searched = 0
        return self._between if tag == self._section.begin else self._head

    def _between(self, pieces: list[Piece]) -> bool:
        self._held = self._held.lstrip()
        for tag, state in ((self._section.call_begin, self._head), (self._section.end, self._text)):
            if self._held.startswith(tag):
                self._searched = 0
                return self._go(state, len(tag))
        if any(tag.startswith(self._held) for tag in (self._section.call_begin, self._section.end)):
            return False
        return self._no_call(pieces, "")

    def _head(self, pieces: list[Piece]) -> bool:
        close, _ = first_tag(self._held, self._section.ends, self._searched)
        limit = MAX_HEAD_CHARS if close < 0 else min(close, MAX_HEAD_CHARS)
        head = self._section.head.match(self._held, 0, limit)
        name = _name(head) if head else ""
        if head and name:
            pieces.append(self._begin(name))
            return self._go(self._arguments, head.end())
        if head or close >= 0 or len(self._held) >= MAX_HEAD_CHARS:
            return self._no_call(pieces, self._section.call_begin)
        self._searched = max(0, len(self._held) - max(map(len, self._section.ends)) + 1)
        return False

    def _arguments(self, pieces: list[Piece]) -> bool:
        return self._arguments_end(pieces) and self._go(self._tail, 0)

    def _tail(self, _pieces: list[Piece]) -> bool:
        place, tag = first_tag(self._held, self._section.ends)
        if not tag:
            self._held = self._held[-max(map(len, self._section.ends)) + 1 :]
            return False
        self._searched = 0
        states: dict[str, State] = {
            self._section.call_begin: self._head,
            self._section.call_end: self._between,
            self._section.end: self._text,
        }
        return self._go(states[tag], place + len(tag))

    def _cut_off(self, pieces: list[Piece]) -> None:
        if self._state == self._head:
            pieces.append(Piece(text=self._section.call_begin + self._held))
        elif self._state == self._between and self._held:
            pieces.append(Piece(text=self._held))


def _name(head: re.Match[str]) -> str:
    groups: tuple[str | None, ...] = head.groups()
    return next((part.strip() for part in reversed(groups) if part), "")
