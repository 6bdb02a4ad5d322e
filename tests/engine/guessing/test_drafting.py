"""Guesses: what repeats is found, nothing is invented, and a step's work does not grow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.guessing import drafting
from appliance.engine.guessing.drafting import (
    LONG,
    SHORT,
    Draft,
    Prediction,
    PredictionDrafter,
    PromptLookup,
    Source,
)

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=60)


@given(TOKENS, st.integers(1, 8))
def test_prompt_lookup_finds_what_a_search_through_everything_finds(
    tokens: list[int], most: int
) -> None:
    said: list[int] = []
    drafter = PromptLookup(said)
    for token in tokens:
        said.append(token)
        assert drafter.propose(most) == searched(said, most)


def searched(tokens: list[int], most: int) -> Draft | None:
    """The latest earlier place where the last tokens stood, and what came then."""
    for length, source in ((LONG, Source.LONG), (SHORT, Source.SHORT)):
        for place in range(len(tokens) - 1, length - 1, -1):
            if tokens[place - length : place] == tokens[-length:]:
                copied = list(tokens)
                for index in range(most):
                    copied.append(copied[place + index])
                return Draft(tuple(copied[len(tokens) :]), source)
    return None


def test_a_long_prompt_is_indexed_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "_CATCH_UP", 10)
    drafter = PromptLookup([1, 2, 3, 4, *range(100, 120), 1, 2, 3])
    proposals = [drafter.propose(1) for _ in range(4)]
    assert proposals == [None, None, Draft((4,), Source.SHORT), Draft((4,), Source.SHORT)]


def follow(expected: list[int], output: list[int], most: int = 4) -> list[tuple[int, ...]]:
    """What is proposed before each token of `output`, and behind the last."""
    said = [9, 9]
    drafter = PredictionDrafter(Prediction(expected), said, len(said))
    proposals = []
    for token in [*output, None]:
        draft = drafter.propose(most)
        proposals.append(draft.tokens if draft is not None else ())
        if token is not None:
            said.append(token)
    return proposals


def test_a_prediction_that_is_right_is_proposed_from_the_first_token_to_the_last() -> None:
    proposals = follow([10, 11, 12, 13], [10, 11, 12, 13], most=3)
    assert proposals == [(10, 11, 12), (11, 12, 13), (12, 13), (13,), ()]


def test_one_token_in_place_of_another_is_stepped_over() -> None:
    assert follow([10, 11, 12, 13, 14], [10, 77, 12], most=2)[2:] == [(12, 13), (13, 14)]


def test_what_was_put_in_is_stepped_over_when_two_tokens_stand_together_again() -> None:
    proposals = follow([10, 11, 12, 13, 14, 15], [10, 77, 78, 79, 12, 13], most=2)
    assert proposals[3:] == [(), (), (), (14, 15)]


def test_what_was_left_out_is_stepped_over() -> None:
    assert follow([10, 11, 12, 13, 14, 15, 16], [10, 13, 14], most=2)[-1] == (15, 16)


def test_of_several_places_the_nearest_is_gone_on_from() -> None:
    expected = [1, 2, 30, *range(40, 60), 1, 2, 31, *range(60, 80), 1, 2, 32]
    assert follow(expected, [*expected[:21], 98, 99, 1, 2], most=1)[-1] == (31,)


@given(TOKENS, TOKENS, st.integers(1, 8))
def test_only_pieces_of_the_prediction_are_proposed(
    expected: list[int], output: list[int], most: int
) -> None:
    for draft in follow(expected, output, most):
        pieces = [tuple(expected[at : at + len(draft)]) for at in range(len(expected))]
        assert not draft or draft in pieces
        assert len(draft) <= most
