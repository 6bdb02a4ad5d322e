"""Splits generated text into reasoning and answer, at the model's reasoning tags.

    start ── white space ──> start
      │ opening tag               │ anything else, or a closing tag
      v                           v
    reasoning ── closing tag ──> answer

Tags count only in this order: an opening tag later in the answer is text. With a closing tag at
once, MiniMax-M3 says that it does not reason; it is dropped. So is white space around the
reasoning, which belongs to the tags. The result does not depend on how the text is
cut into feeds.
"""

from __future__ import annotations

import enum

from appliance.prompting.pieces import Piece, split_trailing_space, unsafe_suffix


class _State(enum.Enum):
    START = "start"
    REASONING = "reasoning"
    ANSWER = "answer"


class ReasoningSplitter:
    """One sequence's splitter. `opened`: the prompt already ended with the opening tag."""

    def __init__(self, start: str, end: str, *, opened: bool = False) -> None:
        assert start
        assert end
        self._start, self._end = start, end
        self._state = _State.REASONING if opened else _State.START
        self._held = ""
        self._at_edge = True
        """Nothing but white space was seen since the last tag."""

    @property
    def reasoning(self) -> bool:
        """Whether the text fed last was inside the tags."""
        return self._state is _State.REASONING

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain now."""
        self._held += text
        pieces: list[Piece] = []
        while True:
            state = self._state
            piece = _STEPS[state](self)
            if piece is not None:
                pieces.append(piece)
            if self._state is state:
                return pieces

    def finish(self) -> list[Piece]:
        """The pieces that were held back, now that nothing follows."""
        held, self._held = self._held, ""
        if self._state is _State.REASONING:
            held = self._trimmed(held).rstrip()
            return [Piece(reasoning=held)] if held else []
        if self._state is _State.ANSWER:
            held = self._trimmed(held)
        return [Piece(text=held)] if held else []

    def _feed_start(self) -> Piece | None:
        seen = self._held.lstrip()
        if seen.startswith(self._start):
            self._held = seen[len(self._start) :]
            self._state = _State.REASONING
        elif seen.startswith(self._end):
            self._held, self._state = seen[len(self._end) :], _State.ANSWER
        elif not self._start.startswith(seen) and not self._end.startswith(seen):
            self._state = _State.ANSWER
            self._at_edge = False
        return None

    def _feed_reasoning(self) -> Piece | None:
        text, tag, rest = self._held.partition(self._end)
        text = self._trimmed(text)
        if tag:
            self._held, self._state, self._at_edge = rest, _State.ANSWER, True
            text = text.rstrip()
        else:
            safe = len(text) - unsafe_suffix(text, self._end)
            kept, space = split_trailing_space(text[:safe])
            self._held = space + text[safe:]
            text = kept
            self._at_edge = self._at_edge and not text
        return Piece(reasoning=text) if text else None

    def _feed_answer(self) -> Piece | None:
        text, self._held = self._trimmed(self._held), ""
        self._at_edge = self._at_edge and not text
        return Piece(text=text) if text else None

    def _trimmed(self, text: str) -> str:
        return text.lstrip() if self._at_edge else text


_STEPS = {
    _State.START: ReasoningSplitter._feed_start,
    _State.REASONING: ReasoningSplitter._feed_reasoning,
    _State.ANSWER: ReasoningSplitter._feed_answer,
}
