"""Nobody waits long for a step: pieces of prompts fit the machine, and make way once."""

from __future__ import annotations

from collections.abc import Callable

import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.binding import GraphBinding
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.native_runner import Graph, Step
from appliance.engine.pace import Pace
from appliance.engine.sampling import SamplingParams
from appliance.engine.slot_pool import Array
from tests.engine.conftest import OpenChat
from tests.engine.results import Results, run

LONG = [(7 * i) % 300 for i in range(300)]
SHORT = [(11 * i) % 300 for i in range(20)]
GREEDY = SamplingParams(temperature=0, max_tokens=6)
BUDGET = 256


@given(
    most=st.integers(1, 4096),
    seconds=st.floats(0, 10),
    shared_seconds=st.floats(0, 10),
    steps=st.lists(st.tuples(st.integers(0, 4096), st.floats(0, 100)), max_size=20),
)
def test_a_budget_is_within_its_bounds_and_never_larger_in_company(
    most: int, seconds: float, shared_seconds: float, steps: list[tuple[int, float]]
) -> None:
    pace = Pace(most, seconds)
    for tokens, took in steps:
        pace.measured(tokens, took)
    assert 1 <= min(most, 16) <= pace.tokens(alone=False) <= pace.tokens(alone=True) == most
    shared = Pace(most, seconds, shared_seconds)
    for tokens, took in steps:
        shared.measured(tokens, took)
    assert min(most, 16) <= shared.tokens(alone=False, shared=True) <= pace.tokens(alone=False)
    assert shared.tokens(alone=False) == pace.tokens(alone=False)


def test_a_step_beside_others_is_what_the_machine_computes_in_its_time() -> None:
    pace = Pace(512, 0.4)
    for _ in range(20):
        pace.measured(100, 0.5)
    assert 75 <= pace.tokens(alone=False) <= 80
    assert Pace(512, 0).tokens(alone=False) == 512


def test_a_slow_beginning_is_soon_forgotten_and_a_slow_moment_does_not_count_much() -> None:
    pace = Pace(2048, 0.4)
    pace.measured(256, 1.1)
    assert pace.tokens(alone=False) < 100
    for _ in range(4):
        pace.measured(256, 0.005)
    assert pace.tokens(alone=False) == 2048
    pace.measured(2048, 0.4)
    assert pace.tokens(alone=False) == 2048


@pytest.fixture
def on_long_pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """`on_long_pieces(arrive)`: whenever a piece of over 100 tokens begins, `arrive(number)`."""

    def install(arrive: Callable[[int], None]) -> None:
        number, compute, compute_natively = 0, GraphBinding.run, Graph.run

        def interrupted(
            self: GraphBinding, logits: Array, options: ort.RunOptions | None = None
        ) -> None:
            nonlocal number
            if self.input_ids.shape[0] == 1 and self._bound_width > 100:
                number += 1
                arrive(number)
            compute(self, logits, options)

        def natively(self: Graph, step: Step, logits: Array, options: ort.RunOptions) -> None:
            nonlocal number
            if len(step.spans) == 1 and len(step.tokens) > 100:
                number += 1
                arrive(number)
            compute_natively(self, step, logits, options)

        monkeypatch.setattr(GraphBinding, "run", interrupted)
        monkeypatch.setattr(Graph, "run", natively)

    return install


class Steady(Pace):
    """A machine that computes 100 tokens a second: 40 in a step beside others, 20 for several
    callers."""

    def __init__(self) -> None:
        super().__init__(BUDGET, 0.4, 0.2)
        super().measured(100, 1)

    def measured(self, tokens: int, seconds: float) -> None:
        """What this machine takes does not matter."""


def open_paced(open_chat: OpenChat, name: str) -> ChatModel:
    model = open_chat(name, token_budget=BUDGET, max_sequences=4)
    model.engine._pieces.pace = Steady()
    return model


def steps_until_said(engine: LLMEngine, results: Results, call: int) -> int:
    steps = 0
    while not results.tokens(call):
        results.step(engine)
        steps += 1
    return steps


