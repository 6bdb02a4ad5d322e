"""Speculation changes no token: alone and in company, greedy and sampled, on a real 8-bit model.

The clock says that every step takes as long as any other, so drafts always seem worth it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.config import EngineSettings
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.grammar.turn import Structured, Turn
from appliance.engine.guessing.drafting import Prediction
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.output import Delta, Finished, FinishReason
from appliance.engine.sampling import SamplingParams
from tests.conftest import BuildOnce
from tests.engine.conftest import open_model_of
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.engine_node import EngineNode

Open = Callable[..., ChatModel]
Said = dict[tuple[int, int], list[Delta | Finished]]
FEW = dict.fromkeys((3, 5, 7, 11, 13, 17), 60.0)
"""Biases under which a model says little else, so that it often repeats itself."""


@pytest.fixture(scope="module")
def open_grade(build_once: BuildOnce) -> Iterator[Open]:
    """Opens a model of a grade; its steps all seem to take the same time."""

    def build(root: Path) -> None:
        node, checkpoint = EngineNode(root), write_qwen3(root / "checkpoint")
        for grade in ("w8a8", "fp32"):
            node.add(checkpoint, name=grade, precision=grade)

    root = build_once("speculation-node", build)
    with ExitStack() as stack:

        def open_it(grade: str, *, draft_tokens: int, **changes: int) -> ChatModel:
            given = {"cache_bytes": 64 << 20, "threads": 1, "max_context": 128} | changes
            model = open_model_of(root, grade, EngineSettings(draft_tokens=draft_tokens, **given))
            assert isinstance(model, ChatModel)
            stack.callback(model.close)
            model.engine._clock = itertools.count(1.0).__next__
            return model

        yield open_it


@pytest.fixture(scope="module")
def engines(open_grade: Open) -> tuple[LLMEngine, LLMEngine]:
    """The same model with speculation and without."""
    return (
        open_grade("w8a8", draft_tokens=8, max_sequences=4).engine,
        open_grade("w8a8", draft_tokens=0, max_sequences=4).engine,
    )


def drain(engine: LLMEngine, said: Said) -> None:
    for output in engine.step():
        events = said.setdefault((output.call, output.event.index), [])
        assert not events or isinstance(events[-1], Delta), "nothing comes after the end"
        events.append(output.event)
    engine.check_integrity()


def run(engine: LLMEngine, *requests: Generation) -> Said:
    said: Said = {}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        drain(engine, said)
    return said


def without_counts(said: Said) -> Said:
    """The same, but for what only speculation counts."""
    return {
        key: [
            dataclasses.replace(event, accepted_prediction_tokens=0, rejected_prediction_tokens=0)
            if isinstance(event, Finished)
            else event
            for event in events
        ]
        for key, events in said.items()
    }


def tokens(events: list[Delta | Finished]) -> list[int]:
    return [i for event in events if isinstance(event, Delta) for i in event.token_ids]


# Short enough to be computed in one piece whatever else a step does: pieces round differently.
PROMPT = st.lists(st.sampled_from([3, 5, 7, 11, 400]), min_size=1, max_size=20)
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 40),
    min_tokens=st.just(0),
    temperature=st.sampled_from([0, 0.7, 3]),
    top_p=st.sampled_from([1, 0.9]),
    top_k=st.sampled_from([0, 5]),
    frequency_penalty=st.sampled_from([0, 0.5]),
    repetition_penalty=st.sampled_from([1, 1.2]),
    logit_bias=st.sampled_from([{}, FEW]),
    logprobs=st.sampled_from([None, 2]),
    stop=st.sampled_from([(), ("a",)]),
    end_ids=st.sampled_from([frozenset[int](), frozenset({13})]),
    seed=st.integers(0, 1000),
)


@st.composite
def generations(draw: st.DrawFn, call: int = 0) -> Generation:
    predicted = draw(st.none() | st.lists(st.sampled_from([3, 5, 7, 11, 13, 17]), max_size=30))
    return Generation(
        call,
        draw(PROMPT),
        draw(PARAMS),
        n=draw(st.sampled_from([1, 1, 2])),
        prediction=None if predicted is None else Prediction(predicted),
    )


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(generations())
def test_alone_every_event_is_what_it_is_without_speculation(
    engines: tuple[LLMEngine, LLMEngine], generation: Generation
) -> None:
    guessing, plain = engines
    assert without_counts(run(guessing, generation)) == run(plain, generation)


def churned(guessing: LLMEngine, data: st.DataObject) -> tuple[list[Generation], Said]:
    """Requests that arrive and are cancelled at any time, and what `guessing` says to them."""
    requests = [data.draw(generations(call=call)) for call in range(data.draw(st.integers(2, 7)))]
    arrivals = data.draw(st.lists(st.integers(0, 2), min_size=40, max_size=40))
    cancels = data.draw(st.lists(st.sampled_from([-1, -1, -1, 0, 1, 2]), min_size=40, max_size=40))
    said: Said = {}
    waiting = list(requests)
    for count, cancelled in zip(
        itertools.chain(arrivals, itertools.repeat(1)),
        itertools.chain(cancels, itertools.repeat(-1)),
        strict=False,
    ):
        for _ in range(min(count, len(waiting))):
            guessing.add(waiting.pop())
        guessing.cancel(cancelled)
        if not waiting and not guessing.has_work:
            break
        drain(guessing, said)
    return requests, said


def assert_churn_changes_nothing(
    guessing: LLMEngine, plain: LLMEngine, data: st.DataObject
) -> None:
    """Of what `guessing` says in a churn, compared with what `plain` says to each request alone."""
    requests, said = churned(guessing, data)
    alone = {key: events for request in requests for key, events in run(plain, request).items()}
    assert said.keys() == alone.keys()
    for key, events in without_counts(said).items():
        end = events[-1]
        assert isinstance(end, Finished)
        assert end.generated_tokens == len(tokens(events))
        if end.reason is FinishReason.CANCELLED:
            assert tokens(events) == tokens(alone[key])[: end.generated_tokens]
        else:
            assert events == alone[key]


def crowd(engine: LLMEngine) -> None:
    """Requests that share prefixes, are preempted and cancelled, to their ends."""
    shared = list(range(100, 170))
    for call, (delay, priority) in enumerate([(3, 0), (2, 0), (4, 0), (3, 0), (3, 5), (0, 5)]):
        params = SamplingParams(temperature=call % 2, seed=call, max_tokens=30)
        prompt = [*shared[: 20 + 10 * call], call]
        namespace = "ab"[call // 3]
        engine.add(Generation(call, prompt, params, cache_namespace=namespace, priority=priority))
        for _ in range(delay):
            drain(engine, {})
        if call == 2:
            engine.cancel(1)
    while engine.has_work:
        drain(engine, {})
    assert engine.counters.preemptions > 0


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_in_a_churning_batch_every_sequence_is_what_it_is_without_speculation(
    engines: tuple[LLMEngine, LLMEngine], data: st.DataObject
) -> None:
    assert_churn_changes_nothing(*engines, data)


def test_drafts_are_computed_taken_and_dropped(open_grade: Open) -> None:
    model = open_grade("w8a8", draft_tokens=8)
    repeating = SamplingParams(temperature=1, seed=4, max_tokens=100, logit_bias=FEW)
    said = run(model.engine, Generation(0, [3, 5, 7, 11], repeating))
    counters = model.engine.counters
    assert 0 < counters.accepted_tokens < counters.drafted_tokens
    assert counters.generated_tokens == len(tokens(said[0, 0])) == 100
    assert counters.steps == 100 - counters.accepted_tokens


def test_a_right_prediction_is_accepted_and_a_wrong_one_rejected(open_grade: Open) -> None:
    model = open_grade("w8a8", draft_tokens=8)
    params = SamplingParams(temperature=0, max_tokens=40)
    prompt = list(range(100, 110))
    wanted = tokens(run(model.engine, Generation(0, prompt, params))[0, 0])
    steps = model.engine.counters.steps
    right = run(model.engine, Generation(1, prompt, params, prediction=Prediction(wanted)))[1, 0]
    assert tokens(right) == wanted
    assert model.engine.counters.steps - steps < 20
    end = right[-1]
    assert isinstance(end, Finished)
    assert end.generated_tokens == 40
    assert end.accepted_prediction_tokens > 20
    wrong = Prediction([(token + 1) % 512 for token in wanted])
    end = run(model.engine, Generation(2, prompt, params, prediction=wrong))[2, 0][-1]
    assert isinstance(end, Finished)
    assert end.generated_tokens == 40
    assert end.rejected_prediction_tokens > 0


def test_a_prefix_that_others_reuse_has_no_rejected_token(open_grade: Open) -> None:
    model = open_grade("w8a8", draft_tokens=8)
    plain = open_grade("w8a8", draft_tokens=0)
    params = SamplingParams(temperature=1, seed=4, max_tokens=60, logit_bias=FEW)
    first = Generation(0, [3, 5, 7, 11], params, cache_namespace="a")
    conversation = [3, 5, 7, 11, *tokens(run(model.engine, first)[0, 0])]
    assert model.engine.counters.drafted_tokens > model.engine.counters.accepted_tokens
    run(plain.engine, first)
    greedy = SamplingParams(temperature=0, max_tokens=30)
    then = Generation(1, [*conversation, 400], greedy, cache_namespace="a")
    warm = run(model.engine, then)
    assert without_counts(warm) == run(plain.engine, then)
    end = warm[1, 0][-1]
    assert isinstance(end, Finished)
    assert end.cached_tokens == len(conversation) - 1, "the last was sampled and never computed"


def test_a_draft_stays_within_the_slot(open_grade: Open) -> None:
    # The kernel refuses a batch whose padded rows would leave one of the slots.
    model = open_grade("w8a8", draft_tokens=8, max_context=64)
    plain = open_grade("w8a8", draft_tokens=0, max_context=64)
    params = SamplingParams(temperature=0.5, seed=1, logit_bias=FEW)
    requests = [Generation(call, [3, 5, 7] * (1 + 9 * call), params) for call in range(3)]
    assert run(model.engine, *requests) == run(plain.engine, *requests)
    assert model.engine.counters.accepted_tokens > 0


def test_a_graph_for_one_token_a_row_guesses_nothing(open_grade: Open) -> None:
    model = open_grade("fp32", draft_tokens=8)
    params = SamplingParams(temperature=1, seed=4, max_tokens=60, logit_bias=FEW)
    run(model.engine, Generation(0, [3, 5, 7, 11], params))
    assert model.engine.counters.drafted_tokens == 0


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_grammar_holds_at_every_guessed_token(open_grade: Open, temperature: float) -> None:
    pattern = "[a-d]{24}[xy]{4}"
    said: list[Said] = []
    params = SamplingParams(temperature=temperature, seed=9, max_tokens=100)
    guess: Prediction | None = None
    for draft_tokens in (0, 8):
        model = open_grade("w8a8", draft_tokens=draft_tokens)
        grammar = model.grammars.compiled(Turn(Structured("regex", pattern))).result()
        request = Generation(0, [3, 5, 7], params, grammar=grammar, prediction=guess)
        said.append(run(model.engine, request))
        assert (model.engine.counters.accepted_tokens > 0) is (draft_tokens > 0)
        guess = Prediction(tokens(said[0][0, 0]))
    plain, guessing = said
    assert without_counts(guessing) == without_counts(plain)
    text = "".join(event.text for event in guessing[0, 0] if isinstance(event, Delta))
    assert re.fullmatch(pattern, text)
