"""The written data: what was asked, what is answered, how the guide thinks about it.

Owns the file formats of data/. What is trained on is asked on the handbook's own pages; the
answer to a topic is the lead of the handbook section of that name, or a line of replies.txt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from installer.ask.asked import Question, by_topic, question, read_asked
from installer.ask.passages import Passage, read_handbook

GUIDE = Path(__file__).resolve().parent.parent
DATA = GUIDE / "data"
HANDBOOK = GUIDE.parent.parent / "docs/handbook"
OFF_TOPIC = "off-topic"
LATER = frozenset(
    {
        "add-an-adapter",
        "after-an-update",
        "export-the-audit-log",
        "group-keys-in-projects",
        "measure-the-speed",
        "renew-the-certificate",
        "reserve-capacity",
        "restore-from-a-backup",
        "rotate-an-api-key",
        "save-a-usage-report",
        "set-a-price",
        "set-limits-and-budgets",
        "trust-the-certificate",
        "uninstall-the-appliance",
        "use-a-gpu",
        "use-several-gpus",
        "what-fills-the-disk",
        "when-a-service-does-not-start",
        "when-the-disk-is-full",
    }
)
"""Sections that are newer than the published checkpoint: it was not trained on them, and its
figures leave out what is asked for them. Whoever publishes the next one empties this."""


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
    asked: tuple[Question, ...]
    """What the handbook's pages list; the node's ranking learns from them too."""
    follow_ups: tuple[FollowUp, ...]
    synonyms: tuple[tuple[str, ...], ...]
    everyday: Mapping[str, tuple[str, ...]]
    """Words from which off-topic questions are put together, by kind."""

    @property
    def on_topic(self) -> tuple[Question, ...]:
        """All that has an answer, with the questions that the sections themselves list."""
        listed = (Question(p.id, text) for p in self.passages for text in p.questions)
        known = (question for question in self.asked if question.topic != OFF_TOPIC)
        return tuple(dict.fromkeys((*known, *listed)))

    @property
    def off_topic(self) -> tuple[Question, ...]:
        return tuple(question for question in self.asked if question.topic == OFF_TOPIC)

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

    def without(self, topics: AbstractSet[str]) -> Questions:
        """All but what is asked for `topics`."""
        return Questions(
            tuple(question for question in self.on_topic if question.topic not in topics),
            self.off_topic,
            tuple(each for each in self.follow_ups if each.question.topic not in topics),
        )


def read_sources() -> Sources:
    """The training data. Raises ValueError if a topic lacks an answer, a thought or questions."""
    passages = read_handbook(HANDBOOK)
    answers = {passage.id: passage.lead for passage in passages} | _pairs("replies.txt")
    asked = read_asked(HANDBOOK)
    sources = Sources(
        passages=passages,
        answers=answers,
        thoughts=_pairs("thoughts.txt"),
        asked=asked,
        follow_ups=_follow_ups(DATA / "followups.txt"),
        synonyms=tuple(tuple(line.split(", ")) for line in _lines(DATA / "synonyms.txt")),
        everyday=_word_lists(DATA / "offtopic_words.txt"),
    )
    topics = {question.topic for question in asked}
    if not topics == sources.answers.keys() == sources.thoughts.keys():
        odd = (topics ^ sources.answers.keys()) | (topics ^ sources.thoughts.keys())
        raise ValueError(f"topics without questions, answer or thought: {sorted(odd)}")
    return sources


def read_dev(later: AbstractSet[str] = LATER) -> Questions:
    """The questions on which settings are chosen, but those for sections in `later`."""
    return Questions(_by_topic(DATA / "dev.txt"), _off_topic(DATA / "dev_offtopic.txt")).without(
        later
    )


def read_heldout(later: AbstractSet[str] = LATER) -> Questions:
    """The questions that the published figures are measured on, and nothing else."""
    return Questions(
        _by_topic(DATA / "heldout.txt"),
        _off_topic(DATA / "heldout_offtopic.txt"),
        _follow_ups(DATA / "heldout_followups.txt"),
    ).without(later)


def _lines(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        stripped = line.strip()
        if stripped and (not stripped.startswith("#") or stripped.startswith("## ")):
            yield stripped


def _by_topic(path: Path) -> tuple[Question, ...]:
    return tuple(by_topic(_lines(path)))


def _word_lists(path: Path) -> dict[str, tuple[str, ...]]:
    lists: dict[str, tuple[str, ...]] = {}
    for row in _by_topic(path):
        lists[row.topic] = (*lists.get(row.topic, ()), *row.text.split(", "))
    return lists


def _off_topic(path: Path) -> tuple[Question, ...]:
    return tuple(question(OFF_TOPIC, line) for line in _lines(path))


def _follow_ups(path: Path) -> tuple[FollowUp, ...]:
    rows = [line.split(" | ") for line in _lines(path)]
    return tuple(FollowUp(first, Question(topic, text)) for first, text, topic in rows)


def _pairs(name: str) -> dict[str, str]:
    rows = (line.partition(" | ") for line in _lines(DATA / name))
    return {topic: text for topic, _, text in rows}