@pytest.mark.parametrize("name", ["chat", "bytes", "pair", "state-bytes"])
def test_a_long_prompt_makes_way_for_a_newcomer_and_both_say_what_they_say_alone(
    open_chat: OpenChat, name: str, on_long_pieces: Callable[[Callable[[int], None]], None]
) -> None:
    model = open_paced(open_chat, name)
    engine = model.engine
    alone = run(engine, Generation(1, LONG, GREEDY)), run(engine, Generation(2, SHORT, GREEDY))
    results = Results()
    arrived: list[int] = []

    def arrive(number: int) -> None:
        arrived.append(number)
        engine.add(Generation(10 + number, SHORT, GREEDY))

    on_long_pieces(arrive)
    engine.add(Generation(10, LONG, GREEDY))
    results.step(engine)
    assert arrived == [1]
    assert engine.counters.prompt_tokens == len(LONG) + len(SHORT), "nothing of it counts"
    assert steps_until_said(engine, results, 11) == 1, "the newcomer's is the next step"
    while engine.has_work:
        results.step(engine)
    assert arrived == [1], "the prompt goes on in pieces that nobody has to interrupt"
    assert engine._pieces.settled
    assert results.tokens(11) == alone[1].tokens(2)
    assert results.tokens(10) == alone[0].tokens(1)
    assert results.ends[10, 0].prompt_tokens == len(LONG)


def test_who_arrives_beside_others_interrupts_nobody(
    open_chat: OpenChat, on_long_pieces: Callable[[Callable[[int], None]], None]
) -> None:
    model = open_paced(open_chat, "bytes")
    engine, results = model.engine, Results()
    lengths: list[int] = []
    on_long_pieces(lengths.append)
    engine.add(Generation(1, SHORT, SamplingParams(temperature=0, max_tokens=40)))
    engine.add(Generation(2, LONG, GREEDY))
    while engine.has_work:
        results.step(engine)
    assert lengths == [], "beside others pieces are short"
    assert results.ends.keys() == {(1, 0), (2, 0)}


def test_steps_are_shorter_while_several_callers_are_served_or_were_lately(
    open_chat: OpenChat,
) -> None:
    engine, results = open_paced(open_chat, "bytes").engine, Results()
    now = 0.0
    engine._clock = lambda: now

    def first_piece(call: int, caller: str) -> int:
        """Tokens of a long prompt that the next step computes, beside a sequence that decodes."""
        engine.add(Generation(call, [call, *LONG], GREEDY, caller=caller))
        before = engine.counters.prompt_tokens
        results.step(engine)
        engine.cancel(call)
        results.step(engine)
        return engine.counters.prompt_tokens - before

    engine.add(Generation(1, SHORT, SamplingParams(temperature=0, max_tokens=100), caller="one"))
    results.step(engine)
    assert first_piece(2, "one") == 40
    assert first_piece(3, "other") == 20
    now = 9.0
    assert first_piece(4, "one") == 20, "the other was here nine seconds ago"
    now = 11.0
    assert first_piece(5, "one") == 40


def test_a_prompt_that_is_interrupted_whenever_it_can_be_still_comes_to_its_end(
    open_chat: OpenChat, on_long_pieces: Callable[[Callable[[int], None]], None]
) -> None:
    model = open_chat("bytes", token_budget=BUDGET, max_sequences=4)
    engine, results = model.engine, Results()
    engine._pieces.pace = Steady()
    prompt = [(13 * i) % 300 for i in range(500)]
    wanted = run(engine, Generation(1, prompt, GREEDY)).tokens(1)
    pieces: list[int] = []

    def arrive(number: int) -> None:
        pieces.append(number)
        engine.add(Generation(10 + number, SHORT, SamplingParams(temperature=0, max_tokens=1)))

    on_long_pieces(arrive)
    engine.add(Generation(10, prompt, GREEDY))
    while engine.has_work:
        results.step(engine)
    assert results.tokens(10) == wanted
    assert 1 <= len(pieces) <= 3, "after each interruption it comes forward by eight short pieces"
    assert all(results.tokens(10 + number) for number in pieces)
