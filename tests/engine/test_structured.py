"""Output of a random model under a grammar: always valid, in any company, at any temperature."""

from __future__ import annotations

import datetime
import ipaddress
import json
import random
import re
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.grammar.compiler import LIMITS
from appliance.engine.grammar.constraint import CompiledGrammar
from appliance.engine.grammar.tagged import CallableTool
from appliance.engine.grammar.turn import Structured, Turn
from appliance.engine.output import FinishReason
from appliance.engine.sampling import SamplingParams
from tests.engine.conftest import OpenChat
from tests.engine.results import Results, run
from tests.engine.schemas import corpus

SIMPLE = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0, "maximum": 999},
        "ok": {"type": "boolean"},
    },
    "required": ["n", "ok"],
    "additionalProperties": False,
}


def whole_match(pattern: str, text: str) -> str:
    """Raises ValueError if not all of `text` matches."""
    if re.fullmatch(pattern, text) is None:
        raise ValueError(text)
    return text


FORMAT_CHECKS: dict[str, Callable[[str], object]] = {
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "date-time": datetime.datetime.fromisoformat,
    "duration": lambda text: whole_match(r"P(?=.)(\d+[YMWD])*(T(?=.)(\d+[HMS])+)?", text),
    "email": lambda text: whole_match(r"[^@\s]+@[^@\s]+\.[A-Za-z]+", text),
    "hostname": lambda text: [
        whole_match(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", label) for label in text.split(".")
    ],
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": uuid.UUID,
}
CHECKER = jsonschema.FormatChecker(())
for _name, _check in FORMAT_CHECKS.items():
    CHECKER.checks(_name, ValueError)(
        lambda value, check=_check: not isinstance(value, str) or check(value) is not None
    )


def schema_turn(schema: object, **more: Any) -> Turn:
    return Turn(Structured("json_schema", json.dumps(schema)), **more)


def held(
    model: ChatModel, number: int, turn: Turn, prompt: str = "Write.", **params: Any
) -> Generation:
    """A request under a grammar, as the daemon makes it."""
    given = {"max_tokens": 400, "end_ids": frozenset(model.generation.eos_token_ids), **params}
    return Generation(
        number,
        model.tokenizer.encode_text(prompt),
        SamplingParams(**given),
        chat=True,
        tools=turn.calls != "none",
        calls_first=turn.calls == "required" or turn.structured is not None,
        reasoning=turn.reasoning != "none",
        reasoning_opened=turn.reasoning == "opened",
        grammar=model.grammars.compiled(turn).result(),
    )


def valid(text: str, schema: Any) -> None:
    jsonschema.Draft202012Validator(schema, format_checker=CHECKER).validate(json.loads(text))


def test_every_schema_of_the_corpus_is_satisfied_by_a_random_model(
    open_chat: OpenChat, record_property: Callable[[str, object], None]
) -> None:
    model = open_chat(max_sequences=8)
    schemas = corpus()
    assert len(schemas) >= 300
    unfinished = list(range(len(schemas)))
    temperature = {number: (1.0, 0.0)[number % 4 == 3] for number in unfinished}
    tries = 0
    for seed in range(12):
        # What a random model does not bring to an end within the context is tried once more.
        requests = [
            held(
                model, n, schema_turn(schemas[n][1]), schemas[n][0], seed=seed,
                temperature=temperature[n] if seed == 0 else 1.0, max_tokens=None,
            )
            for n in unfinished
        ]  # fmt: skip
        results = run_few_at_a_time(model, requests)
        tries += len(requests)
        left = []
        for n in unfinished:
            if results.ends[n, 0].reason is FinishReason.LENGTH:
                left.append(n)
                continue
            assert results.ends[n, 0].reason is FinishReason.STOP, schemas[n][0]
            try:
                valid(results.text(n), schemas[n][1])
            except (ValueError, jsonschema.ValidationError) as error:
                pytest.fail(f"{schemas[n]}: {results.text(n)!r}: {error}")
        unfinished = left
        if not left:
            break
    assert not unfinished, [schemas[n][0] for n in unfinished]
    record_property("measured", f"{len(schemas)} schemas, {tries} tries, all output valid")


def run_few_at_a_time(model: ChatModel, requests: Sequence[Generation]) -> Results:
    results, waiting = Results(), list(reversed(requests))
    while waiting or model.engine.has_work:
        while waiting and model.engine.waiting + model.engine.running < 8:
            model.engine.add(waiting.pop())
        results.step(model.engine)
    return results


def test_a_seed_gives_the_same_valid_answer_alone_and_in_churning_company(
    open_chat: OpenChat,
) -> None:
    model = open_chat(max_sequences=6)
    schemas = [schema for name, schema in corpus() if name.startswith("realistic")]
    requests = [
        held(model, n, schema_turn(schema), seed=n, temperature=(0, 0.8, 1.5)[n % 3], max_tokens=90)
        for n, schema in enumerate(schemas)
    ]
    prompt = model.tokenizer.encode_text("free")
    free = [Generation(100 + n, prompt, SamplingParams(seed=n, max_tokens=20)) for n in range(8)]
    alone = [run(model.engine, request).tokens(request.call) for request in requests]
    chance, together = random.Random(0), Results()
    waiting = [*requests, *free]
    chance.shuffle(waiting)
    while waiting or model.engine.has_work:
        if waiting and chance.random() < 0.4:
            model.engine.add(waiting.pop())
        together.step(model.engine)
    assert [together.tokens(request.call) for request in requests] == alone


def test_n_sequences_of_one_grammar_differ_and_each_is_valid(open_chat: OpenChat) -> None:
    model = open_chat()
    schema = {"type": "array", "items": SIMPLE, "minItems": 2, "maxItems": 2}
    one = held(model, 0, schema_turn(schema), seed=1)
    results = run(model.engine, Generation(**(fields(one) | {"n": 4})))
    texts = [results.text(0, index) for index in range(4)]
    assert len(set(texts)) == 4
    for text in texts:
        valid(text, schema)


def fields(generation: Generation) -> dict[str, Any]:
    return {name: getattr(generation, name) for name in generation.__dataclass_fields__}


def test_the_limit_of_tokens_cuts_and_says_so(open_chat: OpenChat) -> None:
    model = open_chat()
    turn = schema_turn({"type": "string", "minLength": 100, "maxLength": 200})
    results = run(model.engine, held(model, 0, turn, seed=1, max_tokens=5))
    assert results.ends[0, 0].reason is FinishReason.LENGTH
    assert results.ends[0, 0].generated_tokens == 5
    assert results.text(0).startswith('"')


def test_an_end_comes_only_where_the_grammar_has_one(open_chat: OpenChat) -> None:
    model = open_chat()
    # The model wants to end at once, and may not before the tenth character.
    ends = dict.fromkeys(model.generation.eos_token_ids, 100.0)
    turn = Turn(Structured("regex", "[a-z]{10,}"))
    results = run(model.engine, held(model, 0, turn, seed=1, logit_bias=ends))
    assert results.ends[0, 0].reason is FinishReason.STOP
    assert re.fullmatch("[a-z]{10,}", results.text(0))
    assert len(results.text(0)) < 30
    assert results.tokens(0)[-1] in model.generation.eos_token_ids


@pytest.mark.parametrize("params", [{"end_ids": frozenset()}, {"min_tokens": 300}])
def test_what_forbids_the_end_gives_way_where_nothing_else_is_left(
    open_chat: OpenChat, params: dict[str, Any]
) -> None:
    model = open_chat()
    for turn in (schema_turn(SIMPLE), Turn(Structured("regex", "(ab){1,3}"))):
        results = run(model.engine, held(model, 0, turn, seed=3, **params))
        assert results.ends[0, 0].reason is FinishReason.STOP
        if turn.structured is not None and turn.structured.kind == "regex":
            assert results.text(0) in {"ab", "abab", "ababab"}
        else:
            valid(results.text(0), SIMPLE)
    longest = run(model.engine, held(model, 0, turn, seed=3, end_ids=frozenset()))
    assert longest.text(0) == "ababab"


@pytest.mark.parametrize("reasoning", ["opened", "unopened"])
def test_the_grammar_begins_when_the_reasoning_is_closed(
    open_chat: OpenChat, reasoning: Any
) -> None:
    model = open_chat()
    close = model.grammars.token("</think>")
    assert close is not None
    turn = schema_turn(SIMPLE, reasoning=reasoning)
    for seed in range(8):
        request = held(model, 0, turn, seed=seed, logit_bias={close: 4.0}, max_tokens=None)
        results = run(model.engine, request)
        thought = "".join(delta.reasoning for delta in results.deltas[0, 0])
        assert results.ends[0, 0].reasoning_tokens > 0
        assert "</think>" not in thought
        if results.ends[0, 0].reason is FinishReason.STOP:
            valid(results.text(0), SIMPLE)
        else:
            assert close not in results.tokens(0)


TOOLS = (
    CallableTool(0, "lookup", json.dumps(SIMPLE), strict=True),
    CallableTool(1, "note", json.dumps({
        "type": "object", "properties": {"text": {"type": "string", "maxLength": 9}},
        "required": ["text"], "additionalProperties": False,
    }), strict=True),
)  # fmt: skip


def calls_of(results: Results, call: int) -> list[tuple[str, Any]]:
    found: dict[int, tuple[str, str]] = {}
    for delta in results.deltas[call, 0]:
        for piece in delta.tool_calls:
            name, arguments = found.get(piece.index, ("", ""))
            found[piece.index] = (name + piece.name, arguments + piece.arguments_json)
    return [(name, json.loads(arguments)) for _, (name, arguments) in sorted(found.items())]


def run_to_stop(model: ChatModel, turn: Turn, **params: Any) -> Results:
    """The first of some seeds with which the model comes to an end by itself."""
    for seed in range(20):
        results = run(model.engine, held(model, 0, turn, seed=seed, **params))
        if results.ends[0, 0].reason is not FinishReason.LENGTH:
            return results
    raise AssertionError("the model never ended")


def test_required_calls_are_made_and_their_arguments_are_valid(open_chat: OpenChat) -> None:
    model = open_chat()
    schemas = {tool.name: json.loads(tool.parameters_json) for tool in TOOLS}
    seen = set()
    for structured in (None, Structured("json_object")):
        results = run_to_stop(model, Turn(structured, TOOLS, "required"))
        assert results.ends[0, 0].reason is FinishReason.TOOL_CALLS
        assert results.text(0) == ""
        for name, arguments in calls_of(results, 0):
            jsonschema.validate(arguments, schemas[name])
            seen.add(name)
    assert seen


def test_a_named_function_is_the_only_one_called(open_chat: OpenChat) -> None:
    model = open_chat()
    for tool in TOOLS:
        results = run_to_stop(model, Turn(None, (tool,), "required", parallel=False))
        ((name, arguments),) = calls_of(results, 0)
        assert name == tool.name
        jsonschema.validate(arguments, json.loads(tool.parameters_json))


def test_where_the_model_may_choose_its_calls_are_valid_all_the_same(open_chat: OpenChat) -> None:
    model = open_chat()
    begin = model.grammars.token("<tool_call>")
    assert begin is not None
    turn = Turn(None, TOOLS, "optional", parallel=False)
    called = run_to_stop(model, turn, logit_bias={begin: 100.0})
    assert called.ends[0, 0].reason is FinishReason.TOOL_CALLS
    ((name, arguments),) = calls_of(called, 0)
    jsonschema.validate(arguments, json.loads({t.name: t.parameters_json for t in TOOLS}[name]))
    ends = dict.fromkeys(model.generation.eos_token_ids, 6.0)
    free = run_to_stop(model, turn, logit_bias=ends | {begin: -100.0})
    assert free.ends[0, 0].reason is FinishReason.STOP
    assert not calls_of(free, 0)


def test_an_answer_in_a_form_may_quote_the_tags_of_calls(open_chat: OpenChat) -> None:
    model = open_chat()
    text = '<tool_call>\n{"name": "note", "arguments": {"text": "x"}}\n</tool_call>'
    begin = model.grammars.token("<tool_call>")
    assert begin is not None
    turn = schema_turn({"const": {"a": text}}, tools=TOOLS, calls="optional")
    results = run(model.engine, held(model, 0, turn, seed=0, logit_bias={begin: -100.0}))
    assert results.ends[0, 0].reason is FinishReason.STOP
    assert json.loads(results.text(0)) == {"a": text}


def test_a_grammar_that_exceeds_its_work_ends_alone(
    open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_chat()
    plain = Generation(
        1, model.tokenizer.encode_text("hello"), SamplingParams(temperature=0, max_tokens=30)
    )
    alone = run(model.engine, plain).tokens(1)
    # The states double with each character of the window; a thousand are soon used up.
    monkeypatch.setitem(LIMITS, "max_lexer_states", 1_000)
    costly = Turn(Structured("regex", "(.*[aeiou].{60}|.*[t-z ].{62}){2}"))
    beside = run(model.engine, held(model, 0, costly, seed=1, max_tokens=None), plain)
    assert beside.tokens(1) == alone
    end = beside.ends[0, 0]
    assert end.reason is FinishReason.ERROR
    assert end.generated_tokens == len(beside.tokens(0)) > 0


def test_masks_do_not_depend_on_when_they_are_computed(open_chat: OpenChat) -> None:
    model = open_chat()
    grammar: CompiledGrammar = model.grammars.compiled(schema_turn(SIMPLE)).result()
    early, late = grammar.begin(), grammar.begin()
    chance = random.Random(1)
    with ThreadPoolExecutor(1) as executor:
        while not early.complete:
            early.prepare(executor)
            one, other = early.allowed(), late.allowed()
            assert one is not None
            assert other is not None
            assert (one == other).all()
            token = chance.choice(one.nonzero()[0].tolist())
            early.advance(token)
            late.advance(token)
            assert early.complete == late.complete
