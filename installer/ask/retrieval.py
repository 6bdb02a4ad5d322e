"""Finds the passages that a question is about, by embeddings.

Owns the ranking: what of a passage is embedded, how similarities become one score, and when the
best two are too close to choose. Knows no model: whoever calls it brings the vectors. The training
recipe and the evaluation of the guide rank with this same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from installer.ask.passages import Passage

Vectors = npt.NDArray[np.float32]
"""Unit vectors: float32 [texts, dimensions]."""

SHOWN = 3
"""Passages that the model is given at most."""
FAR = 0.55
"""A passage with a lower score is not about the question."""
REACH = 0.25
"""A passage that lags further behind the best is not shown beside it."""
CLOSE = 0.02
"""A lead over the second-best passage that says nothing."""
# All three were chosen on the development questions (docs/decisions/0072-one-ranking.md).

_VIEWS = 3


@dataclass(frozen=True, slots=True)
class Match:
    """A passage and how well it fits; scores are comparable for one question only."""

    passage: Passage
    score: float


def index_texts(passages: Sequence[Passage]) -> list[str]:
    """The texts whose vectors an Index of `passages` needs, in order."""
    views = [view for passage in passages for view in _views(passage)]
    return [*views, *(question for passage in passages for question in passage.questions)]


class Index:
    """`passages` with the vectors of their `index_texts`."""

    def __init__(self, passages: Sequence[Passage], vectors: Vectors) -> None:
        self._passages = tuple(passages)
        views, self._questions = np.split(vectors, [_VIEWS * len(self._passages)])
        # The mean of the similarities to the views is the similarity to their mean.
        self._contents = views.reshape(len(self._passages), _VIEWS, -1).mean(axis=1)
        counts = [len(passage.questions) for passage in self._passages]
        self._owners = np.repeat(np.arange(len(counts)), counts)
        """Whose question each row of `_questions` is."""

    def scores(self, questions: Vectors, *, same: float = 2.0) -> Vectors:
        """Score of each passage for each of `questions`: [questions, passages].

        It is the similarity to the passage's contents plus that to the nearest of its listed
        questions (to the contents again if it lists none). Listed questions more similar than
        `same` are left out: training passes a bound, so that a question does not find itself.
        """
        similar = questions @ self._questions.T
        similar[similar > same] = -1.0
        contents = questions @ self._contents.T
        nearest = contents.copy()
        for passage in np.unique(self._owners):
            nearest[:, passage] = similar[:, self._owners == passage].max(axis=1)
        scores: Vectors = contents + nearest
        return scores

    def nearest(self, question: Vectors, count: int = SHOWN) -> list[Match]:
        """The `count` best passages for one question's vector [dimensions], best first."""
        scores = self.scores(question.reshape(1, -1))[0]
        best = np.argsort(-scores, kind="stable")[:count]
        return [Match(self._passages[int(i)], float(scores[i])) for i in best]


def shown(matches: Sequence[Match]) -> tuple[Passage, ...]:
    """The passages of `matches`, best first, that are about the question; there may be none."""
    least = max(FAR, matches[0].score - REACH)
    return tuple(match.passage for match in matches if match.score >= least)


def undecided(matches: Sequence[Match]) -> bool:
    """Whether two passages are about the question, and about equally so."""
    return len(shown(matches)) > 1 and matches[0].score - matches[1].score < CLOSE


def _views(passage: Passage) -> tuple[str, str, str]:
    short = f"{passage.heading}. {passage.lead}"
    return passage.heading, short, f"{short} {passage.body}".rstrip()
