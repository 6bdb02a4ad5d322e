"""Drafts on a graphics processor: several tokens of a sequence alone, verified in one step.

Both runners over ordinary memory, CUDA's and TensorRT's. What is verified at once is rounded
otherwise than token by token, as it is in another batch; these models have no tokens so close to
each other that it shows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.engine.generation import Generation
from appliance.engine.grammar.turn import Structured, Turn
from appliance.engine.guessing.drafting import Prediction
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.sampling import SamplingParams
from tests.engine.conftest import OpenChat
from tests.engine.device.conftest import OpenHalf, OpenStatic
from tests.engine.device.on_host import assert_the_references
from tests.engine.results import Results, run

PROMPT = [3, 5, 7, 11, 400]
FEW = dict.fromkeys((3, 5, 7, 11, 13, 17), 60.0)
"""Biases under which a model says little else, so that it often repeats itself."""
PARAMS = [
    SamplingParams(temperature=0, max_tokens=40),
    SamplingParams(temperature=0, max_tokens=40, logprobs=2),
    SamplingParams(seed=1, max_tokens=40, logit_bias=FEW),
    SamplingParams(seed=2, max_tokens=40, temperature=0.7, top_p=0.9, logprobs=1),
    SamplingParams(seed=3, max_tokens=40, logit_bias=FEW, repetition_penalty=1.2),
    SamplingParams(temperature=0, max_tokens=40, frequency_penalty=0.5, logit_bias=FEW),
]


Open = Callable[..., LLMEngine]


@pytest.fixture(params=["cuda", "tensorrt"])
def opened(request: pytest.FixtureRequest) -> Open:
    """Opens an engine by one of the runners."""
    if request.param == "cuda":
        half: OpenHalf = request.getfixturevalue("open_half")
        return half
    static: OpenStatic = request.getfixturevalue("open_static")
    return lambda **settings: static(**settings)[0]


def test_what_is_predicted_changes_the_steps_and_no_token(opened: Open) -> None:
    plain, drafting = opened(), opened(draft_tokens=8)
    for call, params in enumerate(PARAMS):
        alone = Generation(call, PROMPT, params)
        wanted = run(plain, alone)
        said = wanted.tokens(call)
        half_right = [*said[:15], 499, *said[16:]]
        got, steps = counted(
            drafting, dataclasses.replace(alone, prediction=Prediction(half_right))
        )
        assert got.tokens(call) == said
        assert steps < len(said), "several tokens came of some steps"
        assert got.ends[call, 0].accepted_prediction_tokens > 10
        assert got.ends[call, 0].rejected_prediction_tokens > 0
        assert_same_logprobs(got, wanted, call)


def counted(engine: LLMEngine, *requests: Generation) -> tuple[Results, int]:
    """What came of them, and in how many steps."""
    results, steps = Results(), 0
    for request in requests:
        engine.add(request)
    while engine.has_work:
        results.step(engine)
        steps += 1
    return results, steps


def assert_same_logprobs(got: Results, wanted: Results, call: int) -> None:
    one, other = (
        [logprob for delta in results.deltas[call, 0] for logprob in delta.logprobs]
        for results in (got, wanted)
    )
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.token_id == theirs.token_id
        assert mine.logprob == pytest.approx(theirs.logprob, abs=0.02)
        assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]


def test_a_sequence_that_repeats_itself_is_guessed_for(opened: Open) -> None:
    request = Generation(1, PROMPT, SamplingParams(seed=5, max_tokens=60, logit_bias=FEW))
    drafting = opened(draft_tokens=8)
    assert run(drafting, request).tokens(1) == run(opened(), request).tokens(1)
    assert drafting.counters.accepted_tokens > 0


def test_what_a_grammar_forces_is_computed_in_one_step(opened: Open, open_chat: OpenChat) -> None:
    schema = {
        "type": "object",
        "properties": {"a_rather_long_name": {"enum": ["some value that is long"]}},
        "required": ["a_rather_long_name"],
        "additionalProperties": False,
    }
    turn = Turn(Structured("json_schema", json.dumps(schema)))
    grammar = open_chat().grammars.compiled(turn).result()
    params = SamplingParams(temperature=0, max_tokens=60)
    request = Generation(1, PROMPT, params, grammar=grammar)
    wanted, many = counted(opened(), request)
    got, few = counted(opened(draft_tokens=8), request)
    assert got.text(1) == wanted.text(1)
    assert json.loads(got.text(1)) == {"a_rather_long_name": "some value that is long"}
    assert few < many / 2


def test_in_company_nothing_is_drafted_and_alone_again_it_is(opened: Open, node_root: Path) -> None:
    alone = [SamplingParams(temperature=0, max_tokens=count) for count in (60, 12, 60)]
    said = run(opened(), Generation(0, PROMPT, alone[0])).tokens(0)
    engine = opened(draft_tokens=8)
    requests = [
        Generation(0, PROMPT, alone[0], prediction=Prediction(said)),
        Generation(1, [8] * 70, alone[1]),
    ]
    results = Results()
    engine.add(requests[0])
    while len(results.tokens(0)) < 20:
        results.step(engine)
    before = engine.counters.drafted_tokens
    assert before > 0
    engine.add(requests[1])
    while not results.tokens(1):  # its prompt is computed beside drafts of the other
        results.step(engine)
    beside = engine.counters.drafted_tokens
    while (1, 0) not in results.ends:
        results.step(engine)
    if (0, 0) not in results.ends:
        assert engine.counters.drafted_tokens == beside, "no draft in a batch"
    while engine.has_work:
        results.step(engine)
    assert_the_references(results, requests, node_root / "chat")


def test_a_draft_ends_where_the_slot_does(opened: Open) -> None:
    plain, drafting = opened(slots=1), opened(slots=1, draft_tokens=8)
    prompt = [9] * 240
    params = SamplingParams(temperature=0, max_tokens=99)
    said = run(plain, Generation(1, prompt, params)).tokens(1)
    assert len(said) == 256 - 240
    request = Generation(1, prompt, params, prediction=Prediction(said))
    assert run(drafting, request).tokens(1) == said
    assert drafting.counters.accepted_tokens > 0


def test_what_was_drafted_in_vain_is_in_nobodys_prefix(opened: Open) -> None:
    engine, plain = opened(draft_tokens=8), opened()
    params = SamplingParams(temperature=0, max_tokens=40)
    wanted = run(plain, Generation(1, PROMPT, params))
    wrong = Prediction([token for said in wanted.tokens(1) for token in (said, 499)])
    run(engine, Generation(1, PROMPT, params, cache_namespace="a", prediction=wrong))
    longer = [*PROMPT, *wanted.tokens(1)]
    after = Generation(2, longer, params, cache_namespace="a")
    got = run(engine, after)
    assert got.ends[2, 0].cached_tokens > 0
    assert got.tokens(2) == run(plain, after).tokens(2)
