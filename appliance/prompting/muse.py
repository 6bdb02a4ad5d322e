"""Reads the format of Muse, in which a turn is messages to the model itself, to the user, to tools.

     to=self<|message|>They ask for the weather.<|eom|>
    <|start|>assistant to=weather<|message|><atem:function_calls>
    <atem:invoke name="weather">
    <atem:parameter name="city">Oslo</atem:parameter>
    </atem:invoke>
    </atem:function_calls><|eot|>

What it says to itself is reasoning, what to the user or to nobody is text; a message to a tool
holds calls, and what else stands in one is no answer: it counts as reasoning. Source: the
publisher's prompting guide of Muse Glimmer (2026), "Roles and recipients" and "Tool calling".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from appliance.prompting.messages import MESSAGE, START, Kind, Marks, MessageParser
from appliance.prompting.pieces import Piece
from appliance.prompting.xml_call import Dialect, Types, XmlParser

MUSE: Final = Dialect(
    block=("<atem:function_calls>", "</atem:function_calls>"),
    call=('<atem:invoke name="', "</atem:invoke>"),
    parameter=('<atem:parameter name="', "</atem:parameter>"),
    name_end='">',
    padded=False,
)
EOM, EOT = "<|eom|>", "<|eot|>"
FRAME = (START, MESSAGE, EOM, EOT)
TAGS = (*FRAME, *MUSE.tags)
THOUGHT, ANSWER = f" to=self{MESSAGE}", f" to=user{MESSAGE}"
"""What opens reasoning, and an answer."""
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_PEOPLE = {"self": Kind.REASONING, "user": Kind.TEXT, "": Kind.TEXT}


class MuseParser(MessageParser):
    """One sequence's parser. `types`: of the parameters of each tool."""

    marks = Marks((START,), (EOM, EOT), ("to=",))

    def __init__(
        self,
        new_id: Callable[[], str],
        types: Mapping[str, Types],
        *,
        tools: bool = True,
        continued: bool = False,
    ) -> None:
        super().__init__(new_id, tools=tools, continued=continued)
        self._types = types
        self._call: XmlParser | None = None
        """Of the message that is read."""

    def _opened(self, header: str, pieces: list[Piece]) -> Kind:
        found = _RECIPIENT.findall(header)
        kind = _PEOPLE.get(found[-1] if found else "", Kind.CALL)
        if kind is not Kind.CALL or not self._tools:
            return kind if kind is not Kind.CALL else Kind.TEXT
        self._call = XmlParser(self._new_id, MUSE, self._types)
        self._call.calls = self.calls
        return kind

    def _called(self, text: str) -> list[Piece]:
        assert self._call is not None
        return self._taken(self._call.feed(text))

    def _closed(self) -> list[Piece]:
        if self._call is None:
            return []
        pieces, self._call = self._taken(self._call.finish()), None
        return pieces

    def _taken(self, pieces: list[Piece]) -> list[Piece]:
        assert self._call is not None
        self.calls = self._call.calls
        return [Piece(reasoning=piece.text) if piece.text else piece for piece in pieces]
