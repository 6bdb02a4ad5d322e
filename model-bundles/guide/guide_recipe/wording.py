"""Turns a written question into the many ways in which people would type it.

Owns framing, synonyms, slips of the keyboard and sloppy punctuation. Every choice is made by the
random generator that it is given, so a run repeats exactly.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from random import Random

from installer.ask.asked import Question

_VERB_FRAMES = (
    *("how do I {}", "how can I {}", "how to {}", "how would I {}", "how does one {}"),
    *("how do we {}", "how can we {}", "how should I {}", "how could somebody {}"),
    *("I want to {}", "I need to {}", "I'd like to {}", "we want to {}", "we have to {}"),
    *("I have to {}", "I am trying to {}", "I'm trying to {}, how?", "help me {}", "{}"),
    *("what's the way to {}", "what is the command to {}", "which command do I need to {}"),
    *("what do I type to {}", "what must I do to {}", "is it possible to {}", "can I {}"),
    *("is there a way to {}", "can you tell me how to {}", "tell me how to {}", "please {}"),
    *("could you explain how to {}", "show me how to {}", "what's the best way to {}"),
    *("my boss told me to {}", "somebody asked me to {}", "steps to {}", "trying to {}"),
    *("I don't know how to {}", "what do I do if I want to {}", "{}, how does that work"),
)
_NOUN_FRAMES = (
    *("{}", "{}", "{}", "tell me about {}", "what about {}", "explain {}", "question about {}"),
    *("I have a question about {}", "what can you tell me about {}", "I need information on {}"),
    *("something about {}", "how does it work with {}", "what do I need to know about {}"),
    *("I want to know more about {}", "can you explain {}", "please explain {}", "{} please"),
    *("where can I read about {}", "what's the story with {}", "let's talk about {}", "about {}"),
    *("information about {}", "how is it with {}", "and {}", "I don't understand {}"),
)
_OPENERS = (
    *("hi, ", "hello, ", "hey, ", "hello! ", "good morning, ", "quick question: ", "sorry, "),
    *("please, ", "question: ", "ok, ", "so ", "and ", "um, ", "excuse me, ", "one question: "),
    *("just wondering: ", "for my understanding: ", "I was wondering, ", "well, ", "now, "),
    *("we have a problem: ", "I'm new here. ", "dear guide, ", "can you help? ", "maybe silly: "),
)
_CLOSERS = (
    *(" please", " please?", ", please", " thanks", ", thank you", "? thanks!", "??", "!", "..."),
    *(" on this machine", " here", " with this thing", " on the appliance", " now", " exactly"),
    *(" again", " for me", " really", " in general", " at all", ", any idea?", ", can you help?"),
    *(", what do I do?", " today", " in our case", " on this box", " with your product"),
)
_STOP_WORDS = re.compile(
    r"an?|the|to|of|for|is|are|do|does|i|my|me|its?|this|that|please|can|in|on|with", re.IGNORECASE
)
_NEIGHBOURS = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wqwrtyuiopsasdfghjkxzxcvbn", strict=True))


class Wording:
    """Rewords questions; `synonyms` are groups of words that may stand for each other."""

    def __init__(self, synonyms: Sequence[Sequence[str]]) -> None:
        self._groups: dict[str, list[str]] = {}
        for group in synonyms:
            for word in group[:2]:
                others = [other for other in group if other != word]
                self._groups.setdefault(word.lower(), []).extend(others)
        words = sorted(self._groups, key=len, reverse=True)
        self._pattern = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.IGNORECASE)

    def reword(self, question: Question, chance: Random) -> str:
        """One way to type `question`."""
        text = question.text
        if chance.random() < 0.6:
            text = self._swap_synonyms(text, chance)
        if question.shape == "verb":
            text = chance.choice(_VERB_FRAMES).format(text)
        elif question.shape == "noun":
            text = chance.choice(_NOUN_FRAMES).format(text)
        if chance.random() < 0.15:
            text = chance.choice(_OPENERS) + text
        if chance.random() < 0.15:
            text = text.rstrip("?.!") + chance.choice(_CLOSERS)
        if chance.random() < 0.2:
            text = _drop_word(text, chance)
        if chance.random() < 0.15:
            text = _slip(text, chance)
        return _punctuate(text, chance)

    def _swap_synonyms(self, text: str, chance: Random) -> str:
        def swap(match: re.Match[str]) -> str:
            if chance.random() < 0.5:
                return match[0]
            return chance.choice(self._groups[match[0].lower()])

        return self._pattern.sub(swap, text)


def _drop_word(text: str, chance: Random) -> str:
    words = text.split()
    if len(words) < 4:
        return text
    droppable = [i for i, word in enumerate(words) if _STOP_WORDS.fullmatch(word)]
    if not droppable or chance.random() < 0.3:
        droppable = list(range(len(words)))
    del words[chance.choice(droppable)]
    return " ".join(words)


def _slip(text: str, chance: Random) -> str:
    """One slip: a letter doubled, dropped, swapped with the next or hit beside its key."""
    letters = [i for i, c in enumerate(text) if c in string.ascii_lowercase]
    if len(letters) < 6:
        return text
    at = chance.choice(letters[1:])
    kind = chance.randrange(4)
    if kind == 0:
        return text[:at] + text[at] + text[at:]
    if kind == 1:
        return text[:at] + text[at + 1 :]
    if kind == 2:
        return text[: at - 1] + text[at] + text[at - 1] + text[at + 1 :]
    return text[:at] + _NEIGHBOURS[text[at]] + text[at + 1 :]


def _punctuate(text: str, chance: Random) -> str:
    style = chance.random()
    if style < 0.4:
        text = text.lower()
    elif style < 0.75:
        text = text[:1].upper() + text[1:]
    elif style < 0.77:
        text = text.upper()
    if text[-1:].isalnum() and chance.random() < 0.4:
        text += chance.choice("???.!")
    elif chance.random() < 0.25:
        text = text.rstrip("?.! ")
    return text.strip() or "?"
