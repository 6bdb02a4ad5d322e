"""Reads the arguments of a call that is written as Python would, while they are generated.

    weather(city="Oslo", days=[1, 2], exact=True, area={"lat": 47.4})

    argument ── key = ──> value ── word ──> after ── , ──> argument, or value
                          ^ │  │ quote        ^ │
                     [ { (│ └──┘ v            │ │ last )
                          │    string ────────┘ v
                          └── : ── after key   the list

What is read is handed on as JSON: a word when it is complete, a text as it comes. Templates write
texts without escapes, so a quote ends one only in front of what may follow it. A word that is no
literal is a text, brackets in it are its own. An argument without a key gets the name that the
function's schema has at its place. Of what stands behind a value nothing counts up to the comma.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal

from appliance.prompting.call_parser import CallMachine
from appliance.prompting.json_call import MAX_HEAD_CHARS
from appliance.prompting.pieces import Piece

KEY: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]{0,255})\s*=(?=[^=])", re.DOTALL)
KEY_BEGUN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,255}\s*=?")
_ESCAPE = re.compile(
    r"""\\(?:([nrtbf\\"'])|(u[0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|U([0-9A-Fa-f]{8}))"""
)
_ESCAPE_BEGUN = re.compile(r"\\(?:u[0-9A-Fa-f]{0,3}|x[0-9A-Fa-f]?|U[0-9A-Fa-f]{0,7})?")
_WORDS: Final[Mapping[str, str]] = {
    "True": "true",
    "False": "false",
    "None": "null",
    "true": "true",
    "false": "false",
    "null": "null",
}
_OPENING: Final[Mapping[str, tuple[str, str, str]]] = {
    "[": ("]", "[", "]"),
    "(": (")", "[", "]"),
    "{": ("}", "{", "}"),
}
"""What closes a bracket, and what both are in JSON."""


class PythonArguments(CallMachine):
    """The machine within a call. `new_id` makes the id of each call; `tags` end a call."""

    def __init__(self, new_id: Callable[[], str], tags: Iterable[str]) -> None:
        self._tags = tuple(tags)
        self._longest = max(map(len, self._tags))
        super().__init__(new_id, *self._tags)
        self._parameters: Sequence[str] = ()
        self._count = 0
        """Arguments so far."""
        self._open: list[tuple[str, str]] = []
        """What closes each bracket that is open, and what that is in JSON."""
        self._first = True
        """Nothing stands in the bracket yet, or a key does in front of what is awaited."""
        self._key = False
        """The next word or text is a key."""
        self._awaited: Literal["", ":", "value"] = ""
        self._quote = ""
        self._depth = 0
        """Brackets that are open in a long word."""

    def _list(self, pieces: list[Piece]) -> bool:
        """Behind a call."""
        raise NotImplementedError

    def _tail(self, pieces: list[Piece]) -> bool:
        """At a tag that cuts a call off."""
        raise NotImplementedError

    def _begin_call(self, name: str, parameters: Sequence[str]) -> Piece:
        self._parameters, self._count = parameters, 0
        self._open, self._first, self._key, self._awaited = [(")", "}")], True, False, ""
        return self._begin(name, "{")

    def _argument(self, pieces: list[Piece]) -> bool:
        """In a call's brackets, in front of a key or a value."""
        self._held = self._held.lstrip()
        if not self._held or self._tag_begun():
            return False
        if self._held[0] in "),":
            return self._go(self._after, 0)
        if self._at_tag():
            return self._go(self._tail, 0)
        key = KEY.match(self._held, 0, MAX_HEAD_CHARS)
        if not key and len(self._held) < MAX_HEAD_CHARS and KEY_BEGUN.fullmatch(self._held):
            return False
        place, names = self._count, self._parameters
        name = key[1] if key else names[place] if place < len(names) else str(place)
        self._count += 1
        self._write(pieces, f"{_quoted(name)}: ")
        self._first, self._awaited = True, "value"
        return self._go(self._inside, key.end() if key else 0)

    def _inside(self, pieces: list[Piece]) -> bool:
        """In front of a value, or of a key in braces."""
        self._held = self._held.lstrip()
        if not self._held or self._tag_begun():
            return False
        char = self._held[0]
        if char in (",", self._open[-1][0]):
            return self._go(self._after, 0)
        if self._at_tag():
            return self._go(self._tail, 0)
        if char in _OPENING and not self._key:
            closing, begin, end = _OPENING[char]
            self._write(pieces, begin)
            self._open.append((closing, end))
            self._first, self._key = True, char == "{"
            return self._go(self._inside, 1)
        if char in "\"'":
            self._quote = char
            self._write(pieces, '"')
            return self._go(self._string, 1)
        return self._word(pieces)

    def _word(self, pieces: list[Piece]) -> bool:
        """A key, a number, or what else has no quotes."""
        end = self._end_of_word(self._held[:MAX_HEAD_CHARS])
        if end is None and len(self._held) < MAX_HEAD_CHARS:
            return False
        if end is None:  # none that long is a literal
            self._write(pieces, '"')
            self._depth = 0
            return self._go(self._long_word, 0)
        text = self._held[:end].strip()
        self._write(pieces, _quoted(text) if self._key else _literal(text))
        return self._go(self._after, end)

    def _end_of_word(self, text: str) -> int | None:
        depth, closing = 0, self._open[-1][0]
        for place, char in enumerate(text):
            if depth == 0 and (char in (",", closing) or (self._key and char == ":")):
                return place
            if char == "<" and self._at_tag(place):
                return place
            if char == "<" and self._tag_begun(place):
                return None
            depth = max(depth + (char in "([{") - (char in ")]}"), 0)
        return None

    def _long_word(self, pieces: list[Piece]) -> bool:
        closing = self._open[-1][0]
        for place, char in enumerate(self._held):
            ends = self._depth == 0 and char in (",", closing)
            if ends or (char == "<" and self._at_tag(place)):
                return self._end_of_text(pieces, place, 0)
            if char == "<" and self._tag_begun(place):
                self._said(pieces, place)
                return False
            self._depth = max(self._depth + (char in "([{") - (char in ")]}"), 0)
        self._said(pieces, len(self._held))
        return False

    def _string(self, pieces: list[Piece]) -> bool:
        place = 0
        while place < len(self._held):
            char = self._held[place]
            if char == "\\":
                self._said(pieces, place)
                return self._escape(pieces)
            ends = char == self._quote and self._ends_text(place)
            if ends is None:
                break
            if ends:
                return self._end_of_text(pieces, place, 1)
            place += 1
        self._said(pieces, place)
        return False

    def _ends_text(self, place: int) -> bool | None:
        """Whether the quote at `place` ends a text, by what follows; None: nothing does yet."""
        behind = self._held[place + 1 : place + MAX_HEAD_CHARS].lstrip()
        whole = len(self._held) >= place + MAX_HEAD_CHARS
        if not behind:
            return True if whole else None
        if behind[0] in (",", self._open[-1][0]) or (self._key and behind[0] == ":"):
            return True
        if any(behind.startswith(tag) for tag in self._tags):
            return True
        begun = any(tag.startswith(behind) for tag in self._tags)
        return None if begun and not whole else False

    def _end_of_text(self, pieces: list[Piece], place: int, quote: int) -> bool:
        self._said(pieces, place)
        pieces.append(self._more('"'))
        return self._go(self._after, quote)

    def _escape(self, pieces: list[Piece]) -> bool:
        """A backslash: Python's escapes, which JSON's are among; else it is one."""
        found = _ESCAPE.match(self._held)
        if not found and _ESCAPE_BEGUN.fullmatch(self._held):
            return False
        pieces.append(self._more(_escaped(found) if found else "\\\\"))
        return self._go(self._string, found.end() if found else 1)

    def _after(self, pieces: list[Piece]) -> bool:
        """Behind a value, or behind a key in braces."""
        self._held = self._held.lstrip()
        if not self._held or self._tag_begun():
            return False
        char, closing = self._held[0], self._open[-1][0]
        if char == ":" and self._awaited == ":":
            pieces.append(self._more(": "))
            self._first, self._key, self._awaited = True, False, "value"
            return self._go(self._inside, 1)
        if char in (",", closing):
            if self._awaited:
                pieces.append(self._more(": null" if self._awaited == ":" else "null"))
            self._awaited, self._first = "", self._first and not self._awaited
            return self._close(pieces) if char == closing else self._next()
        return self._go(self._tail, 0) if self._at_tag() else self._go(self._after, 1)

    def _next(self) -> bool:
        self._key = self._open[-1][0] == "}"
        return self._go(self._argument if len(self._open) == 1 else self._inside, 1)

    def _close(self, pieces: list[Piece]) -> bool:
        pieces.append(self._more(self._open.pop()[1]))
        self._first = self._key = False
        return self._go(self._after if self._open else self._list, 1)

    def _at_tag(self, place: int = 0) -> bool:
        return any(self._held.startswith(tag, place) for tag in self._tags)

    def _tag_begun(self, place: int = 0) -> bool:
        """Whether all that is held, from `place` on, may become a tag."""
        if not 0 < len(self._held) - place < self._longest:
            return False
        rest = self._held[place:]
        return any(tag.startswith(rest) and tag != rest for tag in self._tags)

    def _said(self, pieces: list[Piece], count: int) -> None:
        """Hand on some characters of a text."""
        text, self._held = self._held[:count], self._held[count:]
        if text:
            pieces.append(self._more(_quoted(text)[1:-1]))

    def _write(self, pieces: list[Piece], text: str) -> None:
        """Hand on what begins a value or a key."""
        pieces.append(self._more(text if self._first else f", {text}"))
        self._first, self._awaited = False, ":" if self._key else ""

    def _cut_off(self, pieces: list[Piece]) -> None:
        if self._state == self._string and self._held.strip() == self._quote:
            pieces.append(self._more('"'))
        elif self._state in (self._string, self._long_word):
            self._said(pieces, len(self._held))


def python_literal(value: object) -> str:
    """What came in JSON as Python writes it: of JSON's forms, with other words."""
    if isinstance(value, dict):
        pairs = (f"{_quoted(str(key))}: {python_literal(inner)}" for key, inner in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(python_literal, value))}]"
    if value is None or isinstance(value, bool):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(found: re.Match[str]) -> str:
    """An escape of Python's as JSON's."""
    plain, unicode, byte, wide = found.groups()
    if plain:
        return "'" if plain == "'" else f"\\{plain}"
    if unicode:  # as it is: half of a pair may follow
        return f"\\{unicode}"
    code = int(byte or wide, 16)
    return _quoted(chr(code) if code <= 0x10FFFF else found[0])[1:-1]


def _literal(text: str) -> str:
    """A word that Python or JSON has, as JSON; as text if neither has it."""
    spelled = _WORDS.get(text)
    if spelled is not None:
        return spelled
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return json.dumps(value) if math.isfinite(value) else _quoted(text)
    return _quoted(text)
