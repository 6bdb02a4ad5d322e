"""The baseline: a bag of words, which knows neither order nor meaning.

Multinomial naive Bayes over the words of the training questions, off-topic as one more class. It
states how much of the task is keyword spotting.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from math import log

from installer.ask.asked import Question

_SMOOTHING = 0.3


class BagOfWords:
    """Fitted to `questions`; each topic is equally likely."""

    def __init__(self, questions: Iterable[Question]) -> None:
        counts: dict[str, Counter[str]] = {}
        for question in questions:
            counts.setdefault(question.topic, Counter()).update(_words(question.plain))
        vocabulary = len(set().union(*counts.values()))
        self._counts = counts
        self._totals = {t: c.total() + _SMOOTHING * vocabulary for t, c in counts.items()}

    def topic(self, text: str) -> str:
        """The likeliest topic of `text`."""
        return max(self._counts, key=lambda topic: self._log_likelihood(topic, text))

    def _log_likelihood(self, topic: str, text: str) -> float:
        counts, total = self._counts[topic], self._totals[topic]
        return sum(log((counts[word] + _SMOOTHING) / total) for word in _words(text))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
