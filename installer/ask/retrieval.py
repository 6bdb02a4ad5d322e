"""Finds the passages that a question is about, by embeddings.

Owns the ranking: which texts teach it, what a score means, when nothing fits, and when the best
two are too close to choose. Knows no model: whoever calls it brings the vectors. The training
recipe and the evaluation of the guide rank with this same code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from installer.ask.asked import Question
from installer.ask.passages import Passage
from installer.ask.reader import Reader, Vectors, fit

SHOWN = 3
"""Passages that the model is given at most."""
FAR = -0.5
"""A passage with a lower score is not about the question."""
REACH = 2.0
"""A passage that lags further behind the best is not shown beside it."""
CLOSE = 0.15
"""A lead over the second-best passage that says nothing."""
# All three were chosen on the development questions (docs/decisions/0072-one-ranking.md).


@dataclass(frozen=True, slots=True)
class Match:
    """A passage and how well it fits.

    The score is the natural logarithm of how much likelier the question is to be about this
    passage than about nothing in the handbook.
    """

    passage: Passage
    score: float


@dataclass(frozen=True, slots=True)
class Lesson:
    """A text and the number of the passage that it is about; that of no passage comes last."""

    text: str
    passage: int


def lessons(passages: Sequence[Passage], asked: Sequence[Question]) -> tuple[Lesson, ...]:
    """What the ranking of `passages` is learnt from.

    Three views of each passage, the questions it lists, and what else people asked; a question
    whose topic is no passage's is about none.
    """
    number = {passage.id: i for i, passage in enumerate(passages)}
    found = [Lesson(text, number[p.id]) for p in passages for text in (*_views(p), *p.questions)]
    found += [Lesson(q.plain, number.get(q.topic, len(passages))) for q in asked]
    return tuple(dict.fromkeys(found))


def learn(passages: Sequence[Passage], taught: Sequence[Lesson], vectors: Vectors) -> Reader:
    """The ranking that `taught` teaches; `vectors` are those of its texts."""
    classes = np.array([lesson.passage for lesson in taught], np.int64)
    return fit(vectors, classes, len(passages) + 1)


class Index:
    """`passages` with the reader that tells them apart."""

    def __init__(self, passages: Sequence[Passage], reader: Reader) -> None:
        self._passages = tuple(passages)
        self._reader = reader

    def scores(self, questions: Vectors) -> Vectors:
        """Score of each passage for each of `questions`: [questions, passages]."""
        log = self._reader.log_probabilities(questions)
        return log[:, :-1] - log[:, -1:]

    def nearest(self, question: Vectors, count: int = SHOWN) -> list[Match]:
        """The `count` best passages for one question's vector [dimensions], best first."""
        return best(self._passages, self.scores(question.reshape(1, -1))[0], count)


def best(
    passages: Sequence[Passage], scores: npt.NDArray[np.floating[Any]], count: int = SHOWN
) -> list[Match]:
    """The `count` passages with the highest of `scores` [passages], best first."""
    order = np.argsort(-scores, kind="stable")[:count]
    return [Match(passages[int(i)], float(scores[i])) for i in order]


def shown(matches: Sequence[Match]) -> tuple[Passage, ...]:
    """The passages of `matches`, best first, that are about the question; there may be none."""
    least = max(FAR, matches[0].score - REACH)
    return tuple(match.passage for match in matches if match.score >= least)


def undecided(matches: Sequence[Match]) -> bool:
    """Whether two passages are about the question, and about equally so."""
    return len(shown(matches)) > 1 and matches[0].score - matches[1].score < CLOSE


def _views(passage: Passage) -> Iterator[str]:
    short = f"{passage.heading}. {passage.lead}"
    yield from dict.fromkeys((passage.heading, short, f"{short} {passage.body}".rstrip()))
