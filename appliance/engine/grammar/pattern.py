"""How much a regular expression unfolds to, found out without running it.

`((a{100}){100}){100}` is short and has a million states. The measure counts characters, with
what is repeated counted as often as it may repeat; it is linear in the pattern's length. Refuses
flags and look-around, which ECMA 262 patterns either do not have or no automaton can follow.
"""

from __future__ import annotations

import re
from typing import Final

MAX_LENGTH: Final = 4096
MAX_SIZE: Final = 10_000
_MAX_NESTING = 50
_QUANTIFIER = re.compile(r"\{(\d{1,9})(,(\d{0,9}))?\}\??|[*+?]\??")
_GROUP = re.compile(r"\((?:\?(?::|P?<[A-Za-z_][A-Za-z0-9_]*>))?(?!\?)")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_CLASS_SETS = re.compile(r"(?<!\\)\[|&&|--|~~")
"""What ECMA 262 reads as characters, and the engine's regexes as operations on sets."""
_ESCAPE = re.compile(r"\\(?:[pPuxU]\{[^}]{0,64}\}|.)", re.DOTALL)


class PatternError(ValueError):
    """The pattern cannot be used; the text says why."""


def check_pattern(pattern: str) -> int:
    """The unfolded size of `pattern`. Raises PatternError if it is too much, or not understood."""
    if len(pattern) > MAX_LENGTH:
        raise PatternError(f"it has {len(pattern)} characters, more than {MAX_LENGTH}")
    size = _Measure(pattern).whole()
    if size > MAX_SIZE:
        raise PatternError(f"it unfolds to {size} states, more than {MAX_SIZE}")
    return size


class _Measure:
    """One pass over a pattern, with a stack of open groups: their sizes so far."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._open = [0]

    def whole(self) -> int:
        while self._at < len(self._text):
            self._item()
        if len(self._open) > 1:
            raise PatternError("a group is not closed")
        return self._open[0]

    def _item(self) -> None:
        char = self._text[self._at]
        if char == "(":
            self._begin()
        elif char == ")":
            if len(self._open) == 1:
                raise PatternError("a group is closed that was not opened")
            self._at += 1
            self._repeated(self._open.pop())
        elif char == "[":
            if _CLASS_SETS.search(self._take(_CLASS, "a character class is not closed")[1:]):
                raise PatternError("write `[` as `\\[`, and no set operators, in a class")
            self._repeated(1)
        elif char == "\\":
            self._take(_ESCAPE, "it ends with a backslash")
            self._repeated(1)
        else:
            self._at += 1
            self._repeated(0 if char in "^$|" else 1)

    def _begin(self) -> None:
        self._take(_GROUP, "look-around and flags are not supported")
        if len(self._open) > _MAX_NESTING:
            raise PatternError(f"its groups are nested more than {_MAX_NESTING} deep")
        self._open.append(0)

    def _repeated(self, size: int) -> None:
        """Book an item of `size`, with the quantifiers behind it."""
        while match := _QUANTIFIER.match(self._text, self._at):
            self._at = match.end()
            if match[1] is not None:
                size *= max(int(match[1]), int(match[3] or 0), 1)
        # Capped, so that no chain of quantifiers makes a number that is slow to multiply.
        self._open[-1] = min(self._open[-1] + size, 1 << 40)

    def _take(self, expected: re.Pattern[str], otherwise: str) -> str:
        match = expected.match(self._text, self._at)
        if match is None:
            raise PatternError(otherwise)
        self._at = match.end()
        return match[0]


def literal(text: str) -> str:
    """The pattern that matches `text`, so that it can stand between slashes."""
    return slashes(re.escape(text).replace("\\\n", "\n"))


def slashes(pattern: str) -> str:
    """`pattern` so that it can stand between slashes."""
    return re.sub(r"\\(.)|/", lambda m: m[0] if m[1] not in (None, "/") else r"\/", pattern,
                  flags=re.DOTALL).replace("\n", r"\n")  # fmt: skip
