"""When a draft model is asked: by a clock that pretended models move on, run by run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from appliance.engine.generation import Generation
from appliance.engine.guessing.draft_model import DraftModel
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.sampling import SamplingParams
from appliance.engine.slot_pool import Array
from appliance.scheduler import Plan
from tests.engine.conftest import OpenChat
from tests.engine.guessing.test_speculation_rule import VOCAB, PretendedModel


def spread(tokens: list[int]) -> int:
    """What nothing but a model knows: never the same for long."""
    return (7 * tokens[-1] + 13 * len(tokens) + tokens[0]) % VOCAB


class PretendedDraft:
    """A draft model that is right as often as `right` says, beside the clock of another.

    Args:
        run: seconds of a run; a token of a prompt takes `each`.
    """

    def __init__(
        self, beside: PretendedModel, right: Callable[[int], bool], run: float, each: float
    ) -> None:
        self._beside = beside
        self._right = right
        self._run = run
        self._each = each
        self.runs = self.caught_up = 0

    def run(self, plan: Plan) -> Array:
        tokens = sum(chunk.count for chunk in plan.prefills)
        self._beside.seconds += self._run + tokens * self._each
        self.caught_up += tokens
        self.runs += bool(plan.decodes)
        logits = np.zeros((sum(plan.rows), VOCAB), np.float32)
        row = -1
        for sequence, draft in zip(plan.decodes, plan.drafts, strict=True):
            row += 1 + len(draft)
            said = [*sequence.tokens, *draft]
            logits[row, (spread(said) + (not self._right(len(said)))) % VOCAB] = 1
        return logits


class Bench:
    """An engine with pretended models, and what they took."""

    def __init__(
        self,
        make: Callable[..., LLMEngine],
        right: Callable[[int], bool] | None,
        *,
        run: float = 0.1,
        each: float = 0.001,
        row: float = 0.02,
        slots: int = 1,
    ) -> None:
        self.runner = PretendedModel(spread, row)  # type: ignore[arg-type]
        self.draft = PretendedDraft(self.runner, right or (lambda _: False), run, each)
        self.engine = make(self.runner, None if right is None else self.draft, slots)

    def say(self, count: int, *, prompt: int = 3, calls: int = 1) -> float:
        """Seconds until all have been answered."""
        before = self.runner.seconds
        params = SamplingParams(temperature=0, max_tokens=count)
        rest = [token % VOCAB for token in range(2, prompt + 1)]
        for call in range(calls):
            self.engine.add(Generation(call, [call + 1, *rest], params))
        while self.engine.has_work:
            self.engine.step()
            self.engine.check_integrity()
        return self.runner.seconds - before


@pytest.fixture
def make(open_chat: OpenChat) -> Callable[..., LLMEngine]:
    model = open_chat()

    def make_it(runner: PretendedModel, draft: PretendedDraft | None, slots: int) -> LLMEngine:
        small = None
        if draft is not None:
            small = DraftModel(draft, slots=slots, capacity=2048, vocab_size=VOCAB)
        return LLMEngine(
            runner, model.tokenizer, model.prompting,
            vocab_size=VOCAB, slots=slots, capacity=2048, token_budget=512, max_waiting=0,
            draft_tokens=8, draft=small, clock=lambda: runner.seconds,
        )  # fmt: skip

    return make_it


def always(_: int) -> bool:
    return True


def never(_: int) -> bool:
    return False


def mostly(length: int) -> bool:
    return length % 4 != 0


def gain(make: Callable[..., LLMEngine], right: Callable[[int], bool], **costs: float) -> float:
    """Tokens a second compared with no draft model."""
    slots = int(costs.pop("slots", 1))
    seconds = [
        Bench(make, which, slots=slots, **costs).say(600, calls=slots) for which in (None, right)
    ]
    return seconds[0] / seconds[1]


def test_a_model_that_is_right_makes_answers_faster(make: Callable[..., LLMEngine]) -> None:
    assert gain(make, always) > 3
    assert gain(make, mostly) > 1.5
    assert gain(make, always, slots=4) > 2


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("run", [0.05, 0.3, 1.0])
def test_a_model_that_is_wrong_costs_next_to_nothing(
    make: Callable[..., LLMEngine], run: float, slots: int
) -> None:
    assert gain(make, never, run=run, slots=slots) >= 0.97


def test_a_model_that_is_as_slow_as_its_own_is_left_alone(make: Callable[..., LLMEngine]) -> None:
    assert gain(make, always, run=1.2) >= 0.97


def test_its_own_time_counts(make: Callable[..., LLMEngine]) -> None:
    """Right three times of four it is worth a run of 0.1, and not one of 0.7."""
    cheap, dear = Bench(make, mostly, run=0.1), Bench(make, mostly, run=0.7)
    cheap.say(300)
    dear.say(300)
    assert cheap.draft.runs > 200
    assert dear.draft.runs < 60


def test_a_long_prompt_is_caught_up_with_when_the_answer_would_have_gained_as_much(
    make: Callable[..., LLMEngine],
) -> None:
    bench = Bench(make, always, each=0.02)
    bench.say(100, prompt=400)  # its first time, it does not know what that takes
    assert bench.draft.caught_up >= 399
    before = bench.draft.caught_up
    bench.say(5, prompt=900)
    assert bench.draft.caught_up == before, "too short an answer"
    bench.say(200, prompt=900)
    assert bench.draft.caught_up > before + 800


def test_after_it_was_wrong_for_long_it_is_tried_again(make: Callable[..., LLMEngine]) -> None:
    bench = Bench(make, lambda length: length > 900)
    bench.say(1900)
    told = bench.engine.counters
    assert told.accepted_tokens > 200


def test_repetitions_and_predictions_go_first(make: Callable[..., LLMEngine]) -> None:
    bench = Bench(make, never)
    bench.runner._following = lambda tokens: (tokens[-1] + 1) % 20
    bench.say(600)
    assert bench.engine.counters.accepted_tokens > 400
    assert bench.draft.runs < 60
