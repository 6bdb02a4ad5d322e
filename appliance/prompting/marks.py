"""Marks that keep a user's text apart from the template's control tokens.

A chat template writes control tokens such as `<|im_end|>` as text, between the texts of the
users. Before rendering, each control token that a user typed is broken by a mark after its
first character, so that afterwards only the template's own tokens are whole. The mark is a
private-use character that occurs nowhere in the input: nobody can forge one, and none of the
user's characters has to be dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

_PRIVATE_USE = range(0xF0000, 0xFFFFE)


def unused_characters(*values: object) -> Iterator[str]:
    """Private-use characters that no string inside `values` (lists, dicts, strings) contains."""
    taken = {c for text in _strings(values) for c in text if ord(c) >= _PRIVATE_USE.start}
    return (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)


class ControlTokens:
    """The texts of a tokenizer's special tokens."""

    def __init__(self, texts: Iterable[str]) -> None:
        longest_first = sorted(set(texts) - {""}, key=lambda text: (-len(text), text))
        self._pattern = "|".join(re.escape(text) for text in longest_first) or r"(?!)"
        self._typed = re.compile(self._pattern)

    def occur_in(self, *values: object) -> bool:
        """Whether any string inside `values` contains a control token."""
        return any(self._typed.search(text) for text in _strings(values))

    def break_up(self, value: Any, mark: str) -> Any:  # noqa: ANN401  # any JSON
        """A copy of `value` (lists, dicts, strings) with every control token broken by `mark`."""
        if isinstance(value, str):
            return self._typed.sub(lambda m: m[0][0] + mark + m[0][1:], value)
        if isinstance(value, dict):
            return {self.break_up(k, mark): self.break_up(v, mark) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.break_up(item, mark) for item in value]
        return value

    def split(self, text: str, mark: str) -> Iterator[tuple[str, str]]:
        """Pairs (plain text, whole control token after it, or ""), with the marks taken out."""
        whole = re.compile(f"(?:{self._pattern})(?!{mark})")
        position = 0
        for match in whole.finditer(text):
            yield text[position : match.start()].replace(mark, ""), match[0]
            position = match.end()
        yield text[position:].replace(mark, ""), ""


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
