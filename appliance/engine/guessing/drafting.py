"""Guesses at what a sequence says next, for the model to verify several tokens in one step.

Owns the ways to guess: text that repeats what is in the sequence already (prompt lookup, Saxena
2023), and text that the caller expects (`prediction`). A guess is never an answer: whatever is
wrong in it, a hash that collides included, costs time and no more. A model that guesses for
another one is asked for all sequences at once, and only where it pays: see asking.py.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

LONG, SHORT = 8, 3
"""Lengths in tokens of the repetitions that are looked for; a long one is far more reliable."""
_CATCH_UP = 4096
"""Tokens of a long prompt that are entered into an index in one step, at most."""


class Source(enum.Enum):
    """Where a draft comes from. Each is right more or less often, and is judged by itself.

    What a grammar leaves no choice about is no guess: it is always right.
    """

    GRAMMAR = "grammar"
    PREDICTION = "prediction"
    LONG = "long"
    SHORT = "short"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next, at least one."""

    tokens: tuple[int, ...]
    source: Source


class Drafter(Protocol):
    """One sequence's. It reads the sequence's own list of tokens, which only grows."""

    def propose(self, most: int) -> Draft | None:
        """Up to `most` tokens, at least 1, that may follow; None without a reason to guess."""
        ...


class PromptLookup:
    """Goes on as the sequence did when it last said what it says now.

    The index holds, for each length, where the n-gram of that length ended last. Each token is
    entered once, so a step costs the same however long the sequence is.

    Args:
        tokens: prompt and output; read, never changed.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._ends: dict[int, dict[int, int]] = {LONG: {}, SHORT: {}}
        self._entered = 0

    def propose(self, most: int) -> Draft | None:
        if not self._catch_up():
            return None
        tokens, end = self._tokens, len(self._tokens)
        for length, source in ((LONG, Source.LONG), (SHORT, Source.SHORT)):
            place = self._ends[length].get(self._key(end, length), 0)
            if place and tokens[place - length : place] == tokens[end - length :]:
                return Draft(_onward(tokens, place, most), source)
        return None

    def _catch_up(self) -> bool:
        """Enter what ends before the last token. False if there is more than one step's worth."""
        last = len(self._tokens) - 1
        upto = min(last, self._entered + _CATCH_UP)
        for end in range(self._entered + 1, upto + 1):
            for length, ends in self._ends.items():
                if end >= length:
                    ends[self._key(end, length)] = end
        self._entered = upto
        return upto == last

    def _key(self, end: int, length: int) -> int:
        return hash(tuple(self._tokens[max(0, end - length) : end]))


def _onward(tokens: Sequence[int], place: int, count: int) -> tuple[int, ...]:
    """`count` tokens from `place` on; behind the end the copy goes on with itself."""
    copied = list(tokens[place : place + count])
    period = len(tokens) - place
    while len(copied) < count:
        copied.append(copied[-period])
    return tuple(copied)


class Prediction:
    """What a caller expects of an answer; shared by the sequences of its request."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tuple(tokens)
        self._behind: dict[tuple[int, int], list[int]] = {}
        for end in range(2, len(self.tokens) + 1):
            self._behind.setdefault((self.tokens[end - 2], self.tokens[end - 1]), []).append(end)

    def nearest(self, pair: tuple[int, int], place: int) -> int | None:
        """The place behind an occurrence of `pair` that is nearest to `place`."""
        places = self._behind.get(pair)
        if places is None:
            return None
        ahead = bisect_left(places, place)
        near = places[max(0, ahead - 1) : ahead + 1]
        return min(near, key=lambda found: (abs(found - place), -found))


class PredictionDrafter:
    """Follows the output through the prediction.

    Where they part, the output may have put one token in place of another, so the next one is
    still believed; after that, two tokens that stand together in the prediction, too, are
    taken as the place where it goes on.

    Args:
        prediction: of the request.
        tokens: prompt and output; read, never changed.
        start: length of the prompt.
    """

    def __init__(self, prediction: Prediction, tokens: Sequence[int], start: int) -> None:
        self._prediction = prediction
        self._tokens = tokens
        self._read = self._start = start
        self._at = 0
        self._missed = 0

    def propose(self, most: int) -> Draft | None:
        for place in range(self._read, len(self._tokens)):
            self._follow(place)
        self._read = len(self._tokens)
        expected = self._prediction.tokens[self._at : self._at + most]
        if not expected or self._missed > 1:
            return None
        return Draft(expected, Source.PREDICTION)

    def _follow(self, place: int) -> None:
        expected, token = self._prediction.tokens, self._tokens[place]
        if self._missed <= 1 and self._at < len(expected) and expected[self._at] == token:
            self._at += 1
            self._missed = 0
            return
        found = None
        if place > self._start:
            found = self._prediction.nearest((self._tokens[place - 1], token), self._at)
        if found is not None:
            self._at = found
            self._missed = 0
        else:
            self._missed += 1
            self._at += self._missed == 1
