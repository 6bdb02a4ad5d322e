"""Retrieval ranks by contents and by listed questions, and knows when it cannot tell."""

from __future__ import annotations

import numpy as np
import pytest

from guide_recipe.reference_encoder import Embed
from guide_recipe.sources import Sources, read_heldout
from installer.ask.passages import Passage
from installer.ask.retrieval import (
    CLOSE,
    FAR,
    REACH,
    Index,
    Match,
    Vectors,
    index_texts,
    shown,
    undecided,
)
from installer.ask.system_turn import system_turn

AXES = np.eye(6, dtype=np.float32)
NORTH, EAST, UP, NORTH_TOO, EAST_TOO, NOWHERE = AXES


def passage(name: str, *questions: str) -> Passage:
    return Passage(name, "page.md", name.title(), f"The {name}.", "", questions)


PASSAGES = (passage("north", "which way is up", "pole"), passage("east", "sunrise"))


@pytest.fixture
def index() -> Index:
    vectors = [NORTH] * 3 + [EAST] * 3 + [UP, NORTH_TOO, EAST_TOO]
    return Index(PASSAGES, np.stack(vectors))


def test_three_views_of_each_passage_and_then_the_questions_are_embedded() -> None:
    assert index_texts(PASSAGES) == [
        *("North", "North. The north.", "North. The north."),
        *("East", "East. The east.", "East. The east."),
        *("which way is up", "pole", "sunrise"),
    ]


def test_contents_and_the_nearest_listed_question_count(index: Index) -> None:
    scores = index.scores(np.stack([NORTH, UP, EAST_TOO, NOWHERE]))
    assert scores.tolist() == [[1, 0], [1, 0], [0, 1], [0, 0]]


def test_a_passage_without_listed_questions_is_at_no_disadvantage() -> None:
    index = Index([passage("north")], np.stack([NORTH] * 3))
    assert index.scores(NORTH.reshape(1, -1)).tolist() == [[2]]


def test_a_question_can_be_kept_from_finding_itself(index: Index) -> None:
    assert index.scores(UP.reshape(1, -1), same=0.97)[0, 0] == 0


def test_the_best_come_first(index: Index) -> None:
    assert [match.passage.id for match in index.nearest(EAST)] == ["east", "north"]
    assert len(index.nearest(EAST, count=1)) == 1


def matched(*scores: float) -> list[Match]:
    return [Match(passage(str(score)), score) for score in scores]


def names(matches: list[Match]) -> list[str]:
    return [passage.id for passage in shown(matches)]


def test_passages_that_are_far_off_or_lag_behind_are_not_shown() -> None:
    assert names(matched(1.5, 1.5 - REACH / 2, 1.5 - 2 * REACH)) == ["1.5", str(1.5 - REACH / 2)]
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
    index = Index(sources.passages, encoder(index_texts(sources.passages)))
    known = {passage.id for passage in sources.passages}
    asked = [question for question in read_heldout().on_topic if question.topic in known]
    vectors: Vectors = encoder([question.text for question in asked])
    hits = [
        question.topic in {passage.id for passage in shown(index.nearest(vector))}
        for question, vector in zip(asked, vectors, strict=True)
    ]
    assert sum(hits) / len(hits) >= 0.8
