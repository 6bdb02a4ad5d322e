"""Grammars: what is honoured, what is refused by name, and how much it may cost."""

from __future__ import annotations

import json
import os
import re
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine.grammar import compiler as compilers
from appliance.engine.grammar.compiler import CACHED, GrammarCompiler
from appliance.engine.grammar.finite import is_endless
from appliance.engine.grammar.formats import PATTERNS
from appliance.engine.grammar.pattern import MAX_SIZE, PatternError, check_pattern
from appliance.engine.grammar.schema import ANNOTATIONS, KEYWORDS, MAX_LITERAL, checked
from appliance.engine.grammar.tagged import CallableTool
from appliance.engine.grammar.trial import Trial
from appliance.engine.grammar.trial_worker import NICENESS
from appliance.engine.grammar.turn import Structured, Tags, Turn
from appliance.errors import CapacityError, RequestError, UnavailableError
from tests.engine.conftest import OpenChat
from tests.engine.test_structured import FORMAT_CHECKS

ALL_KEYWORDS = frozenset(
    {
        "$anchor", "$comment", "$defs", "$dynamicAnchor", "$dynamicRef", "$id", "$ref", "$schema",
        "$vocabulary", "additionalItems", "additionalProperties", "allOf", "anyOf", "const",
        "contains", "contentEncoding", "contentMediaType", "contentSchema", "default",
        "definitions", "dependencies", "dependentRequired", "dependentSchemas", "deprecated",
        "description", "else", "enum", "examples", "exclusiveMaximum", "exclusiveMinimum",
        "format", "if", "items", "maxContains", "maxItems", "maxLength", "maxProperties",
        "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum",
        "multipleOf", "not", "oneOf", "pattern", "patternProperties", "prefixItems", "properties",
        "propertyNames", "readOnly", "required", "then", "title", "type", "unevaluatedItems",
        "unevaluatedProperties", "uniqueItems", "writeOnly",
    }
)  # fmt: skip
"""Every keyword of JSON Schema 2020-12, and those of draft 7 that it dropped."""


@pytest.fixture
def compiler(open_chat: OpenChat) -> GrammarCompiler:
    return open_chat().grammars


def test_a_compiler_that_was_closed_starts_no_process_again() -> None:
    trial = Trial()
    trial.close()
    with pytest.raises(UnavailableError, match="unloaded"):
        trial.compile("", {})
    trial.close()


def schema_turn(schema: object) -> Turn:
    return Turn(Structured("json_schema", json.dumps(schema)))


