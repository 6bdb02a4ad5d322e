"""Judges an answer: is it the canonical answer of the right topic?

Strict on purpose: an answer counts for a topic if it is nearly the topic's own words and every
command and literal in it is there to the letter. A fluent answer to another question is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import SequenceMatcher

from guide_recipe.chat import END, END_OF_TEXT, START, THINK, THOUGHT

SIMILAR = 0.9
"""Least share of characters in common (difflib's ratio) with the canonical answer."""

_LITERAL = re.compile(r"`[^`]+`")


def topic_of(answer: str, answers: Mapping[str, str]) -> str | None:
    """The topic that `answer` answers; None if it is nobody's canonical answer."""
    text = " ".join(answer.split())
    for topic, canonical in answers.items():
        if text == canonical:
            return topic
    return next((topic for topic, known in answers.items() if _nearly(text, known)), None)


def is_clean(answer: str) -> bool:
    """Whether the answer is bare text: no control tokens, no thinking tags, not empty."""
    marks = (START, END, END_OF_TEXT, THINK, THOUGHT)
    return bool(answer.strip()) and not any(mark in answer for mark in marks)


def _nearly(text: str, canonical: str) -> bool:
    literals = _LITERAL.findall(canonical)
    if sorted(_LITERAL.findall(text)) != sorted(literals):
        return False
    return SequenceMatcher(None, text, canonical, autojunk=False).ratio() >= SIMILAR
