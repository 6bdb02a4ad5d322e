"""Reads the harmony format of gpt-oss, in which a turn is several messages.

    <|channel|>analysis<|message|>They ask for the weather.<|end|>
    <|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>
    {"city": "Oslo"}<|call|>

The channel says what a message is: `analysis` is reasoning, a message to `functions.NAME` is a
call, `commentary` to nobody and `final` are text. A message to anything else, such as a tool
that is built in elsewhere, is no answer: it counts as reasoning.
"""

from __future__ import annotations

import re

from appliance.prompting.messages import MESSAGE, START, Kind, Marks, MessageParser
from appliance.prompting.pieces import Piece, ToolCallPiece

CHANNEL = "<|channel|>"
CONSTRAIN, END, CALL, RETURN = "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"
TAGS = (START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN)
ANALYSIS = f"{CHANNEL}analysis{MESSAGE}"
"""What opens reasoning."""
_CHANNEL = re.compile(rf"{re.escape(CHANNEL)}\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_FUNCTIONS = "functions."


class HarmonyParser(MessageParser):
    """One sequence's parser."""

    marks = Marks((START, CHANNEL), (END, CALL, RETURN), (CHANNEL, "to="))

    def _opened(self, header: str, pieces: list[Piece]) -> Kind:
        channels, recipients = _CHANNEL.findall(header), _RECIPIENT.findall(header)
        channel = channels[-1] if channels else ""
        recipient = recipients[-1] if recipients else ""
        if recipient.startswith(_FUNCTIONS) and self._tools:
            self.calls += 1
            name = recipient.removeprefix(_FUNCTIONS)
            call = ToolCallPiece(self.calls - 1, self._new_id(), name)
            pieces.append(Piece(tool_call=call))
            return Kind.CALL
        elsewhere = recipient and not recipient.startswith(_FUNCTIONS)
        return Kind.REASONING if elsewhere or channel == "analysis" else Kind.TEXT

    def _called(self, text: str) -> list[Piece]:
        return [Piece(tool_call=ToolCallPiece(self.calls - 1, arguments_json=text))]