def refused(schema: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        checked(json.dumps(schema), "schema")
    return caught.value


@pytest.mark.parametrize(
    "keyword", sorted(ALL_KEYWORDS - KEYWORDS - ANNOTATIONS - {"minProperties", "$id"})
)
def test_a_keyword_that_cannot_be_honoured_is_refused_with_its_place(keyword: str) -> None:
    inner = {"type": "string", keyword: {}}
    error = refused({"type": "object", "properties": {"a b": {"anyOf": [{}, {"items": inner}]}}})
    assert error.param == f"schema.properties.a b.anyOf[1].items.{keyword}"
    assert f"`{keyword}`" in error.message
    assert error.code == "unsupported_parameter"


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "string", "format": "regex"}, ".format"),
        ({"type": "object", "minProperties": 1}, ".minProperties"),
        ({"properties": {"a": {"$id": "x"}}}, ".properties.a.$id"),
        ({"$ref": "https://example.invalid/schema"}, ".$ref"),
        ({"$ref": "#/$defs/none"}, ".$ref"),
        ({"$ref": "#/properties", "properties": {}}, ".$ref"),
        ({"type": "strin"}, ".type"),
        ({"type": []}, ".type"),
        ({"enum": []}, ".enum"),
        ({"enum": ["\u0001"]}, ".enum[0]"),
        ({"const": [{"a": 12345678901234567890}]}, ".const"),
        ({"anyOf": {}}, ".anyOf"),
        ({"anyOf": []}, ".anyOf"),
        ({"items": [{"type": "string"}]}, ".items"),
        ({"properties": []}, ".properties"),
        ({"required": "a"}, ".required"),
        ({"minLength": -1}, ".minLength"),
        ({"maxItems": 10**9}, ".maxItems"),
        ({"maxItems": True}, ".maxItems"),
        ({"minimum": "0"}, ".minimum"),
        ({"maximum": 1e300}, ".maximum"),
        ({"multipleOf": 0}, ".multipleOf"),
        ({"multipleOf": 999983}, ".multipleOf"),
        ({"multipleOf": 1e-9}, ".multipleOf"),
        ({"pattern": "(?i)a"}, ".pattern"),
        ({"pattern": "a(?=b)"}, ".pattern"),
        ({"pattern": "["}, ".pattern"),
        ({"pattern": "[[:alpha:]]"}, ".pattern"),
        ({"pattern": "[a-z&&b]"}, ".pattern"),
        ({"patternProperties": {"(": {}}}, ".patternProperties.("),
        ({"x-guidance": {"lenient": True}}, ".x-guidance"),
        ({"items": 3}, ".items"),
        ({"const": "a" * MAX_LITERAL}, ".const"),
        ({"enum": ["a", {"b": ["c" * 50] * 100}]}, ".enum[1]"),
        ({"required": ["a" * (MAX_LITERAL + 1)]}, ".required"),
        ({"properties": {"a" * (MAX_LITERAL + 1): {}}}, ".properties"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_honoured_is_refused_with_its_place(
    schema: object, place: str
) -> None:
    assert refused(schema).param == f"schema{place}"


@pytest.mark.parametrize("text", ["", "{", "[1", '{"minimum": NaN}', "[" * 100_000, "3", '"x"'])
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        checked(text, "schema")
    assert caught.value.param in ("schema", "schema.minimum")


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}},
         ".properties.a"),
        ({"anyOf": [{"type": "null"}, {"items": {"type": "object", "maxProperties": 1,
          "properties": {"a": {}}}}]}, ".anyOf[1].items"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, ""),
        ({"$defs": {"never": False}, "$ref": "#/$defs/never"}, ""),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_compiler_refuses_is_named_as_narrowly_as_it_can_be(
    compiler: GrammarCompiler, schema: object, place: str
) -> None:
    with pytest.raises(RequestError) as caught:
        compiler.compiled(schema_turn(schema)).result()
    assert caught.value.param == f"structured.json_schema{place}"


def deep(levels: int, keyword: str = "items") -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {keyword: schema}
    return schema


HOSTILE: dict[str, Any] = {
    "nested 90 deep": deep(90),
    "nested 5,000 deep": deep(400, "not"),
    "wide and deep": {"anyOf": [deep(40) for _ in range(500)]},
    "a huge enum": {"enum": [f"value {number}" for number in range(10_000)]},
    "too huge an enum": {"enum": list(range(50_000))},
    "many optional properties": {"properties": {f"k{n}": {} for n in range(3_000)}},
    "many required names": {"type": "object", "required": [f"k{n}" for n in range(20_000)]},
    "a million items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    "a million millions": {
        "type": "array", "minItems": 10**6, "items": {"type": "array", "minItems": 10**6},
    },
    "a million characters": {"type": "string", "minLength": 10**6, "pattern": "^a"},
    "repeats of repeats": {"type": "string", "pattern": "^((((a{100}){100}){100}){100})$"},
    "ambiguous repeats": {"type": "string", "pattern": "^(a+)+(a|aa)+(a*)*b$"},
    "long windows": {"type": "string", "pattern": ".*a.{200}.*b.{200}"},
    "many patterns at once": {
        "allOf": [{"type": "string", "pattern": f"a.{{{n}}}b.*c"} for n in range(10, 30)]
    },
    "a product of choices": {
        "allOf": [
            {"anyOf": [{"properties": {f"p{n}": {"type": "string"}}, "required": [f"p{n}"]},
                       {"properties": {f"q{n}": {"type": "null"}}}]}
            for n in range(30)
        ]
    },
    "multiples of all": {
        "allOf": [{"type": "integer", "multipleOf": step} for step in (9973, 9967, 9949)]
    },
    "a long chain": {
        "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(1_500)} | {"d1500": {}},
        "$ref": "#/$defs/d0",
    },
    "a doubling tree": {
        "$defs": {
            f"d{n}": {"type": "object", "properties": {
                "a": {"$ref": f"#/$defs/d{n + 1}"}, "b": {"$ref": f"#/$defs/d{n + 1}"}}}
            for n in range(60)
        } | {"d60": {"type": "null"}},
        "$ref": "#/$defs/d0",
    },
    "nothing finite": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_compiled_or_refused_and_the_next_is_served(
    compiler: GrammarCompiler, name: str
) -> None:
    # How long it may take is bounded by the trial's limit of processor time.
    error = compiler.compiled(schema_turn(HOSTILE[name])).exception()
    if error is not None:
        assert isinstance(error, RequestError)
        assert (error.param or "").startswith("structured.json_schema")
    assert compiler.compiled(schema_turn({"const": name})).result().end_ids


