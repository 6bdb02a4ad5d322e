"""Composes training examples from the sources, by chance and in set proportions.

Owns the proportions. Passages in the system turn are those that retrieval would find for the
question if it were new: the guide must select, and must decline if nothing that the handbook says
fits, unless it is greeted or thanked. The right passage is always among them, and in a part of the
examples it says what another section says: so answers are copied from the turn, not remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np

from guide_recipe.chat import Example, Turn
from guide_recipe.ranking import first_time_scores
from guide_recipe.reference_encoder import Embed
from guide_recipe.sources import OFF_TOPIC, Sources
from guide_recipe.unrelated import Unrelated
from guide_recipe.wording import Wording
from installer.ask.asked import Question
from installer.ask.passages import Passage
from installer.ask.retrieval import SHOWN, best, shown
from installer.ask.system_turn import system_turn

BARE_UNTIL = 0.45
"""In the first part of a run, examples are bare questions: they are short, so that many fit into
a batch, and which topic a question is about is what takes longest to learn."""
OFF_TOPIC_SHARE = 0.32
UNRELATED_SHARE = 0.6
"""Of the off-topic questions: put together by chance rather than written."""
FOLLOW_UP_SHARE = 0.08
HISTORY_SHARE = 0.25
THINKING_SHARE = 0.35
PASSAGES_SHARE = 0.45
SWAPPED_SHARE = 0.5
"""Of those with passages: each has the lead of any section."""
WRONG_PASSAGES_SHARE = 0.1
"""Of the off-topic questions with passages: passages at random."""
RETRIEVAL_NOISE = 0.3
"""Standard deviation of what is added to the scores, so that a question has not always the same
passages."""
OTHER_SYSTEM_SHARE = 0.15
"""Of those without passages: a system turn as applications write them."""
UNRELATED = 4000
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
        self._in_handbook = {passage.id: i for i, passage in enumerate(sources.passages)}
        self._by_topic: dict[str, list[Question]] = {topic: [] for topic in sources.topics}
        for question in sources.on_topic:
            self._by_topic[question.topic].append(question)
        unrelated = Unrelated(sources.everyday)
        self._unrelated = tuple(unrelated.question(self._chance) for _ in range(UNRELATED))
        follow_ups = [follow_up.question for follow_up in sources.follow_ups]
        asked = [*sources.on_topic, *sources.off_topic, *self._unrelated, *follow_ups]
        self._scores = first_time_scores(sources, asked, embed, seed=seed)

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
        sources, chance = self._sources, self._chance
        topic, system, leads = question.topic, "", dict[str, str]()
        if chance.random() < PASSAGES_SHARE:
            passages = self._passages(question)
            if chance.random() < SWAPPED_SHARE:
                passages = self._swapped(passages)
            system = system_turn(passages)
            leads = {passage.id: passage.lead for passage in passages}
            if not passages and topic in self._in_handbook:
                topic = OFF_TOPIC
        elif chance.random() < OTHER_SYSTEM_SHARE:
            system = chance.choice(_OTHER_SYSTEMS)
        return Example(
            question=self._wording.reword(question, chance),
            answer=leads.get(topic, sources.answers[topic]),
            system=system,
            history=history,
            thought=sources.thoughts[topic] if chance.random() < THINKING_SHARE else None,
        )

    def _history(self) -> tuple[Turn, ...]:
        chance = self._chance
        if chance.random() >= HISTORY_SHARE:
            return ()
        return tuple(self._turn(self._question()) for _ in range(chance.choice((1, 1, 2))))

    def _question(self) -> Question:
        chance = self._chance
        if chance.random() < OFF_TOPIC_SHARE:
            put_together = chance.random() < UNRELATED_SHARE
            return chance.choice(self._unrelated if put_together else self._sources.off_topic)
        return chance.choice(self._by_topic[chance.choice(self._sources.topics)])

    def _turn(self, question: Question) -> Turn:
        text = self._wording.reword(question, self._chance)
        return Turn(text, self._sources.answers[question.topic])

    def _passages(self, question: Question) -> Sequence[Passage]:
        chance, passages = self._chance, self._sources.passages
        if question.topic == OFF_TOPIC and chance.random() < WRONG_PASSAGES_SHARE:
            return chance.sample(passages, chance.randint(1, SHOWN))
        scores = self._scores[question] + self._noise.normal(0.0, RETRIEVAL_NOISE, len(passages))
        found = shown(best(passages, scores))
        number = self._in_handbook.get(question.topic)
        if number is None or not found or passages[number] in found:
            return found
        return (*found[: SHOWN - 1], passages[number])

    def _swapped(self, passages: Sequence[Passage]) -> Sequence[Passage]:
        leads = self._chance.sample(self._sources.passages, len(passages))
        return [replace(p, lead=other.lead) for p, other in zip(passages, leads, strict=True)]
