"""Reads tool calls in the format of Llama 4: Llama 3's objects, behind what two tags enclose.

    <|python_start|>Let me look.<|python_end|>{"name": "weather", "parameters": {"city": "Oslo"}}

A call begins a turn or stands behind one of the tags, or behind another call. The tags are left out
of the text wherever they stand; else as Llama 3's (llama.py).
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.prompting.llama import LlamaParser
from appliance.prompting.pieces import Piece

START, END = "<|python_start|>", "<|python_end|>"
TAGS = (START, END)


class Llama4Parser(LlamaParser):
    """One sequence's parser. `new_id` makes the id of each call."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        super().__init__(new_id, *TAGS)

    def _start(self, pieces: list[Piece]) -> bool:
        seen = self._held.lstrip()
        for tag in TAGS:
            if seen.startswith(tag):
                self._lead, self._held = [], seen
                return self._go(self._start, len(tag))
        if seen and not seen.startswith("{") and any(tag.startswith(seen) for tag in TAGS):
            return False
        return super()._start(pieces)

    def _plain(self, _pieces: list[Piece]) -> bool:
        """No call begins here: text up to the next tag."""
        self._lead, self._held = [], "".join(self._lead) + self._held
        self._state = self._rest
        return True

    def _rest(self, pieces: list[Piece]) -> bool:
        text, tag, self._held = self._finder.feed(self._held)
        if text:
            pieces.append(Piece(text=text))
        return bool(tag) and self._go(self._start, 0)

    def _cut_off(self, pieces: list[Piece]) -> None:
        while self._state in (self._start, self._object) and (self._held or not self.calls):
            self._plain(pieces)
            while self._state(pieces):
                pass
            if not self._held:
                break
        if self._state == self._rest and (text := self._finder.finish()):
            pieces.append(Piece(text=text))
