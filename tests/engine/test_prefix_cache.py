"""Greedy output with a cold and a warm prefix cache, token for token, on a real model."""

from __future__ import annotations

import random

from appliance.engine.generation import Generation
from appliance.engine.output import FinishReason
from appliance.engine.sampling import SamplingParams
from tests.engine.conftest import OpenChat
from tests.engine.results import churn, run
from tests.engine.test_generation import PROMPTS, ids

GREEDY = SamplingParams(temperature=0, max_tokens=24)
SYSTEM = "Every request is written to the audit log before its first word is sent. " * 4


def test_a_warm_cache_changes_the_counts_and_not_the_tokens(open_chat: OpenChat) -> None:
    model = open_chat()
    for number, question in enumerate(PROMPTS):
        prompt = ids(model, SYSTEM + question)
        cold = run(model.engine, Generation(0, prompt, GREEDY))
        warm = run(model.engine, Generation(0, prompt, GREEDY, cache_namespace="a"))
        again = run(model.engine, Generation(0, prompt, GREEDY, cache_namespace="a"))
        assert cold.tokens(0) == warm.tokens(0) == again.tokens(0)
        assert cold.ends[0, 0].cached_tokens == 0
        shared = 0 if number == 0 else len(ids(model, SYSTEM)) - 1
        assert warm.ends[0, 0].cached_tokens in range(shared, shared + 2 if shared else 1), (
            "the last token may be another with what follows"
        )
        assert again.ends[0, 0].cached_tokens == len(prompt) - 1
        assert again.ends[0, 0].prompt_tokens == len(prompt)


def test_the_counters_tell_computed_from_cached(open_chat: OpenChat) -> None:
    model = open_chat()
    prompt = ids(model, SYSTEM)
    for _ in range(2):
        run(model.engine, Generation(0, prompt, GREEDY, cache_namespace="a"))
    counters = model.engine.counters
    reused = len(prompt) - 1
    assert counters.prefix_queries == 2 * len(prompt)
    assert counters.cached_tokens == reused
    assert counters.prompt_tokens == 2 * len(prompt) - reused


def test_sequences_of_one_request_share_their_prompt(open_chat: OpenChat) -> None:
    model = open_chat()
    prompt = ids(model, SYSTEM)
    alone = run(model.engine, Generation(0, prompt, GREEDY)).tokens(0)
    computed = model.engine.counters.prompt_tokens
    results = run(model.engine, Generation(0, prompt, GREEDY, n=3))
    assert [results.tokens(0, index) for index in range(3)] == [alone] * 3
    assert model.engine.counters.prompt_tokens - computed == len(prompt) + 2
    assert [results.ends[0, index].cached_tokens > 0 for index in range(3)] == [False, True, True]


def test_a_churning_batch_over_a_warm_cache_says_what_each_says_alone(open_chat: OpenChat) -> None:
    model = open_chat(max_sequences=5, token_budget=24)
    chance = random.Random(5)
    requests = [
        Generation(
            number,
            ids(
                model, SYSTEM * chance.randint(0, 1) + chance.choice(PROMPTS) * chance.randint(1, 3)
            ),
            SamplingParams(temperature=0, max_tokens=chance.randint(1, 24)),
            n=chance.choice([1, 1, 2]),
            cache_namespace=chance.choice(["", "a", "b"]),
        )
        for number in range(40)
    ]
    together = churn(model.engine, requests, chance)
    assert model.engine.counters.cached_tokens > 1000, "the cache was used"
    cold = open_chat(max_sequences=1)
    for request in requests:
        alone = run(cold.engine, Generation(0, request.prompt, request.params)).tokens(0)
        for index in range(request.n):
            end, tokens = together.ends[request.call, index], together.tokens(request.call, index)
            assert end.generated_tokens == len(tokens)
            assert tokens == alone[: len(tokens)]
            assert end.reason is FinishReason.CANCELLED or tokens == alone
            assert end.cached_tokens <= max(end.prompt_tokens - 1, 0)
