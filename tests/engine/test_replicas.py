"""On several GPUs a request goes where it waits least, and where its prompt is known."""

from __future__ import annotations

import pytest

from appliance.engine.generation import Generation
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.replicas import busyness, place
from appliance.engine.sampling import SamplingParams
from tests.engine.conftest import OpenChat
from tests.engine.results import Results

PROMPT = [7 + n % 50 for n in range(100)]
Engines = tuple[LLMEngine, LLMEngine, LLMEngine]


@pytest.fixture
def engines(open_chat: OpenChat) -> Engines:
    one, two, three = (
        open_chat(max_sequences=16, max_context=256, cache_bytes=256 << 20).engine for _ in range(3)
    )
    return one, two, three


def request(call: int, prompt: list[int], namespace: str = "") -> Generation:
    params = SamplingParams(temperature=0, max_tokens=30)
    return Generation(call, prompt, params, cache_namespace=namespace)


def test_one_engine_is_never_chosen_among(open_chat: OpenChat) -> None:
    engine = open_chat().engine
    assert place((engine,), request(1, PROMPT)) is engine


def test_requests_that_share_nothing_are_spread_evenly(engines: Engines) -> None:
    for call in range(12):
        generation = request(call, [call + 1, *PROMPT])
        place(engines, generation).add(generation)
    assert [busyness(engine) for engine in engines] == [4, 4, 4]


def test_a_prompt_goes_to_where_its_beginning_was_computed(engines: Engines) -> None:
    first = request(1, PROMPT, "key")
    engines[1].add(first)
    results = Results()
    while engines[1].has_work:
        results.step(engines[1])
    assert place(engines, request(2, [*PROMPT, 5], "key")) is engines[1]
    assert place(engines, request(3, [*PROMPT, 5], "another")) is engines[0]
    assert place(engines, request(4, PROMPT[1:], "key")) is engines[0]


def test_a_prompt_goes_to_where_its_beginning_is_being_computed(engines: Engines) -> None:
    engines[2].add(request(1, PROMPT, "key"))
    engines[2].step()
    assert place(engines, request(2, [*PROMPT, 5], "key")) is engines[2]


def test_nobody_waits_long_for_a_beginning_that_is_known(engines: Engines) -> None:
    for call in range(5):
        engines[2].add(request(call, PROMPT, "key"))
    engines[2].step()
    assert place(engines, request(9, [*PROMPT, 5], "key")) is engines[0]


def test_looking_for_a_beginning_changes_nothing(engines: Engines) -> None:
    engines[0].add(request(1, PROMPT, "key"))
    engines[0].step()
    for call in range(3):
        place(engines, request(call, PROMPT, "key"))
    for engine in engines:
        engine.check_integrity()
    assert [busyness(engine) for engine in engines] == [1, 0, 0]
