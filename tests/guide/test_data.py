"""The data keeps what the figures promise: enough of it, and nothing held out is trained on."""

from __future__ import annotations

import re
from collections import Counter

from guide_recipe.sources import LATER, OFF_TOPIC, Questions, Sources, read_dev, read_heldout
from installer.ask.asked import Question

NEAR = 0.8
"""Share of words in common that makes two questions nearly the same."""


def words(question: Question) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", question.plain.lower()))


def normal(question: Question) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", question.plain.lower()))


def trained_on(sources: Sources) -> list[Question]:
    follow_ups = [follow_up.question for follow_up in sources.follow_ups]
    return [*sources.on_topic, *sources.off_topic, *follow_ups]


def everything(split: Questions) -> list[Question]:
    return [*split.on_topic, *split.off_topic, *(f.question for f in split.follow_ups)]


def test_every_topic_has_enough_phrasings(sources: Sources) -> None:
    counts = Counter(question.topic for question in sources.on_topic)
    assert min(counts.values()) >= 40
    assert len(sources.off_topic) >= 300


def test_every_topic_is_held_out_and_measured_once_it_was_trained_on(sources: Sources) -> None:
    for read, least in ((read_heldout, 5), (read_dev, 4)):
        split = read(later=frozenset())
        counts = Counter(question.topic for question in split.on_topic)
        assert counts.keys() == set(sources.topics)
        assert min(counts.values()) >= least
        measured = {question.topic for question in read().on_topic}
        assert measured == set(sources.topics) - LATER
        assert {question.topic for question in split.off_topic} == {OFF_TOPIC}
    assert len(read_heldout().off_topic) >= 100


def test_no_question_is_in_two_splits(sources: Sources) -> None:
    trained = {normal(question) for question in trained_on(sources)}
    dev = {normal(question) for question in everything(read_dev(later=frozenset()))}
    heldout = {normal(question) for question in everything(read_heldout(later=frozenset()))}

    assert not heldout & (trained | dev)


def test_few_held_out_questions_are_nearly_trained_ones(sources: Sources) -> None:
    trained = [words(question) for question in trained_on(sources)]
    heldout = [words(question) for question in everything(read_heldout(later=frozenset()))]
    near = [
        asked
        for asked in heldout
        if any(len(asked & other) >= NEAR * len(asked | other) for other in trained)
    ]
    assert len(near) <= 0.05 * len(heldout)
