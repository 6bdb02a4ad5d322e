"""Reads the harmony format of gpt-oss, in which a turn is several messages.

    <|channel|>analysis<|message|>They ask for the weather.<|end|>
    <|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>
    {"city": "Oslo"}<|call|>

    header ── <|message|> ──> body ── <|end|>, <|call|>, <|return|> ──> between ── <|start|> ──┐
      ^                        │ <|start|>, <|channel|>                                        │
      └────────────────────────┴───────────────────────────────────────────────────────────────┘

The channel says what a message is: `analysis` is reasoning, a message to `functions.NAME` is a
call, `commentary` to nobody and `final` are text. A message to anything else, such as a tool
that is built in elsewhere, is no answer: it counts as reasoning. The prompt ends with
`<|start|>assistant`, so a turn begins inside of a header; a turn without channels is text. The
result does not depend on how the text is cut into feeds.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable

from appliance.prompting.pieces import Piece, ToolCallPiece, first_tag, unsafe_suffix

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
CONSTRAIN, END, CALL, RETURN = "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"
TAGS = (START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN)
ANALYSIS = f"{CHANNEL}analysis{MESSAGE}"
"""What opens reasoning."""
_LEAVES_BODY = (START, CHANNEL, END, CALL, RETURN)
_MAX_HEADER_CHARS = 1024
_CHANNEL = re.compile(rf"{re.escape(CHANNEL)}\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_FUNCTIONS = "functions."


class _Kind(enum.Enum):
    TEXT = "text"
    REASONING = "reasoning"
    CALL = "call"


class _State(enum.Enum):
    HEADER = "header"
    BODY = "body"
    BETWEEN = "between"


class HarmonyParser:
    """One sequence's parser.

    Args:
        new_id: makes the id of each call.
        tools: whether tools were offered; if not, a call is text.
        continued: the prompt ended inside of a final message.
    """

    def __init__(
        self, new_id: Callable[[], str], *, tools: bool = True, continued: bool = False
    ) -> None:
        self._new_id = new_id
        self._tools = tools
        self._state = _State.BODY if continued else _State.HEADER
        self._kind = _Kind.TEXT
        self._held = ""
        self._messages = 1 if continued else 0
        self._said_before: set[_Kind] = {_Kind.TEXT} if continued else set()
        self._gap = ""
        """What sets a message apart from the one before of its kind."""
        self.calls = 0

    @property
    def reasoning(self) -> bool:
        """Whether the text fed last was inside of reasoning."""
        return self._state is _State.BODY and self._kind is _Kind.REASONING

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
        plain = self._state is _State.HEADER and not self._messages and not _is_header(held)
        return self._said(held) if plain or self._state is _State.BODY else []

    def _header(self, pieces: list[Piece]) -> bool:
        header, tag, rest = self._held.partition(MESSAGE)
        if tag and len(header) <= _MAX_HEADER_CHARS:
            self._held = rest
            self._open(header, pieces)
        elif len(self._held) > _MAX_HEADER_CHARS + len(MESSAGE):
            self._kind = _Kind.TEXT
        else:
            return False
        self._messages += 1
        self._state = _State.BODY
        return True

    def _open(self, header: str, pieces: list[Piece]) -> None:
        """A message begins: what it is, by its header."""
        channels, recipients = _CHANNEL.findall(header), _RECIPIENT.findall(header)
        channel = channels[-1] if channels else ""
        recipient = recipients[-1] if recipients else ""
        self._kind = _Kind.REASONING if channel == "analysis" else _Kind.TEXT
        if recipient.startswith(_FUNCTIONS) and self._tools:
            self._kind = _Kind.CALL
            self.calls += 1
            name = recipient.removeprefix(_FUNCTIONS)
            call = ToolCallPiece(self.calls - 1, self._new_id(), name)
            pieces.append(Piece(tool_call=call))
        elif recipient and not recipient.startswith(_FUNCTIONS):
            self._kind = _Kind.REASONING
        self._gap = "\n\n" if self._kind in self._said_before else ""

    def _body(self, pieces: list[Piece]) -> bool:
        place, tag = first_tag(self._held, _LEAVES_BODY)
        if not tag:
            safe = len(self._held) - max(unsafe_suffix(self._held, t) for t in _LEAVES_BODY)
            pieces += self._said(self._held[:safe])
            self._held = self._held[safe:]
            return False
        pieces += self._said(self._held[:place])
        # A channel without a start: the model left the closing token out.
        behind = place if tag == CHANNEL else place + len(tag)
        self._held = self._held[behind:]
        self._state = _State.HEADER if tag in (START, CHANNEL) else _State.BETWEEN
        return True

    def _between(self, _pieces: list[Piece]) -> bool:
        place, tag = first_tag(self._held, (START, CHANNEL))
        if not tag:
            self._held = self._held[-max(len(START), len(CHANNEL)) + 1 :]
            return False
        self._held = self._held[place if tag == CHANNEL else place + len(tag) :]
        self._state = _State.HEADER
        return True

    def _said(self, text: str) -> list[Piece]:
        if not text:
            return []
        if self._kind is _Kind.CALL:
            return [Piece(tool_call=ToolCallPiece(self.calls - 1, arguments_json=text))]
        self._said_before.add(self._kind)
        text, self._gap = self._gap + text, ""
        reasons = self._kind is _Kind.REASONING
        return [Piece(reasoning=text) if reasons else Piece(text=text)]


def _is_header(text: str) -> bool:
    text = text.lstrip()
    return text.startswith((CHANNEL, "to=")) or CHANNEL.startswith(text)


_STEPS = {
    _State.HEADER: HarmonyParser._header,
    _State.BODY: HarmonyParser._body,
    _State.BETWEEN: HarmonyParser._between,
}
