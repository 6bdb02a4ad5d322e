"""Reads tool calls in the Hermes format, which Qwen models write.

    <tool_call>
    {"name": "weather", "arguments": {"city": "Oslo"}}
    </tool_call>

    text ── <tool_call> ──> head ── {"name": N, "arguments": ──> arguments ── value ends ──> tail
     ^                       │ </tool_call>, read as a whole                                  │
     └───────────────────────┴──────────────────────── </tool_call> ─────────────────────────┘

The arguments are handed on while they are generated, character for character as the model
wrote them. A call in another order, or with arguments as a string, is handed on when it is
complete; one that is not JSON is text. White space before and between calls is dropped. The
result does not depend on how the text is cut into feeds.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable

from appliance.prompting.json_call import MAX_HEAD_CHARS, ObjectEnd, json_string
from appliance.prompting.pieces import Piece, ToolCallPiece, split_trailing_space, unsafe_suffix

_OPEN, _CLOSE = TAGS = ("<tool_call>", "</tool_call>")
_HEAD = re.compile(
    r"""\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)""",
    re.DOTALL,
)


class _State(enum.Enum):
    TEXT = "text"
    HEAD = "head"
    ARGUMENTS = "arguments"
    TAIL = "tail"


class HermesParser:
    """One sequence's parser. `new_id` makes the id of each call."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._state = _State.TEXT
        self._held = ""
        self._searched = 0
        """So much of `_held` is known not to begin a closing tag."""
        self._value = ObjectEnd()
        self.calls = 0
        """Calls begun so far."""

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain now."""
        self._held += text
        pieces: list[Piece] = []
        while True:
            state = self._state
            _STEPS[state](self, pieces)
            if self._state is state:
                return pieces

    def finish(self) -> list[Piece]:
        """The pieces that were held back, now that nothing follows."""
        held, self._held = self._held, ""
        if self._state is _State.HEAD:
            pieces: list[Piece] = []
            self._whole_call(held, pieces, closing="")
            return pieces
        if self._state is _State.TEXT and (held.strip() or not self.calls):
            return [Piece(text=held)] if held else []
        return []

    def _feed_text(self, pieces: list[Piece]) -> None:
        text, tag, rest = self._held.partition(_OPEN)
        if tag:
            self._held, self._state, self._searched = rest, _State.HEAD, 0
            text = text.rstrip()
        else:
            safe = len(text) - unsafe_suffix(text, _OPEN)
            kept, space = split_trailing_space(text[:safe])
            self._held = space + text[safe:]
            text = kept
        if text:
            pieces.append(Piece(text=text))

    def _feed_head(self, pieces: list[Piece]) -> None:
        close = self._held.find(_CLOSE, self._searched)
        limit = MAX_HEAD_CHARS if close < 0 else min(close, MAX_HEAD_CHARS)
        head = _HEAD.match(self._held, 0, limit)
        name = json_string(head[1]) if head else None
        if head and name is not None:
            self._held = self._held[head.end() :]
            self._state, self._value = _State.ARGUMENTS, ObjectEnd()
            pieces.append(self._begin(name, ""))
        elif close >= 0:
            body, self._held = self._held[:close], self._held[close + len(_CLOSE) :]
            self._state = _State.TEXT
            self._whole_call(body, pieces, closing=_CLOSE)
        else:
            self._searched = max(0, len(self._held) - len(_CLOSE) + 1)

    def _feed_arguments(self, pieces: list[Piece]) -> None:
        end = self._value.find(self._held)
        value = self._held if end is None else self._held[:end]
        if value:
            pieces.append(Piece(tool_call=ToolCallPiece(self.calls - 1, arguments_json=value)))
        if end is None:
            self._held = ""
        else:
            self._held, self._state = self._held[end:], _State.TAIL

    def _feed_tail(self, _pieces: list[Piece]) -> None:
        _, tag, rest = self._held.partition(_CLOSE)
        if tag:
            self._held, self._state = rest, _State.TEXT
        else:
            self._held = self._held[-(len(_CLOSE) - 1) :]

    def _begin(self, name: str, arguments_json: str) -> Piece:
        self.calls += 1
        return Piece(tool_call=ToolCallPiece(self.calls - 1, self._new_id(), name, arguments_json))

    def _whole_call(self, body: str, pieces: list[Piece], *, closing: str) -> None:
        call = _read_call(body)
        if call is None:
            pieces.append(Piece(text=_OPEN + body + closing))
        else:
            pieces.append(self._begin(*call))


_STEPS = {
    _State.TEXT: HermesParser._feed_text,
    _State.HEAD: HermesParser._feed_head,
    _State.ARGUMENTS: HermesParser._feed_arguments,
    _State.TAIL: HermesParser._feed_tail,
}


def _read_call(body: str) -> tuple[str, str] | None:
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        return call["name"], arguments
    return call["name"], json.dumps(arguments, ensure_ascii=False)
