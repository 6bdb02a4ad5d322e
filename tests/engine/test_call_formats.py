"""Calls in every format, by a random model under a grammar: forced, free, and beside a form."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from appliance.bundle.specs import Prompting, ToolFormat
from appliance.config import EngineSettings
from appliance.engine.bundle_files import read_checked
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.grammar.compiler import GrammarCompiler
from appliance.engine.grammar.forms import FORMS
from appliance.engine.grammar.tagged import CallableTool
from appliance.engine.grammar.turn import Structured, Tags, Turn
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.output import FinishReason
from appliance.engine.sampling import SamplingParams
from appliance.engine.tokenizer import Tokenizer
from appliance.errors import RequestError
from appliance.prompting import Tool, muse
from appliance.prompting.formats import FORMATS, visible_tags
from appliance.prompting.gemma4 import CHANNEL_END, THOUGHT
from appliance.prompting.harmony import ANALYSIS, END
from tests.conftest import BuildOnce
from tests.engine.conftest import open_model_of
from tests.engine.results import Results, run
from tests.engine.test_structured import calls_of
from tests.fakes.chat_formats import TEMPLATES, VOCAB, speak
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.engine_node import EngineNode

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "note": {"type": "string", "maxLength": 6},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
        "on": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "required": ["n", "unit", "tags", "note"],
    "additionalProperties": False,
}
NOTHING = '{"type": "object", "properties": {}, "additionalProperties": false}'
TOOLS = (
    CallableTool(0, "look_up", json.dumps(PARAMETERS), strict=True),
    CallableTool(1, "stop", NOTHING, strict=True),
)
NAMES: list[ToolFormat] = [name for name in get_args(ToolFormat) if name]
TAKEN_OF_ONE_PER_TURN = ("llama", "harmony", "muse")
REASONING: dict[ToolFormat, tuple[str, str]] = {
    "harmony": (ANALYSIS, END),
    "muse": (muse.THOUGHT, muse.EOM),
    "gemma4": (THOUGHT, CHANNEL_END),
}
"""Tags that are more than one token."""


def build_node(root: Path) -> None:
    node = EngineNode(root)
    checkpoint = write_qwen3(root / "every", vocab=VOCAB, context=1024)
    node.add(speak(checkpoint, TEMPLATES["harmony"]), name="every")


@pytest.fixture(scope="module")
def model(build_once: BuildOnce) -> Iterator[ChatModel]:
    """Its vocabulary has the tags of all formats as special tokens."""
    root = build_once("formats-node", build_node)
    opened = open_model_of(root, "every", EngineSettings(threads=1, cache_bytes=64 << 20))
    assert isinstance(opened, ChatModel)
    yield opened
    opened.close()


class Speaker:
    """The model, as if it had been trained on one format."""

    def __init__(self, model: ChatModel, name: ToolFormat) -> None:
        tags = REASONING.get(name, ("", ""))
        self.prompting = Prompting("t", "", "", *tags, tool_format=name)
        data = read_checked(model.bundle, model.bundle.manifest.tokenizer)
        self.tokenizer = Tokenizer(data, visible=visible_tags(name))
        self.end_ids = frozenset(model.generation.eos_token_ids)
        self.end_ids |= {self.tokenizer.id_of(token) for token in FORMATS[name].ends}
        decoder = model.bundle.manifest.decoder
        assert decoder is not None
        self.grammars = GrammarCompiler(
            data, vocab_size=decoder.vocab_size, end_ids=self.end_ids, tags=Tags(*tags, name)
        )
        self.engine = LLMEngine(
            model.engine._runner, self.tokenizer, self.prompting,
            vocab_size=decoder.vocab_size, slots=model.cache_shape.slots,
            capacity=model.cache_shape.capacity, token_budget=512, max_waiting=8,
        )  # fmt: skip

    def run(self, turn: Turn, **params: Any) -> Results:
        """The first of some seeds with which the model comes to an end by itself."""
        functions = tuple(Tool(t.name, "", t.parameters_json) for t in turn.tools)
        for seed in range(20):
            given = {"max_tokens": 300, "end_ids": self.end_ids, "seed": seed, **params}
            generation = Generation(
                0, self.tokenizer.encode_text("Write."), SamplingParams(**given),
                chat=True, tools=turn.calls != "none", functions=functions,
                calls_first=turn.calls == "required" or turn.structured is not None,
                reasoning=turn.reasoning != "none",
                grammar=self.grammars.compiled(turn).result() if turn.constrains else None,
            )  # fmt: skip
            results = run(self.engine, generation)
            if results.ends[0, 0].reason is not FinishReason.LENGTH:
                return results
        raise AssertionError("the model never ended")


@pytest.fixture(scope="module")
def speaker(model: ChatModel) -> Iterator[Callable[[ToolFormat], Speaker]]:
    known: dict[ToolFormat, Speaker] = {}

    def get(name: ToolFormat) -> Speaker:
        return known.setdefault(name, Speaker(model, name)) if name not in known else known[name]

    yield get
    for opened in known.values():
        opened.grammars.close()


def test_every_format_of_the_manifest_has_a_parser_and_a_grammar() -> None:
    assert set(NAMES) == set(FORMATS) == set(FORMS)


@pytest.mark.parametrize("name", NAMES)
def test_a_required_call_is_made_and_its_arguments_are_valid(
    speaker: Callable[[ToolFormat], Speaker], name: ToolFormat
) -> None:
    schemas = {tool.name: json.loads(tool.parameters_json) for tool in TOOLS}
    subject = speaker(name)
    closing = dict.fromkeys(subject.tokenizer.encode_text("/"), 4.0)  # or it calls on and on
    results = subject.run(Turn(None, TOOLS, "required"), logit_bias=closing)
    assert results.ends[0, 0].reason is FinishReason.TOOL_CALLS
    assert results.text(0) == ""
    calls = calls_of(results, 0)
    assert len(calls) == 1 or name not in TAKEN_OF_ONE_PER_TURN
    for function, arguments in calls:
        jsonschema.validate(arguments, schemas[function])


@pytest.mark.parametrize("name", NAMES)
def test_a_named_function_is_called_once(
    speaker: Callable[[ToolFormat], Speaker], name: ToolFormat
) -> None:
    results = speaker(name).run(Turn(None, TOOLS[:1], "required", parallel=False))
    ((function, arguments),) = calls_of(results, 0)
    assert function == "look_up"
    jsonschema.validate(arguments, PARAMETERS)


@pytest.mark.parametrize("name", NAMES)
def test_where_the_model_may_choose_it_may_also_answer(
    speaker: Callable[[ToolFormat], Speaker], name: ToolFormat
) -> None:
    subject = speaker(name)
    turn = Turn(None, TOOLS, "optional", parallel=False)
    ends = dict.fromkeys(subject.end_ids, 8.0)
    tags = {subject.tokenizer.id_of(tag): -100.0 for tag in visible_tags(name)[:1]}
    if name == "harmony":
        tags = {subject.tokenizer.encode_text("c")[0]: -100.0}  # so that it is no commentary
    if name == "muse":  # so that it is for the user
        tags = {subject.tokenizer.encode_text(tool.name)[0]: -100.0 for tool in TOOLS}
    free = subject.run(turn, logit_bias=ends | tags)
    if name != "llama":  # which has no tag whose absence would make the answer text
        assert free.ends[0, 0].reason is FinishReason.STOP
        assert not calls_of(free, 0)
    free_or_called = subject.run(turn)
    schemas = {tool.name: json.loads(tool.parameters_json) for tool in TOOLS}
    for function, arguments in calls_of(free_or_called, 0):
        jsonschema.validate(arguments, schemas[function])


@pytest.mark.parametrize(
    "name",
    [
        *("deepseek", "dsml", "dsml_v4", "minimax", "minimax_m3", "qwen_coder", "glm", "glm_v47"),
        *("seed_oss", "gemma4", "lfm2", "pythonic", "muse", "hy3"),
    ],
)
def test_arguments_of_any_kind_can_be_forced(
    speaker: Callable[[ToolFormat], Speaker], name: ToolFormat
) -> None:
    tool = CallableTool(0, "f", "{}", strict=False)
    subject = speaker(name)
    closing = dict.fromkeys(subject.tokenizer.encode_text('}</"'), 4.0)
    turn = Turn(None, (tool,), "required", parallel=False)
    ((function, arguments),) = calls_of(subject.run(turn, logit_bias=closing), 0)
    assert function == "f"
    assert isinstance(arguments, dict)


@pytest.mark.parametrize(("name", "end"), [("harmony", END), ("muse", muse.EOM)])
def test_an_answer_in_a_form_comes_in_the_message_of_the_answer(
    speaker: Callable[[ToolFormat], Speaker], name: ToolFormat, end: str
) -> None:
    turn = Turn(Structured("json_schema", json.dumps(PARAMETERS)), reasoning="unopened")
    subject = speaker(name)
    results = subject.run(turn, logit_bias={subject.tokenizer.id_of(end): 6.0})
    assert results.ends[0, 0].reason is FinishReason.STOP
    jsonschema.validate(json.loads(results.text(0)), PARAMETERS)
    assert "<|" not in results.text(0)


def test_a_form_and_free_calls_are_refused_where_they_look_alike(
    speaker: Callable[[ToolFormat], Speaker],
) -> None:
    turn = Turn(Structured("json_object"), TOOLS, "optional")
    with pytest.raises(RequestError, match="cannot be told") as refused:
        speaker("llama").grammars.compiled(turn).result()
    assert refused.value.code == "unsupported_parameter"
    for name in ("mistral", "harmony", "minimax", "muse"):
        assert speaker(name).grammars.compiled(turn).result()


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"a": {"type": ["string", "integer"]}}}, ".properties.a"),
        ({"properties": {"a": {"type": "string", "pattern": "x"}}}, ".properties.a"),
        ({"properties": {"a": {"type": "string", "format": "date"}}}, ".properties.a"),
        ({"anyOf": [{"properties": {}}]}, ".anyOf"),
        ({"properties": {}, "required": ["b"]}, ".required"),
        ({"properties": {'a">': {"type": "integer"}}}, '.properties.a">'),
    ],
)
@pytest.mark.parametrize("name", ["minimax", "gemma4"])
def test_what_arguments_in_no_json_cannot_hold_is_refused_by_name(
    speaker: Callable[[ToolFormat], Speaker], name: ToolFormat, schema: dict[str, Any], place: str
) -> None:
    tool = CallableTool(3, "f", json.dumps({"type": "object", **schema}), strict=True)
    with pytest.raises(RequestError) as refused:
        speaker(name).grammars.compiled(Turn(None, (tool,), "required")).result()
    assert refused.value.param == f"tools[3].function.parameters{place}"


@pytest.mark.parametrize("name", [name for name in NAMES if "PLAIN" in FORMS[name].call])
def test_a_name_that_the_format_cannot_write_is_refused(
    speaker: Callable[[ToolFormat], Speaker], name: ToolFormat
) -> None:
    tool = dataclasses.replace(TOOLS[1], name="a name")
    with pytest.raises(RequestError) as refused:
        speaker(name).grammars.compiled(Turn(None, (tool,), "required")).result()
    assert refused.value.param == "tools[1].function.name"


NESTED = {
    "type": "object",
    "properties": {
        "where": {
            "type": "object",
            "properties": {"lat": {"type": "integer", "maximum": 90}, "name": {"enum": ["x", ""]}},
            "required": ["lat"],
        },
        "Tags": {
            "type": "array",
            "items": {"type": "object", "properties": {"on": {"type": "boolean"}}},
            "minItems": 1,
            "maxItems": 2,
        },
        "free": {"type": "object"},
        "none": {"type": "array", "maxItems": 0},
        "maybe": {"type": ["string", "null"], "maxLength": 3},
    },
    "required": ["where", "Tags"],
}


@pytest.mark.parametrize("name", ["gemma4", "lfm2"])
def test_objects_within_objects_can_be_forced(
    speaker: Callable[[ToolFormat], Speaker], name: ToolFormat
) -> None:
    tool = CallableTool(0, "f", json.dumps(NESTED), strict=True)
    subject = speaker(name)
    closing = dict.fromkeys(subject.tokenizer.encode_text('}"'), 3.0)
    reasons = name in REASONING
    turn = Turn(
        *(None, (tool,), "required"),
        parallel=False,
        reasoning="unopened" if reasons else "none",
    )
    ends = {subject.tokenizer.id_of(CHANNEL_END): 6.0} if reasons else {}
    results = subject.run(turn, logit_bias=closing | ends)
    ((function, arguments),) = calls_of(results, 0)
    assert function == "f"
    jsonschema.validate(arguments, NESTED)
    assert results.text(0) == ""


VALUES: dict[str, Any] = {
    "type": "object",
    "properties": {
        "word": {"enum": ["it's", True, None, 7, {"a": [False]}]},
        "day": {"type": "string", "format": "date"},
        "code": {"type": ["string", "integer", "null"], "pattern": "^[A-C]{2}$", "maximum": 9},
        "place": {"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/point"}]},
        "marks": {"type": "array", "items": {"const": "x"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["word", "day", "code", "place"],
    "$defs": {"point": {"type": "number", "minimum": 1, "maximum": 2}},
}


def test_python_literals_of_a_schema_can_be_forced(
    speaker: Callable[[ToolFormat], Speaker],
) -> None:
    subject = speaker("pythonic")
    tool = CallableTool(0, "f", json.dumps(VALUES), strict=True)
    turn = Turn(None, (tool,), "required", parallel=False)
    for seed in range(4):
        ((_, arguments),) = calls_of(subject.run(turn, seed=seed), 0)
        jsonschema.validate(arguments, VALUES)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"other-name": True}}, ".properties.other-name"),
        ({"properties": {"a": {"allOf": [{"type": "boolean"}]}}}, ".properties.a"),
        ({"properties": {"a": {"type": ["array", "null"], "uniqueItems": True}}}, ".properties.a"),
        ({"properties": {"a": {"enum": [1], "minimum": 0, "type": "boolean"}}}, ".properties.a"),
    ],
)
def test_what_python_literals_cannot_hold_is_refused_by_name(
    speaker: Callable[[ToolFormat], Speaker], schema: dict[str, Any], place: str
) -> None:
    tool = CallableTool(3, "f", json.dumps({"type": "object", **schema}), strict=True)
    with pytest.raises(RequestError) as refused:
        speaker("lfm2").grammars.compiled(Turn(None, (tool,), "required")).result()
    assert (refused.value.param or "").startswith(f"tools[3].function.parameters{place}")
