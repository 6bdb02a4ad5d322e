"""The node's ranking, and the scores of training questions as if each were new.

The ranking is learnt from the training questions themselves, so on those it looks better than it
is. Each fold of them is scored by a reader that the other folds taught; what was not taught at all
is scored by the reader that the node has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from guide_recipe.reference_encoder import Embed
from guide_recipe.sources import Sources
from installer.ask.asked import Question
from installer.ask.reader import Vectors
from installer.ask.retrieval import Index, learn, lessons

FOLDS = 5


def index_of(sources: Sources, embed: Embed) -> Index:
    """The ranking as the node has it."""
    taught = lessons(sources.passages, sources.asked)
    vectors = embed([lesson.text for lesson in taught])
    return Index(sources.passages, learn(sources.passages, taught, vectors))


def first_time_scores(
    sources: Sources, asked: Sequence[Question], embed: Embed, *, seed: int
) -> dict[Question, Vectors]:
    """The score of each passage for each of `asked`: [passages]."""
    passages = sources.passages
    taught = lessons(passages, sources.asked)
    vectors = embed([lesson.text for lesson in taught])
    fold = np.random.default_rng(seed).integers(FOLDS, size=len(taught))
    found: dict[str, Vectors] = {}
    for number in range(FOLDS):
        kept = np.flatnonzero(fold != number)
        reader = learn(passages, [taught[int(i)] for i in kept], vectors[kept])
        left = np.flatnonzero(fold == number)
        scores = Index(passages, reader).scores(vectors[left])
        found |= {taught[int(i)].text: row for i, row in zip(left, scores, strict=True)}
    new = [question for question in asked if question.plain not in found]
    if new:
        rows = index_of(sources, embed).scores(embed([question.plain for question in new]))
        found |= zip((question.plain for question in new), rows, strict=True)
    return {question: found[question.plain] for question in asked}
