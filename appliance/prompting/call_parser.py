"""What all parsers of tool calls share.

A parser is a state machine: its state is a method that takes what it can from the text held and
says whether to go on at once, in a new state. Its result does not depend on how the text is cut
into feeds, and its cost is linear in the text: what is held back is bounded, or kept in parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from appliance.prompting.json_call import ObjectEnd
from appliance.prompting.pieces import Piece, TagFinder, ToolCallPiece

State = Callable[[list[Piece]], bool]


class CallParser(Protocol):
    """Tells calls from text, for one sequence."""

    @property
    def calls(self) -> int:
        """Calls begun so far."""

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain now."""

    def finish(self) -> list[Piece]:
        """The pieces that were held back, now that nothing follows."""


class CallMachine:
    """The machine's frame. `new_id` makes the id of each call; `tags` begin one in a text."""

    def __init__(self, new_id: Callable[[], str], *tags: str) -> None:
        self._new_id = new_id
        self._held = ""
        self._finder = TagFinder(*tags)
        self._value = ObjectEnd()
        self._state: State = self._text
        self.calls = 0

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain now."""
        self._held += text
        pieces: list[Piece] = []
        while self._state(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """The pieces that were held back, now that nothing follows."""
        pieces: list[Piece] = []
        if self._state == self._text:
            held = self._finder.finish()
            if held and (held.strip() or not self.calls):
                pieces.append(Piece(text=held))
        else:
            self._cut_off(pieces)
        self._held = ""
        return pieces

    def _cut_off(self, pieces: list[Piece]) -> None:
        """The text ended outside of the state `_text`."""
        raise NotImplementedError

    def _opened(self, tag: str) -> State:
        """The state behind `tag`, which the text was searched for."""
        raise NotImplementedError

    def _text(self, pieces: list[Piece]) -> bool:
        text, tag, self._held = self._finder.feed(self._held)
        if text:
            pieces.append(Piece(text=text))
        if tag:
            self._state = self._opened(tag)
        return bool(tag)

    def _go(self, state: State, behind: int) -> bool:
        """Go on in `state` with what is held behind so many characters."""
        self._held = self._held[behind:]
        self._state = state
        return True

    def _no_call(self, pieces: list[Piece], tag: str) -> bool:
        """What looked like a call is text: `tag` and what is held, searched for other calls."""
        if tag:
            pieces.append(Piece(text=tag))
        return self._go(self._text, 0)

    def _arguments_end(self, pieces: list[Piece]) -> bool:
        """Hand on what is held of a JSON object; true if it ended."""
        end = self._value.find(self._held)
        value = self._held[:end]
        self._held = "" if end is None else self._held[end:]
        if value:
            pieces.append(self._more(value))
        return end is not None

    def _skipped(self) -> bool:
        """Drop what is held of the JSON object around the arguments; true if it ended."""
        end = self._value.find(self._held)
        self._held = "" if end is None else self._held[end:]
        return end is not None

    def _begin(self, name: str, arguments_json: str = "") -> Piece:
        self.calls += 1
        self._value = ObjectEnd()
        return Piece(tool_call=ToolCallPiece(self.calls - 1, self._new_id(), name, arguments_json))

    def _more(self, arguments_json: str) -> Piece:
        return Piece(tool_call=ToolCallPiece(self.calls - 1, arguments_json=arguments_json))
