"""Retrieval learns from contents and questions, and knows when it cannot tell."""

from __future__ import annotations

import numpy as np
import pytest

from guide_recipe.ranking import index_of
from guide_recipe.reference_encoder import Embed
from guide_recipe.sources import Sources, read_heldout
from installer.ask.asked import Question
from installer.ask.passages import Passage
from installer.ask.reader import Vectors
from installer.ask.retrieval import (
    CLOSE,
    FAR,
    REACH,
    Index,
    Lesson,
    Match,
    learn,
    lessons,
    shown,
    undecided,
)
from installer.ask.system_turn import system_turn

AXES = np.eye(4, dtype=np.float32)
NORTH, EAST, PIZZA, UNHEARD_OF = AXES


def passage(name: str, *questions: str) -> Passage:
    return Passage(name, "page.md", name.title(), f"The {name}.", "", questions)


PASSAGES = (passage("north", "which way is up", "pole"), passage("east", "sunrise"))
ASKED = (Question("north", "find the pole", "verb"), Question("off-topic", "bake a pizza"))
TAUGHT = lessons(PASSAGES, ASKED)


@pytest.fixture
def index() -> Index:
    vectors = np.stack([(NORTH, EAST, PIZZA)[lesson.passage] for lesson in TAUGHT])
    return Index(PASSAGES, learn(PASSAGES, TAUGHT, vectors))


def test_views_of_passages_and_all_that_is_asked_are_taught() -> None:
    assert (
        *(Lesson(text, 0) for text in ("North", "North. The north.", "which way is up", "pole")),
        *(Lesson(text, 1) for text in ("East", "East. The east.", "sunrise")),
        Lesson("how do I find the pole", 0),
        Lesson("bake a pizza", len(PASSAGES)),
    ) == TAUGHT


def test_a_score_says_how_much_likelier_a_passage_is_than_none(index: Index) -> None:
    north, east, pizza = index.scores(np.stack([NORTH, EAST, PIZZA]))
    assert north[0] > 1 > 0 > north[1] - north[0]
    assert east[1] > 1 > 0 > east[0] - east[1]
    assert max(pizza) < -1


def test_a_handbook_without_other_questions_still_ranks(index: Index) -> None:
    taught = lessons(PASSAGES, ())
    vectors = np.stack([(NORTH, EAST)[lesson.passage] for lesson in taught])
    index = Index(PASSAGES, learn(PASSAGES, taught, vectors))
    assert [match.passage.id for match in index.nearest(EAST)] == ["east", "north"]
    assert shown(index.nearest(EAST)) == (PASSAGES[1],)


def test_the_same_vectors_teach_the_same(index: Index) -> None:
    vectors = np.stack([(NORTH, EAST, PIZZA)[lesson.passage] for lesson in TAUGHT])
    again = Index(PASSAGES, learn(PASSAGES, TAUGHT, vectors))
    assert np.array_equal(again.scores(AXES), index.scores(AXES))


def test_the_best_come_first(index: Index) -> None:
    assert [match.passage.id for match in index.nearest(EAST)] == ["east", "north"]
    assert len(index.nearest(EAST, count=1)) == 1


def matched(*scores: float) -> list[Match]:
    return [Match(passage(str(score)), score) for score in scores]


def names(matches: list[Match]) -> list[str]:
    return [passage.id for passage in shown(matches)]


def test_passages_that_are_far_off_or_lag_behind_are_not_shown() -> None:
    near, lagging = FAR + 2 * REACH - REACH / 2, FAR + REACH / 2
    assert names(matched(FAR + 2 * REACH, near, lagging)) == [str(FAR + 2 * REACH), str(near)]
    assert names(matched(FAR + 0.01, FAR - 0.01)) == [str(FAR + 0.01)]
    assert names(matched(FAR - 0.01)) == []


def test_a_small_lead_is_no_decision() -> None:
    assert undecided(matched(1.0 + CLOSE / 2, 1.0))
    assert not undecided(matched(1.0 + CLOSE * 2, 1.0))
    assert not undecided(matched(1.0))
    assert not undecided(matched(FAR - 0.1, FAR - 0.1))


def test_the_system_turn_numbers_headings_and_leads() -> None:
    assert system_turn(PASSAGES) == (
        "Answer from the handbook of this appliance.\n\n"
        "[1] North\nThe north.\n\n[2] East\nThe east."
    )
    assert system_turn(()) == (
        "Answer from the handbook of this appliance.\n\nNo section of it fits."
    )


def test_the_right_section_is_among_those_shown(sources: Sources, encoder: Embed) -> None:
    index = index_of(sources, encoder)
    known = {passage.id for passage in sources.passages}
    asked = [question for question in read_heldout().on_topic if question.topic in known]
    vectors: Vectors = encoder([question.text for question in asked])
    hits = [
        question.topic in {passage.id for passage in shown(index.nearest(vector))}
        for question, vector in zip(asked, vectors, strict=True)
    ]
    assert sum(hits) / len(hits) >= 0.8
