"""What people ask, by the handbook section that answers it: the pages in handbook/asked.

Owns the form of these pages: `## SECTION`, then one question a line behind a bullet that says what
kind of phrase it is. Refuses to know what a section says; a name that is no section's stands for
what the handbook does not answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DIRECTORY = "asked"
"""Of the handbook's directory; it may be absent."""

Shape = Literal["free", "verb", "noun"]
_BULLETS: Mapping[str, Shape] = {"-": "free", "+": "verb", "*": "noun"}


@dataclass(frozen=True, slots=True)
class Question:
    """One way to ask for `topic`: the slug of a section's heading, or a name of no section."""

    topic: str
    text: str
    shape: Shape = "free"

    @property
    def plain(self) -> str:
        """The question as one would type it."""
        return f"how do I {self.text}" if self.shape == "verb" else self.text


def read_asked(handbook: Path) -> tuple[Question, ...]:
    """All questions below `handbook`, by page and place, each once."""
    pages = sorted((handbook / DIRECTORY).glob("*.md"))
    found = [question for page in pages for question in _questions(page)]
    return tuple(dict.fromkeys(found))


def by_topic(lines: Iterable[str]) -> Iterator[Question]:
    """The questions of a page; what stands before its first topic is about the page."""
    topic = ""
    for line in map(str.strip, lines):
        if line.startswith("## "):
            topic = line.removeprefix("## ")
        elif topic and line:
            yield question(topic, line)


def question(topic: str, line: str) -> Question:
    """A line with its bullet; one without a bullet is a free phrase."""
    bullet, _, rest = line.partition(" ")
    shape = _BULLETS.get(bullet)
    return Question(topic, rest, shape) if shape else Question(topic, line)


def _questions(page: Path) -> Iterator[Question]:
    return by_topic(page.read_text(encoding="utf-8").splitlines())
