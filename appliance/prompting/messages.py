"""Reads turns that are made of several messages, each with a header that says what it is.

    header ── <|message|> ──> body ── an end ──> between ── <|start|> ──┐
      ^                        │ <|start|>                              │
      └────────────────────────┴────────────────────────────────────────┘

Owns the way through them; what a header means a format says (harmony.py, muse.py). The prompt ends
with a start and the model's role, so a turn begins inside of a header; a turn without any is text.
The result does not depend on how the text is cut into feeds.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from appliance.prompting.call_parser import CallParser
from appliance.prompting.pieces import Piece, first_tag, unsafe_suffix

START, MESSAGE = "<|start|>", "<|message|>"
_MAX_HEADER_CHARS = 1024


class Kind(enum.Enum):
    """What a message is."""

    TEXT = "text"
    REASONING = "reasoning"
    CALL = "call"


class _State(enum.Enum):
    HEADER = "header"
    BODY = "body"
    BETWEEN = "between"


@dataclass(frozen=True, slots=True)
class Marks:
    """Attributes:
    opening: what begins a header, or stands in one; all but the start stay in it.
    ends: what ends a body.
    words: what else a header can begin with.
    """

    opening: tuple[str, ...]
    ends: tuple[str, ...]
    words: tuple[str, ...]


class Channels(CallParser, Protocol):
    """A parser of such turns."""

    @property
    def reasoning(self) -> bool:
        """Whether the text fed last was inside of reasoning."""


class MessageParser:
    """The frame of one sequence's parser.

    Args:
        new_id: makes the id of each call.
        tools: whether tools were offered; if not, a call is text.
        continued: the prompt ended inside of a message to the user.
    """

    marks: Marks

    def __init__(
        self, new_id: Callable[[], str], *, tools: bool = True, continued: bool = False
    ) -> None:
        self._new_id = new_id
        self._tools = tools
        self._state = _State.BODY if continued else _State.HEADER
        self._kind = Kind.TEXT
        self._held = ""
        self._messages = 1 if continued else 0
        self._said_before: set[Kind] = {Kind.TEXT} if continued else set()
        self._gap = ""
        """What sets a message apart from the one before of its kind."""
        self.calls = 0

    @property
    def reasoning(self) -> bool:
        """Whether the text fed last was inside of reasoning."""
        return self._state is _State.BODY and self._kind is Kind.REASONING

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain now."""
        self._held += text
        pieces: list[Piece] = []
        while _STEPS[self._state](self, pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """The pieces that were held back, now that nothing follows."""
        held, self._held = self._held, ""
        # A header that is cut off says nothing, but for a turn that has none.
        plain = self._state is _State.HEADER and not self._messages and not self._is_header(held)
        said = self._said(held) if plain or self._state is _State.BODY else []
        return [*said, *self._closed()] if self._state is _State.BODY else said

    def _opened(self, header: str, pieces: list[Piece]) -> Kind:
        """A message begins: what it is, by its header."""
        raise NotImplementedError

    def _called(self, text: str) -> list[Piece]:
        """Some of the body of a call."""
        raise NotImplementedError

    def _closed(self) -> list[Piece]:
        """A body ends: what was held back of it."""
        return []

    def _header(self, pieces: list[Piece]) -> bool:
        header, tag, rest = self._held.partition(MESSAGE)
        if tag and len(header) <= _MAX_HEADER_CHARS:
            self._held = rest
            self._kind = self._opened(header, pieces)
            self._gap = "\n\n" if self._kind in self._said_before else ""
        elif len(self._held) > _MAX_HEADER_CHARS + len(MESSAGE):
            self._kind = Kind.TEXT
        else:
            return False
        self._messages += 1
        self._state = _State.BODY
        return True

    def _body(self, pieces: list[Piece]) -> bool:
        leaves = (*self.marks.opening, *self.marks.ends)
        place, tag = first_tag(self._held, leaves)
        if not tag:
            safe = len(self._held) - max(unsafe_suffix(self._held, t) for t in leaves)
            pieces += self._said(self._held[:safe])
            self._held = self._held[safe:]
            return False
        pieces += self._said(self._held[:place])
        pieces += self._closed()
        # What stands in a header, without a start: the model left the end of the body out.
        behind = place + len(tag) if tag == START or tag in self.marks.ends else place
        self._held = self._held[behind:]
        self._state = _State.HEADER if tag in self.marks.opening else _State.BETWEEN
        return True

    def _between(self, _pieces: list[Piece]) -> bool:
        opening = self.marks.opening
        place, tag = first_tag(self._held, opening)
        if not tag:
            self._held = self._held[-max(map(len, opening)) + 1 :]
            return False
        self._held = self._held[place + len(tag) if tag == START else place :]
        self._state = _State.HEADER
        return True

    def _said(self, text: str) -> list[Piece]:
        if not text:
            return []
        if self._kind is Kind.CALL:
            return self._called(text)
        self._said_before.add(self._kind)
        text, self._gap = self._gap + text, ""
        reasons = self._kind is Kind.REASONING
        return [Piece(reasoning=text) if reasons else Piece(text=text)]

    def _is_header(self, text: str) -> bool:
        text = text.lstrip()
        words = self.marks.words
        return text.startswith(words) or any(word.startswith(text) for word in words)


_STEPS = {
    _State.HEADER: MessageParser._header,
    _State.BODY: MessageParser._body,
    _State.BETWEEN: MessageParser._between,
}
