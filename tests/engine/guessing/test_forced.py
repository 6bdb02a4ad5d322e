"""What a grammar forces is computed at once and changes no token: alone, in company, in any form.

The clocks are reckoned, so that nothing depends on the machine.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config import EngineSettings
from appliance.engine.chat_model import ChatModel
from appliance.engine.choosing import Choice, HostRow
from appliance.engine.generation import Generation
from appliance.engine.grammar.constraint import CompiledGrammar
from appliance.engine.grammar.turn import Structured, Turn
from appliance.engine.guessing.forced import divided
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.output import FinishReason
from appliance.engine.sampler import Sampler
from appliance.engine.sampling import SamplingParams
from tests.engine.conftest import OpenChat, open_model_of
from tests.engine.guessing.test_speculation_rule import VOCAB, PretendedModel, cycle
from tests.engine.results import Results, run
from tests.engine.schemas import corpus, whole
from tests.engine.test_structured import TOOLS, held, schema_turn

TwoOf = Callable[[str], tuple[ChatModel, ChatModel]]
FORM = whole(
    customer_identification_number={"type": "integer", "minimum": 0, "maximum": 99},
    preferred_contact_channel={"enum": ["telephone", "electronic mail"]},
    agreed_to_the_terms_of_service={"const": "Yes, with all of its appendices."},
)


@pytest.fixture(scope="module")
def two_of(node_root: Path) -> Iterator[TwoOf]:
    """Gives the same model with forced runs and without; its steps all seem to take as long."""
    opened: dict[str, tuple[ChatModel, ChatModel]] = {}

    def open_one(name: str, drafted: int) -> ChatModel:
        settings = EngineSettings(
            cache_bytes=64 << 20, threads=1, max_sequences=4, max_context=224, draft_tokens=drafted
        )
        model = open_model_of(node_root, name, settings)
        assert isinstance(model, ChatModel)
        model.engine._clock = itertools.count(1.0).__next__
        return model

    def both(name: str) -> tuple[ChatModel, ChatModel]:
        if name not in opened:
            opened[name] = open_one(name, 8), open_one(name, 0)
        return opened[name]

    yield both
    for model in itertools.chain(*opened.values()):
        model.close()


@pytest.mark.parametrize("name", ["bytes", "pair"])
def test_what_is_said_is_the_same_with_forced_runs_and_takes_fewer_steps(
    two_of: TwoOf, name: str
) -> None:
    forcing, plain = two_of(name)
    before = [model.engine.counters.steps for model in (forcing, plain)]
    forced = forcing.engine.counters.forced_tokens
    cases = ((0, None, 1), (0.8, 2, 1), (2, None, 1.2), (0, 2, 1.2))
    generated = 0
    for seed, (temperature, logprobs, penalty) in enumerate(cases):
        params: dict[str, Any] = {
            "temperature": temperature,
            "logprobs": logprobs,
            "repetition_penalty": penalty,
        }
        said = [
            run(model.engine, held(model, 0, schema_turn(FORM), seed=seed, **params))
            for model in (forcing, plain)
        ]
        assert said[0].deltas == said[1].deltas
        assert said[0].ends == said[1].ends
        jsonschema.validate(json.loads(said[0].text(0)), FORM)
        generated += said[0].ends[0, 0].generated_tokens
    forced = forcing.engine.counters.forced_tokens - forced
    assert forced > generated / 3
    assert forcing.engine.counters.steps - before[0] <= generated - forced + len(cases)
    assert plain.engine.counters.steps - before[1] >= generated
    assert plain.engine.counters.forced_tokens == 0


@pytest.mark.parametrize("name", ["bytes", "pair"])
def test_in_a_churning_batch_every_sequence_says_what_it_says_alone(
    two_of: TwoOf, name: str
) -> None:
    forcing, plain = two_of(name)
    schemas = [schema for kind, schema in corpus() if kind.startswith("realistic")][:6]
    turns = [schema_turn(schema) for schema in (FORM, *schemas)]
    turns += [Turn(None, TOOLS, "required"), Turn(Structured("regex", "(ab){12}[xy](cd){9}"))]
    requests = [
        held(forcing, n, turn, "Say.", seed=n, temperature=(0, 1)[n % 2], max_tokens=80)
        for n, turn in enumerate(turns)
    ]
    free = SamplingParams(seed=5, max_tokens=25)
    requests += [Generation(100 + n, [3, 5, 7, 400 + n], free) for n in range(4)]
    alone = {g.call: run(plain.engine, with_grammar_of(plain, g, turns)) for g in requests}
    chance, together, waiting = random.Random(1), Results(), list(requests)
    chance.shuffle(waiting)
    left = waiting[0].call
    while waiting or forcing.engine.has_work:
        if waiting and chance.random() < 0.5:
            forcing.engine.add(waiting.pop())
        elif not waiting:
            forcing.engine.cancel(left)
        together.step(forcing.engine)
    assert forcing.engine.counters.forced_tokens > 0
    for request in requests:
        said, wanted = together.tokens(request.call), alone[request.call].tokens(request.call)
        if together.ends[request.call, 0].reason is FinishReason.CANCELLED:
            assert said == wanted[: len(said)]
        else:
            assert said == wanted


def with_grammar_of(model: ChatModel, request: Generation, turns: list[Turn]) -> Generation:
    """The request with its grammar compiled by `model`; that of another would do as well."""
    if request.grammar is None:
        return request
    grammar = model.grammars.compiled(turns[request.call]).result()
    return dataclasses.replace(request, grammar=grammar)


def test_a_run_is_cut_where_its_sequence_ends(two_of: TwoOf) -> None:
    forcing, plain = two_of("bytes")
    turn = Turn(Structured("regex", "(abcd){40}"))
    cut: tuple[dict[str, Any], ...] = (
        {"max_tokens": 7},
        {"stop": ("dabcda",)},
        {"end_ids": frozenset()},
    )
    for params in cut:
        said = [run(m.engine, held(m, 0, turn, **params)) for m in (forcing, plain)]
        assert said[0].deltas == said[1].deltas
        assert said[0].ends == said[1].ends
    turn = Turn(Structured("regex", "(abcd){400}"))
    said = [run(m.engine, held(m, 0, turn, max_tokens=None)) for m in (forcing, plain)]
    assert said[0].deltas == said[1].deltas
    assert said[0].ends[0, 0].reason is FinishReason.LENGTH


def test_a_prefix_that_a_forced_run_computed_is_reused(two_of: TwoOf) -> None:
    forcing, plain = two_of("bytes")
    first = [
        dataclasses.replace(held(m, 0, schema_turn(FORM), temperature=0), cache_namespace="a")
        for m in (forcing, plain)
    ]
    said = run(forcing.engine, first[0]).tokens(0)
    assert run(plain.engine, first[1]).tokens(0) == said
    greedy = SamplingParams(temperature=0, max_tokens=20)
    then = Generation(1, [*first[0].prompt, *said, 400], greedy, cache_namespace="a")
    warm = run(forcing.engine, then)
    assert warm.ends[1, 0].cached_tokens >= 32
    assert warm.deltas == run(plain.engine, then).deltas


@settings(max_examples=40, deadline=None)
@given(pick=st.integers(0, 10_000), seed=st.integers(0, 1000))
def test_every_token_of_a_run_is_one_that_the_grammar_takes(
    grammars: list[CompiledGrammar], pick: int, seed: int
) -> None:
    grammar, chance = grammars[pick % len(grammars)], random.Random(seed)
    constraint, other = grammar.begin(), grammar._matcher.deep_copy()
    for _ in range(60):
        mask = constraint.allowed()
        assert mask is not None
        choice = mask.nonzero()[0].tolist()
        forced = constraint.forced(1000)
        assert constraint.only() == (choice[0] if len(choice) == 1 else None)
        assert list(forced[:1]) == (choice if len(choice) == 1 else [])
        assert constraint.forced(2) == forced[:2]
        assert other.validate_tokens(list(forced)) == len(forced)
        token = chance.choice(choice)
        if constraint.ends_with(token):
            return
        assert other.consume_token(token)
        constraint.advance(token)
        if constraint.complete:
            return
        assert constraint.forced(1000) == forced[1:]


@pytest.fixture(scope="module")
def grammars(node_root: Path) -> list[CompiledGrammar]:
    """Of a tenth of the corpus, and of calls; what belongs to no model any more."""
    model = open_model_of(node_root, "chat", EngineSettings(cache_bytes=64 << 20, threads=1))
    assert isinstance(model, ChatModel)
    turns = [schema_turn(schema) for _, schema in corpus()[::12]]
    turns += [schema_turn(FORM), Turn(None, TOOLS, "required"), Turn(None, TOOLS[:1], "required")]
    compiled = [model.grammars.compiled(turn).result() for turn in turns]
    model.close()
    return compiled


@given(
    params=st.builds(
        SamplingParams,
        temperature=st.sampled_from([0, 1]),
        seed=st.integers(0, 100),
        top_k=st.sampled_from([0, 3]),
        frequency_penalty=st.sampled_from([0, 1]),
        logprobs=st.sampled_from([None, 1]),
    ),
    tokens=st.lists(st.integers(0, 19), max_size=6),
)
def test_a_forced_token_leaves_the_sampler_as_one_from_a_mask_of_one(
    params: SamplingParams, tokens: list[int]
) -> None:
    logits = np.random.default_rng(1).normal(size=20).astype(np.float32)
    masked, forced = Sampler(params, [1, 2]), Sampler(params, [1, 2])
    for token in tokens:
        only = np.arange(20) == token
        row = None if params.logprobs is None else HostRow(logits, Choice(params))
        assert masked.sample(logits, only) == forced.take_forced(token, row)
    assert masked.sample(logits) == forced.sample(logits)


@given(st.lists(st.lists(st.just(1), max_size=30).map(tuple), max_size=9), st.integers(0, 64))
def test_rows_are_shared_out_evenly_and_none_is_left_that_a_run_could_use(
    runs: list[tuple[int, ...]], rows: int
) -> None:
    parts = dict(divided(runs, rows))
    used = sum(parts.values())
    assert used <= rows
    lengths = [parts.get(place, 0) for place in range(len(runs))]
    assert all(parts.values())
    cut = [have for have, run_ in zip(lengths, runs, strict=True) if have < len(run_)]
    if cut:
        assert used == rows
        assert max(lengths) - min(cut) <= 1


@pytest.fixture
def engine_of(open_chat: OpenChat) -> Callable[..., LLMEngine]:
    model = open_chat()

    def make(runner: PretendedModel, *, slots: int, gathered: bool) -> LLMEngine:
        return LLMEngine(
            runner, model.tokenizer, model.prompting, vocab_size=VOCAB, slots=slots,
            capacity=512, token_budget=512, max_waiting=0, draft_tokens=8,
            gathered=gathered, clock=lambda: runner.seconds,
        )  # fmt: skip

    return make


@pytest.mark.parametrize(("gathered", "slots", "taken"), [
    (False, 1, True), (False, 4, True), (True, 1, True), (True, 4, False),
])  # fmt: skip
def test_what_is_forced_is_computed_however_dear_a_row_is_unless_others_would_pay(
    open_chat: OpenChat,
    engine_of: Callable[..., LLMEngine],
    gathered: bool,
    slots: int,
    taken: bool,
) -> None:
    runner = PretendedModel(cycle, row=2)
    engine = engine_of(runner, slots=slots, gathered=gathered)
    params = SamplingParams(temperature=0, max_tokens=60)
    turn = Turn(Structured("regex", "([ab][0-9](wxyz){6}){9}"))
    grammar = open_chat().grammars.compiled(turn).result()
    engine.add(Generation(0, [1, 2, 3], params, grammar=grammar))
    for call in range(1, slots):
        engine.add(Generation(call, [7, call], params))
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    forced = engine.counters.forced_tokens
    assert forced > 30 if taken else forced < 10
    assert max(runner.widths) <= (8 if gathered else 64)
