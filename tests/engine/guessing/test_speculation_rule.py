"""When drafts are computed: by a clock that a pretended model moves on, step by step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from appliance.engine.generation import Generation
from appliance.engine.guessing.drafting import Draft, PromptLookup
from appliance.engine.guessing.speculation import WIDTHS
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.sampling import SamplingParams
from appliance.engine.slot_pool import Array
from appliance.scheduler import Plan
from appliance.scheduler import Sequence as Scheduled
from tests.engine.conftest import OpenChat

VOCAB = 512
Next = Callable[[Sequence[int]], int]


class PretendedModel:
    """A runner whose next token follows from the tokens so far, and whose time is reckoned.

    Args:
        following: the next token.
        row: seconds of one more row of a decode batch, padding included; the batch takes 1.
    """

    def __init__(self, following: Next, row: float, most: int = 64) -> None:
        self._following = following
        self._row = row
        self._most = most
        self.seconds = 0.0
        self.widths: list[int] = []

    def most_drafted(self, sequences: int) -> int:
        return self._most // sequences

    def interrupt(self) -> None:
        raise AssertionError("nobody comes while a step runs")

    def run(self, plan: Plan) -> Array:
        width = max(map(len, plan.drafts), default=0)
        self.seconds += 1 + self._row * width * len(plan.decodes)
        if plan.decodes:
            self.widths.append(width)
        drafts = ((),) * (len(plan.sampled) - len(plan.decodes)) + (
            plan.drafts or ((),) * len(plan.decodes)
        )
        logits = np.zeros((sum(plan.rows), VOCAB), np.float32)
        rows = iter(logits)
        for sequence, draft in zip(plan.sampled, drafts, strict=True):
            for token in self._tokens(sequence, draft):
                next(rows)[token] = 1
        return logits

    def _tokens(self, sequence: Scheduled, draft: tuple[int, ...]) -> list[int]:
        said = [*sequence.tokens, *draft]
        first = len(sequence.tokens)
        return [self._following(said[:end]) for end in range(first, len(said) + 1)]


def cycle(tokens: Sequence[int]) -> int:
    """Says 20 tokens over and over."""
    return (tokens[-1] + 1) % 20


def deceptive(tokens: Sequence[int]) -> int:
    """Says three tokens over and over, and always a new one behind them: all drafts are wrong."""
    if len(tokens) % 4:
        return len(tokens) % 4
    return 10 + len(tokens) // 4


def half(tokens: Sequence[int]) -> int:
    """Like `cycle`, but every other token is a surprise."""
    return cycle(tokens) if len(tokens) % 2 else random.Random(len(tokens)).randrange(VOCAB)


@pytest.fixture
def engine_of(open_chat: OpenChat) -> Callable[..., LLMEngine]:
    model = open_chat()

    def make(runner: PretendedModel, *, draft_tokens: int = 8, slots: int = 1) -> LLMEngine:
        return LLMEngine(
            runner, model.tokenizer, model.prompting,
            vocab_size=VOCAB, slots=slots, capacity=2048, token_budget=512, max_waiting=0,
            draft_tokens=draft_tokens, clock=lambda: runner.seconds,
        )  # fmt: skip

    return make


def say(engine: LLMEngine, count: int, calls: int = 1) -> None:
    params = SamplingParams(temperature=0, max_tokens=count)
    for call in range(calls):
        engine.add(Generation(call, [1, 2, 3], params))
    while engine.has_work:
        engine.step()
        engine.check_integrity()


def gain(make: Callable[..., LLMEngine], following: Next, row: float, slots: int = 1) -> float:
    """Tokens a second compared with no speculation."""
    seconds = []
    for draft_tokens in (8, 0):
        runner = PretendedModel(following, row)
        say(make(runner, draft_tokens=draft_tokens, slots=slots), 600, slots)
        seconds.append(runner.seconds)
    return seconds[1] / seconds[0]


def test_what_repeats_is_said_several_times_as_fast(engine_of: Callable[..., LLMEngine]) -> None:
    assert gain(engine_of, cycle, row=0.05) > 4
    assert gain(engine_of, cycle, row=0.05, slots=4) > 2


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("row", [0.02, 0.1, 0.6])
@pytest.mark.parametrize("following", [deceptive, half])
def test_wrong_guesses_cost_next_to_nothing(
    engine_of: Callable[..., LLMEngine], following: Next, row: float, slots: int
) -> None:
    assert gain(engine_of, following, row, slots) >= 0.97


def test_nobody_is_asked_for_guesses_where_a_batch_takes_none(
    engine_of: Callable[..., LLMEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def propose(_lookup: PromptLookup, most: int) -> Draft | None:
        asked.append(most)
        return None

    monkeypatch.setattr(PromptLookup, "propose", propose)
    alone = PretendedModel(cycle, row=0.05, most=1)
    say(engine_of(alone), 50)
    assert asked
    asked.clear()
    say(engine_of(PretendedModel(cycle, row=0.05, most=1), slots=2), 50, calls=2)
    assert not asked


def test_rows_that_cost_more_than_steps_are_left_alone(
    engine_of: Callable[..., LLMEngine],
) -> None:
    assert gain(engine_of, cycle, row=2) >= 0.97


def test_nothing_is_guessed_before_a_step_without_guesses_was_measured(
    engine_of: Callable[..., LLMEngine],
) -> None:
    runner = PretendedModel(cycle, row=0.01)
    say(engine_of(runner), 100)
    first = next(index for index, width in enumerate(runner.widths) if width)
    assert first >= 2
    assert max(runner.widths) == 8


def test_one_miss_does_not_switch_it_off_and_a_run_of_them_does(
    engine_of: Callable[..., LLMEngine],
) -> None:
    def until(tokens: Sequence[int]) -> int:
        if len(tokens) == 150:
            return 63
        return cycle(tokens) if len(tokens) < 300 else deceptive(tokens)

    runner = PretendedModel(until, row=0.1)
    say(engine_of(runner), 900)
    assert sum(runner.widths[20:40]) > 100, "on, one miss or not"
    assert sum(width > 0 for width in runner.widths[-300:]) <= 3, "off"


def test_a_batch_has_no_more_rows_than_the_runner_and_the_budget_have_room_for(
    engine_of: Callable[..., LLMEngine],
) -> None:
    runner = PretendedModel(cycle, row=0.001, most=10)
    say(engine_of(runner, slots=4), 200, calls=4)
    assert max(runner.widths) == max(width for width in WIDTHS if width * 4 <= 10) == 2
