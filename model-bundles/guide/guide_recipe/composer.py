"""Composes training examples from the sources, by chance and in set proportions.

Owns the proportions. Passages in the system turn are those that retrieval really finds for the
question, blurred by noise, sometimes without the right one and sometimes quite wrong ones: the
guide must select, and must know an answer when retrieval fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np

from guide_recipe.chat import Example, Turn
from guide_recipe.reference_encoder import Embed
from guide_recipe.sources import Question, Sources
from guide_recipe.unrelated import Unrelated
from guide_recipe.wording import Wording
from installer.ask.passages import Passage
from installer.ask.retrieval import SHOWN, Index, Match, index_texts, shown
from installer.ask.system_turn import system_turn

BARE_UNTIL = 0.5
"""In the first part of a run, examples are bare questions: they are short, so that many fit into
a batch, and which topic a question is about is what takes longest to learn."""
OFF_TOPIC_SHARE = 0.2
UNRELATED_SHARE = 0.6
"""Of the off-topic questions: put together by chance rather than written."""
FOLLOW_UP_SHARE = 0.08
HISTORY_SHARE = 0.25
THINKING_SHARE = 0.35
PASSAGES_SHARE = 0.4
WRONG_PASSAGES_SHARE = 0.04
"""Of those with passages: passages at random."""
MISSING_PASSAGE_SHARE = 0.06
"""Of those with passages: the right one left out."""
RETRIEVAL_NOISE = 0.04
OTHER_SYSTEM_SHARE = 0.15
"""Of those without passages: a system turn as applications write them."""
SAME_QUESTION = 0.97
"""Similarity above which a listed question counts as the question itself."""

UNRELATED = 2000
"""Off-topic questions that are put together."""

_OTHER_SYSTEMS = (
    "You are a helpful assistant.",
    "You are the guide of this appliance.",
    "Answer briefly.",
    "You are a helpful assistant. Answer in one or two sentences.",
    "Be concise and precise.",
    "You help operators with their questions.",
)


class Composer:
    """An endless source of examples; the same `seed` gives the same ones."""

    def __init__(self, sources: Sources, embed: Embed, *, seed: int) -> None:
        self._sources = sources
        self._chance = Random(seed)
        self._noise = np.random.default_rng(seed)
        self._wording = Wording(sources.synonyms)
        self._by_topic: dict[str, list[Question]] = {topic: [] for topic in sources.topics}
        for question in sources.on_topic:
            self._by_topic[question.topic].append(question)
        self._unrelated = [
            Unrelated(sources.everyday).question(self._chance) for _ in range(UNRELATED)
        ]
        follow_ups = [follow_up.question for follow_up in sources.follow_ups]
        asked = [*sources.on_topic, *sources.off_topic, *self._unrelated, *follow_ups]
        index = Index(sources.passages, embed(index_texts(sources.passages)))
        scores = index.scores(embed([question.plain for question in asked]), same=SAME_QUESTION)
        self._scores = dict(zip(asked, scores, strict=True))

    def example(self, progress: float) -> Example:
        """The next example, `progress` being the share of the run that is behind."""
        chance = self._chance
        if progress < BARE_UNTIL:
            question = self._question()
            text = self._wording.reword(question, chance)
            return Example(text, self._sources.answers[question.topic])
        if chance.random() < FOLLOW_UP_SHARE:
            follow_up = chance.choice(self._sources.follow_ups)
            first = self._turn(chance.choice(self._by_topic[follow_up.first]))
            return self._complete(follow_up.question, (first,))
        return self._complete(self._question(), self._history())

    def _complete(self, question: Question, history: tuple[Turn, ...]) -> Example:
        sources = self._sources
        thinks = self._chance.random() < THINKING_SHARE
        return Example(
            question=self._wording.reword(question, self._chance),
            answer=sources.answers[question.topic],
            system=self._system(question),
            history=history,
            thought=sources.thoughts[question.topic] if thinks else None,
        )

    def _history(self) -> tuple[Turn, ...]:
        chance = self._chance
        if chance.random() >= HISTORY_SHARE:
            return ()
        return tuple(self._turn(self._question()) for _ in range(chance.choice((1, 1, 2))))

    def _question(self) -> Question:
        chance = self._chance
        if chance.random() < OFF_TOPIC_SHARE * UNRELATED_SHARE:
            return chance.choice(self._unrelated)
        if chance.random() < OFF_TOPIC_SHARE * (1 - UNRELATED_SHARE):
            return chance.choice(self._sources.off_topic)
        return chance.choice(self._by_topic[chance.choice(self._sources.topics)])

    def _turn(self, question: Question) -> Turn:
        text = self._wording.reword(question, self._chance)
        return Turn(text, self._sources.answers[question.topic])

    def _system(self, question: Question) -> str:
        chance = self._chance
        if chance.random() < PASSAGES_SHARE:
            return system_turn(self._passages(question))
        if chance.random() < OTHER_SYSTEM_SHARE:
            return chance.choice(_OTHER_SYSTEMS)
        return ""

    def _passages(self, question: Question) -> Sequence[Passage]:
        chance, passages = self._chance, self._sources.passages
        if chance.random() < WRONG_PASSAGES_SHARE:
            return chance.sample(passages, chance.randint(1, SHOWN))
        scores = self._scores[question]
        noisy = scores + self._noise.normal(0.0, RETRIEVAL_NOISE, len(passages))
        best = [int(i) for i in np.argsort(-noisy)[:SHOWN]]
        found = shown([Match(passages[i], float(noisy[i])) for i in best])
        if chance.random() < MISSING_PASSAGE_SHARE:
            found = tuple(passage for passage in found if passage.id != question.topic)
        return found
