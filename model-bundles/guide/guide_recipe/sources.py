"""The written data: what was asked, what is answered, how the guide thinks about it.

Owns the file formats of data/. A question line may open with a marker: `+` makes it a verb phrase
("how do I ..."), `*` a noun phrase ("what about ..."), which framing turns into questions. The
answer to a topic is the lead of the handbook section of that name, or a line of replies.txt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from installer.ask.passages import Passage, read_handbook

GUIDE = Path(__file__).resolve().parent.parent
DATA = GUIDE / "data"
HANDBOOK = GUIDE.parent.parent / "docs/handbook"
OFF_TOPIC = "off-topic"

Shape = Literal["free", "verb", "noun"]
_MARKERS: Mapping[str, Shape] = {"+": "verb", "*": "noun"}


@dataclass(frozen=True, slots=True)
class Question:
    """One way to ask for `topic`."""

    topic: str
    text: str
    shape: Shape = "free"

    @property
    def plain(self) -> str:
        """The question as one would type it, without framing by chance."""
        return f"how do I {self.text}" if self.shape == "verb" else self.text


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A second turn: after `first` was answered, `question` asks for `question.topic`."""

    first: str
    question: Question


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything that training reads."""

    passages: tuple[Passage, ...]
    answers: Mapping[str, str]
    thoughts: Mapping[str, str]
    on_topic: tuple[Question, ...]
    off_topic: tuple[Question, ...]
    follow_ups: tuple[FollowUp, ...]
    synonyms: tuple[tuple[str, ...], ...]
    everyday: Mapping[str, tuple[str, ...]]
    """Words from which off-topic questions are put together, by kind."""

    @property
    def topics(self) -> tuple[str, ...]:
        """Every topic that has an answer, without the refusal."""
        return tuple(topic for topic in self.answers if topic != OFF_TOPIC)


@dataclass(frozen=True, slots=True)
class Questions:
    """One evaluation split."""

    on_topic: tuple[Question, ...]
    off_topic: tuple[Question, ...]
    follow_ups: tuple[FollowUp, ...] = ()


def read_sources() -> Sources:
    """The training data. Raises ValueError if a topic lacks an answer, a thought or questions."""
    passages = read_handbook(HANDBOOK)
    answers = {passage.id: passage.lead for passage in passages} | _pairs("replies.txt")
    on_topic = [
        question
        for path in sorted((DATA / "questions").glob("*.txt"))
        for question in _by_topic(path)
    ]
    on_topic += [Question(p.id, text) for p in passages for text in p.questions]
    sources = Sources(
        passages=passages,
        answers=answers,
        thoughts=_pairs("thoughts.txt"),
        on_topic=tuple(dict.fromkeys(on_topic)),
        off_topic=_off_topic(DATA / "offtopic.txt"),
        follow_ups=_follow_ups(DATA / "followups.txt"),
        synonyms=tuple(tuple(line.split(", ")) for line in _lines(DATA / "synonyms.txt")),
        everyday=_word_lists(DATA / "offtopic_words.txt"),
    )
    asked = {question.topic for question in sources.on_topic} | {OFF_TOPIC}
    if not asked == sources.answers.keys() == sources.thoughts.keys():
        odd = (asked ^ sources.answers.keys()) | (asked ^ sources.thoughts.keys())
        raise ValueError(f"topics without questions, answer or thought: {sorted(odd)}")
    return sources


def read_dev() -> Questions:
    """The questions on which settings are chosen."""
    return Questions(_by_topic(DATA / "dev.txt"), _off_topic(DATA / "dev_offtopic.txt"))


def read_heldout() -> Questions:
    """The questions that the published figures are measured on, and nothing else."""
    return Questions(
        _by_topic(DATA / "heldout.txt"),
        _off_topic(DATA / "heldout_offtopic.txt"),
        _follow_ups(DATA / "heldout_followups.txt"),
    )


def _lines(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        stripped = line.strip()
        if stripped and (not stripped.startswith("#") or stripped.startswith("## ")):
            yield stripped


def _by_topic(path: Path) -> tuple[Question, ...]:
    found, topic = [], ""
    for line in _lines(path):
        if line.startswith("## "):
            topic = line.removeprefix("## ")
        else:
            found.append(_question(topic, line))
    return tuple(found)


def _word_lists(path: Path) -> dict[str, tuple[str, ...]]:
    lists: dict[str, tuple[str, ...]] = {}
    for question in _by_topic(path):
        lists[question.topic] = (*lists.get(question.topic, ()), *question.text.split(", "))
    return lists


def _off_topic(path: Path) -> tuple[Question, ...]:
    return tuple(_question(OFF_TOPIC, line) for line in _lines(path))


def _follow_ups(path: Path) -> tuple[FollowUp, ...]:
    rows = [line.split(" | ") for line in _lines(path)]
    return tuple(FollowUp(first, Question(topic, text)) for first, text, topic in rows)


def _question(topic: str, line: str) -> Question:
    marker, _, rest = line.partition(" ")
    shape = _MARKERS.get(marker)
    return Question(topic, rest, shape) if shape else Question(topic, line)


def _pairs(name: str) -> dict[str, str]:
    rows = (line.partition(" | ") for line in _lines(DATA / name))
    return {topic: text for topic, _, text in rows}