def test_a_grammar_that_kills_its_trial_is_refused_and_stays_refused(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    lark = Structured("lark", "start: A\nA: B{100}\nB: C{100}\nC: D{100}\nD: /a{100}/")
    for _ in range(2):
        with pytest.raises(RequestError, match="too much time or memory") as caught:
            compiler.compiled(Turn(lark)).result()
        assert caught.value.param == "structured.lark"
        # The second time nothing is tried: the refusal is known.
        monkeypatch.setattr(compiler._trial, "compile", None)


def test_a_literal_that_is_long_to_encode_is_refused_and_its_limit_is_not(
    compiler: GrammarCompiler,
) -> None:
    for quoted in ('start: "', 'start: A\nA: "x" "\\"'):
        fits = f'{quoted}{"a" * 4000}"'
        assert compiler.compiled(Turn(Structured("lark", fits))).result()
        longer = Structured("lark", f'{quoted}{"a" * MAX_LITERAL}"')
        with pytest.raises(RequestError) as caught:
            compiler.compiled(Turn(longer)).result()
        assert caught.value.param == "structured.lark"


def test_a_model_that_serves_has_its_tables(open_chat: OpenChat) -> None:
    assert open_chat().grammars._tokenizer.done()


def test_what_compiles_gives_way_to_the_steps(compiler: GrammarCompiler) -> None:
    compiler.compiled(schema_turn({"const": "gives way"})).result()
    trial = compiler._trial._process
    assert trial is not None
    assert os.getpriority(os.PRIO_PROCESS, trial.pid) >= NICENESS
    thread = compiler._thread.submit(threading.get_native_id).result()
    assert os.getpriority(os.PRIO_PROCESS, thread) >= NICENESS


def test_where_a_sandbox_lets_nobody_give_way_grammars_are_compiled_all_the_same(
    open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_allowed(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", not_allowed)
    assert open_chat().grammars.compiled(schema_turn({"const": "all the same"})).result()


def test_a_tokenizer_that_is_not_understood_is_refused_at_each_request_and_no_sooner(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As a request that cannot be met, which nobody tries again; the reason is the operator's."""
    odd = GrammarCompiler(b"{}", vocab_size=512, end_ids=[0], tags=Tags())
    try:
        odd.await_tables()
        assert "answers cannot be held to a form: " in caplog.text
        for _ in range(2):
            with pytest.raises(RequestError) as refused:
                odd.compiled(schema_turn({})).result()
            assert refused.value.code == "unsupported_parameter"
    finally:
        odd.close()


def test_an_equal_turn_is_compiled_once_and_the_number_kept_is_bounded(
    compiler: GrammarCompiler,
) -> None:
    first = compiler.compiled(schema_turn({"const": -1})).result()
    assert compiler.compiled(schema_turn({"const": -1})).result() is first
    for number in range(CACHED):
        compiler.compiled(schema_turn({"const": number})).result()
    assert len(compiler._cache) == CACHED
    assert compiler.compiled(schema_turn({"const": -1})).result() is not first


def test_what_is_known_does_not_wait_and_too_many_unknown_are_refused(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = schema_turn({"const": "known"})
    compiler.compiled(known).result()
    monkeypatch.setattr(compilers, "MAX_WAITING", 3)
    busy = threading.Event()
    compiler._thread.submit(busy.wait)
    waiting = [compiler.compiled(schema_turn({"const": number})) for number in range(3)]
    assert compiler.compiled(known).done()
    with pytest.raises(CapacityError):
        compiler.compiled(schema_turn({"const": 3}))
    busy.set()
    for future in waiting:
        future.result()
    compiler.compiled(schema_turn({"const": 3})).result()


def test_parameters_of_a_function_must_be_an_object(compiler: GrammarCompiler) -> None:
    tool = CallableTool(4, "f", '{"type": "string"}', strict=True)
    with pytest.raises(RequestError) as caught:
        compiler.compiled(Turn(None, (tool,), "required")).result()
    assert caught.value.param == "tools[4].function.parameters.type"


def test_a_tokenizer_that_spells_its_tags_is_held_as_well(open_chat: OpenChat) -> None:
    """Tags that are no tokens of their own end where they are first complete."""
    model = open_chat()
    data = json.loads(model.tokenizer._native.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if "think" not in t["content"]]
    data["added_tokens"] = [t for t in data["added_tokens"] if "tool" not in t["content"]]
    spelled = GrammarCompiler(
        json.dumps(data).encode(), vocab_size=512, end_ids=model.generation.eos_token_ids,
        tags=Tags("<think>", "</think>", "hermes"),
    )  # fmt: skip
    try:
        assert spelled.token("</think>") is None
        nothing = '{"type":"object","properties":{},"additionalProperties":false}'
        tool = CallableTool(0, "f", nothing, strict=True)
        call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
        turn = Turn(None, (tool,), "required", reasoning="unopened")
        assert accepts(spelled, turn, f"<think>hm</think>\n\n{call}")
        assert accepts(spelled, turn, f"<think></thin</think>{call}\n{call}")
        assert not accepts(spelled, turn, call)
        optional = Turn(None, (tool,), "optional")
        assert accepts(spelled, optional, f"well {call}")
        assert accepts(spelled, optional, "well <tool")
        assert not accepts(spelled, optional, "well <tool_call>x")
    finally:
        spelled.close()


def accepts(compiler: GrammarCompiler, turn: Turn, text: str) -> bool:
    constraint = compiler.compiled(turn).result().begin()
    for token in compiler._tokens().tokenize_str(text):
        allowed = constraint.allowed()
        if allowed is None or not allowed[token]:
            return False
        constraint.advance(token)
    return constraint.complete or constraint._matcher.is_accepting()


@pytest.mark.parametrize("name", FORMAT_CHECKS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_value_of_a_format_is_one(name: str, data: st.DataObject) -> None:
    value = data.draw(st.from_regex(re.compile(PATTERNS[name], re.ASCII), fullmatch=True))
    FORMAT_CHECKS[name](value)


@settings(max_examples=50, deadline=None)
@given(st.recursive(
    st.sampled_from(["a", "[a-z]", "\\d", "."]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, st.integers(0, 30), st.integers(0, 30)).map(
            lambda t: f"(?:{t[0]}){{{min(t[1:])},{max(t[1:])}}}"),
    ),
    max_leaves=6,
))  # fmt: skip
def test_the_size_of_a_pattern_is_at_least_its_longest_match(pattern: str) -> None:
    try:
        size = check_pattern(pattern)
    except PatternError:
        size = MAX_SIZE + 1
    assert size >= min(_longest(re._parser.parse(pattern)), MAX_SIZE)


def _longest(parsed: Any) -> int:
    return int(parsed.getwidth()[1])


@pytest.mark.parametrize(
    ("schema", "endless"),
    [
        ({"$ref": "#"}, True),
        ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, True),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, False),
        ({"type": "array", "items": {"$ref": "#"}}, False),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, True),
        ({"type": ["array", "null"], "items": {"$ref": "#"}, "minItems": 1}, False),
        ({"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1}, True),
        ({"type": "object", "additionalProperties": {"$ref": "#"}, "required": ["a"]}, True),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}}, False),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, False),
        ({"const": {"$ref": "#"}}, False),
    ],
    ids=str,
)
def test_a_schema_that_requires_itself_is_found(schema: object, endless: bool) -> None:
    assert is_endless(schema) is endless


def test_a_turn_without_wishes_needs_no_grammar() -> None:
    free = CallableTool(0, "f", "{}", strict=False)
    assert not Turn().constrains
    assert not Turn(None, (free,), "optional").constrains
    assert Turn(None, (free,), "optional", parallel=False).constrains
    assert Turn(None, (free,), "required").constrains
