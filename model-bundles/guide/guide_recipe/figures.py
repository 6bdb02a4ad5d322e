"""Measures the guide: every figure of the model card, from one split of questions.

Owns what each figure means. Shares are of 1, rounded to three places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from guide_recipe.answering import Answer, Prompt
from guide_recipe.baseline import BagOfWords
from guide_recipe.chat import Example, Turn
from guide_recipe.grading import is_clean, topic_of
from guide_recipe.ranking import index_of
from guide_recipe.reference_encoder import Embed
from guide_recipe.sources import OFF_TOPIC, Questions, Sources
from installer.ask.asked import Question
from installer.ask.guide import Finding
from installer.ask.retrieval import Match, shown, undecided
from installer.ask.system_turn import system_turn

_MODES = ("with_passages", "alone", "thinking_with_passages", "bag_of_words")

Answers = Callable[[Sequence[Prompt]], list[Answer]]


@dataclass(frozen=True, slots=True)
class Mode:
    """How well one way to choose answers does; with passages, what `appliance ask` passes on.

    Attributes:
        right: of the questions about the appliance, answered rightly.
        falsely_refused: likewise, declined.
        refused: of the off-topic questions, declined.
    """

    right: float
    falsely_refused: float
    refused: float


@dataclass(frozen=True, slots=True)
class Form:
    """Shares of all answers in all modes that keep to the form."""

    answers: int
    right_are_verbatim: float
    """Of the right answers, those that are the canonical answer to the letter."""
    ended: float
    clean: float
    thought_when_asked: float
    thought_unasked: float


@dataclass(frozen=True, slots=True)
class Retrieval:
    """How well retrieval does by itself, and how often `appliance ask` asks back instead."""

    first: float
    among_shown: float
    nothing_fits_off_topic: float
    undecided_on_topic: float
    undecided_off_topic: float


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures."""

    questions: int
    off_topic: int
    with_passages: Mode
    alone: Mode
    thinking_with_passages: Mode
    follow_ups_right: float
    bag_of_words: Mode
    retrieval: Retrieval
    form: Form

    def document(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Figures:
        """The figures that `document` wrote; other keys are ignored."""
        nested = {"retrieval": Retrieval, "form": Form} | dict.fromkeys(_MODES, Mode)
        values = {name: document[name] for name in cls.__slots__}
        return cls(**{n: nested[n](**v) if n in nested else v for n, v in values.items()})


class Measure:
    """One measurement of one checkpoint on one split."""

    def __init__(self, sources: Sources, split: Questions, answers: Answers, embed: Embed) -> None:
        self._sources, self._split, self._answers = sources, split, answers
        self._asked = (*split.on_topic, *split.off_topic)
        index = index_of(sources, embed)
        vectors = embed([question.plain for question in self._asked])
        self._matches = [index.nearest(vector) for vector in vectors]
        self._leads = frozenset(passage.lead for passage in sources.passages)
        self._seen: list[tuple[bool, Answer]] = []
        """Whether thinking was asked for, and the answer, over all modes."""
        self._right: list[bool] = []
        """For each right answer, whether it is so to the letter."""
        self.wrong: dict[str, list[tuple[Question, str]]] = {}

    def figures(self) -> Figures:
        """Ask everything in every mode."""
        return Figures(
            questions=len(self._split.on_topic),
            off_topic=len(self._split.off_topic),
            with_passages=self._mode("with passages", passages=True),
            alone=self._mode("alone"),
            thinking_with_passages=self._mode("thinking", passages=True, thinking=True),
            follow_ups_right=self._follow_ups(),
            bag_of_words=self._bag_of_words(),
            retrieval=self._retrieval(),
            form=self._form(),
        )

    def _mode(self, name: str, *, passages: bool = False, thinking: bool = False) -> Mode:
        systems = [_system(matches) if passages else "" for matches in self._matches]
        examples = [
            Example(question.text, "", system=system)
            for question, system in zip(self._asked, systems, strict=True)
        ]
        texts = [answer.text for answer in self._ask(examples, thinking)]
        if passages:
            texts = [
                Finding(tuple(matches), self._leads, copies=True).passed_on(text)
                for matches, text in zip(self._matches, texts, strict=True)
            ]
        given = [topic_of(text, self._sources.answers) for text in texts]
        self.wrong[name] = [
            (question, text)
            for question, topic, text in zip(self._asked, given, texts, strict=True)
            if topic != question.topic
        ]
        self._right += [
            text == self._sources.answers[topic]
            for question, topic, text in zip(self._asked, given, texts, strict=True)
            if topic == question.topic
        ]
        return self._graded(given)

    def _graded(self, given: Sequence[str | None]) -> Mode:
        on = len(self._split.on_topic)
        pairs = list(zip(self._asked, given, strict=True))
        return Mode(
            right=_share(topic == question.topic for question, topic in pairs[:on]),
            falsely_refused=_share(topic == OFF_TOPIC for _, topic in pairs[:on]),
            refused=_share(topic == OFF_TOPIC for _, topic in pairs[on:]),
        )

    def _follow_ups(self) -> float:
        answers = self._sources.answers
        first_questions = {passage.id: passage.questions[0] for passage in self._sources.passages}
        examples = [
            Example(
                follow_up.question.text,
                "",
                history=(Turn(first_questions[follow_up.first], answers[follow_up.first]),),
            )
            for follow_up in self._split.follow_ups
        ]
        given = self._ask(examples, thinking=False)
        return _share(
            topic_of(answer.text, answers) == follow_up.question.topic
            for answer, follow_up in zip(given, self._split.follow_ups, strict=True)
        )

    def _bag_of_words(self) -> Mode:
        model = BagOfWords((*self._sources.on_topic, *self._sources.off_topic))
        return self._graded([model.topic(question.plain) for question in self._asked])

    def _retrieval(self) -> Retrieval:
        on = len(self._split.on_topic)
        known = {passage.id for passage in self._sources.passages}
        pairs = [
            (question.topic, matches)
            for question, matches in zip(self._asked[:on], self._matches[:on], strict=True)
            if question.topic in known
        ]
        return Retrieval(
            first=_share(found[0].passage.id == topic for topic, found in pairs),
            among_shown=_share(
                topic in {passage.id for passage in shown(found)} for topic, found in pairs
            ),
            nothing_fits_off_topic=_share(not shown(found) for found in self._matches[on:]),
            undecided_on_topic=_share(map(undecided, self._matches[:on])),
            undecided_off_topic=_share(map(undecided, self._matches[on:])),
        )

    def _form(self) -> Form:
        asked = [answer for thinking, answer in self._seen if thinking]
        unasked = [answer for thinking, answer in self._seen if not thinking]
        return Form(
            answers=len(self._seen),
            right_are_verbatim=_share(self._right),
            ended=_share(answer.ended for _, answer in self._seen),
            clean=_share(is_clean(answer.text) for _, answer in self._seen),
            thought_when_asked=_share(bool(answer.thought) for answer in asked),
            thought_unasked=_share(answer.thought is not None for answer in unasked),
        )

    def _ask(self, examples: Sequence[Example], thinking: bool) -> list[Answer]:
        prompts = [Prompt(tuple(example.messages()), thinking) for example in examples]
        answers = self._answers(prompts)
        self._seen += [(thinking, answer) for answer in answers]
        return answers


def _system(matches: Sequence[Match]) -> str:
    return system_turn(shown(matches))


def _share(values: Iterable[bool]) -> float:
    found = list(values)
    return round(sum(found) / len(found), 3) if found else 0.0
