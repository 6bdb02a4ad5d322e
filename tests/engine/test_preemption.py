"""A sequence that had to give its slot says in the end what it would have said alone."""

from __future__ import annotations

import random

import pytest

from appliance.engine.generation import Generation
from appliance.engine.output import FinishReason
from appliance.engine.sampling import SamplingParams
from tests.engine.conftest import OpenChat
from tests.engine.results import Results, run
from tests.engine.test_generation import PROMPTS, ids


@pytest.mark.parametrize("temperature", [0, 1])
def test_output_after_a_preemption_is_the_same(open_chat: OpenChat, temperature: int) -> None:
    model = open_chat(max_sequences=1)
    engine = model.engine
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=30)
    low = Generation(0, ids(model, PROMPTS[3]), params)
    high = Generation(1, ids(model, PROMPTS[0]), params, priority=1)
    alone = {call: run(engine, g).tokens(call) for call, g in enumerate((low, high))}
    before = engine.counters.prompt_tokens, engine.counters.recomputed_tokens
    assert before[1] == 0
    results = Results()
    engine.add(low)
    for _ in range(7):
        results.step(engine)
    engine.add(high)
    while engine.has_work:
        results.step(engine)
    assert {call: results.tokens(call) for call in alone} == alone
    assert engine.counters.preemptions == 1
    end = results.ends[0, 0]
    assert (end.prompt_tokens, end.generated_tokens, end.cached_tokens) == (len(low.prompt), 30, 0)
    # Each prompt token counts once, and what had to be done again counts as that.
    assert engine.counters.prompt_tokens - before[0] == len(low.prompt) + len(high.prompt)
    assert engine.counters.recomputed_tokens == len(low.prompt) + 6


def test_a_preempted_sequence_that_is_cancelled_is_billed_for_what_it_had(
    open_chat: OpenChat,
) -> None:
    model = open_chat(max_sequences=1)
    engine, results = model.engine, Results()
    params = SamplingParams(temperature=0, max_tokens=30)
    low = Generation(0, ids(model, PROMPTS[3]), params)
    engine.add(low)
    for _ in range(4):
        results.step(engine)
    engine.add(Generation(1, ids(model, PROMPTS[0]), params, priority=1))
    results.step(engine)
    engine.cancel(0)
    results.step(engine)
    end = results.ends[0, 0]
    assert end.reason is FinishReason.CANCELLED
    assert (end.prompt_tokens, end.generated_tokens) == (len(low.prompt), 4)


def test_a_churn_of_callers_and_priorities_says_what_each_says_alone(open_chat: OpenChat) -> None:
    model = open_chat(max_sequences=3, token_budget=24)
    chance = random.Random(11)
    requests = [
        Generation(
            number,
            ids(model, chance.choice(PROMPTS) * chance.randint(1, 3)),
            SamplingParams(temperature=0, max_tokens=chance.randint(1, 24)),
            cache_namespace=chance.choice(["", "a"]),
            caller=chance.choice("xyz"),
            priority=chance.choice([0, 0, 1]),
        )
        for number in range(30)
    ]
    together, waiting = Results(), list(requests)
    while waiting or model.engine.has_work:
        for _ in range(min(len(waiting), chance.randint(0, 1))):
            model.engine.add(waiting.pop())
        together.step(model.engine)
    assert model.engine.counters.preemptions > 3
    cold = open_chat(max_sequences=1)
    for request in requests:
        alone = run(cold.engine, Generation(0, request.prompt, request.params)).tokens(0)
        assert together.tokens(request.call) == alone
