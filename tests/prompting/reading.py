"""Feeds parsers with texts cut in many ways."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Protocol

from appliance.prompting import Piece


class Parser(Protocol):
    def feed(self, text: str) -> list[Piece]: ...
    def finish(self) -> list[Piece]: ...


Calls = list[tuple[str, str, str]]


def read(parser: Parser, parts: Iterable[str]) -> tuple[str, str, Calls]:
    """Text, reasoning and calls (id, name, arguments) after all `parts`."""
    pieces = [piece for part in parts for piece in parser.feed(part)] + parser.finish()
    calls: Calls = []
    for call in (piece.tool_call for piece in pieces if piece.tool_call):
        if call.id:
            assert call.index == len(calls), "indices count up from 0"
            calls.append((call.id, call.name, ""))
        name = calls[call.index]
        calls[call.index] = (name[0], name[1], name[2] + call.arguments_json)
    return "".join(p.text for p in pieces), "".join(p.reasoning for p in pieces), calls


def splits(text: str) -> Iterable[list[str]]:
    """The text as a whole, character by character, and cut once and twice at every place."""
    yield [text]
    yield list(text)
    for place in range(len(text)):
        yield [text[:place], text[place:]]
    if len(text) < 60:
        for one, two in itertools.combinations(range(1, len(text)), 2):
            yield [text[:one], text[one:two], text[two:]]
