"""Forms and tool choices of /v1/messages with the official, unmodified Anthropic SDK."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from anthropic.types import ToolChoiceAnyParam, ToolChoiceToolParam, ToolParam, ToolUseBlock

from appliance.pb import engine_v1_pb2 as pb
from tests.fakes.engine import CHAT
from tests.shim.node import Node
from tests.shim.test_sdk_anthropic import (
    BASE,
    CALL,
    HELLO,
    PATH,
    WEATHER,
    error_of,
    last_request,
)
from tests.shim.test_sdk_structured import Color, Plan, Step

TIME: ToolParam = {"name": "time", "input_schema": {"type": "object", "properties": {}}}
UNIQUE: dict[str, object] = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}


def uses(message: Any) -> list[ToolUseBlock]:
    return [block for block in message.content if block.type == "tool_use"]


def form(schema: dict[str, object]) -> dict[str, Any]:
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


def test_parse_gives_a_typed_answer(claude: anthropic.Anthropic, node: Node) -> None:
    message = claude.messages.parse(model=CHAT, max_tokens=200, messages=HELLO, output_format=Plan)
    plan = Plan(name="", color=Color.RED, kind="short", steps=[], parent=None)
    assert message.parsed_output == plan
    assert message.stop_reason == "end_turn"
    sent = json.loads(last_request(node).structured.json_schema)
    assert list(sent["$defs"]["Plan"]["properties"]) == ["name", "color", "kind", "steps", "parent"]


def test_a_stream_of_a_typed_answer_ends_parsed(claude: anthropic.Anthropic) -> None:
    given = Plan(name="größe", color=Color.BLUE, kind="long", steps=[], parent=None)
    with claude.messages.stream(
        model=CHAT,
        max_tokens=200,
        messages=[{"role": "user", "content": given.model_dump_json()}],
        output_format=Plan,
    ) as stream:
        assert "".join(stream.text_stream) == given.model_dump_json()
        assert stream.get_final_message().parsed_output == given


def test_a_schema_reaches_the_engine_as_it_is(claude: anthropic.Anthropic, node: Node) -> None:
    schema: dict[str, object] = {"type": "array", "items": {"type": "integer"}, "minItems": 2}
    message = claude.messages.create(
        model=CHAT,
        max_tokens=100,
        messages=HELLO,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert message.content[0].type == "text"
    assert json.loads(message.content[0].text) == [0, 0]
    assert json.loads(last_request(node).structured.json_schema) == schema


@pytest.mark.parametrize("config", [{}, {"format": None, "effort": None}])
def test_no_format_leaves_the_form_to_the_model(node: Node, config: dict[str, None]) -> None:
    assert node.request("POST", PATH, {**BASE, "output_config": config}).status == 200
    assert not last_request(node).HasField("structured")


def test_any_tool_is_called(claude: anthropic.Anthropic, node: Node) -> None:
    choice: ToolChoiceAnyParam = {"type": "any", "disable_parallel_tool_use": True}
    message = claude.messages.create(
        model=CHAT,
        max_tokens=100,
        messages=CALL,
        tools=[WEATHER, TIME],
        tool_choice=choice,
    )
    assert message.stop_reason == "tool_use"
    assert [use.name for use in uses(message)] == ["weather"]
    chat = last_request(node).chat
    assert chat.tool_choice == pb.TOOL_CHOICE_REQUIRED
    assert chat.HasField("parallel_tool_calls")
    assert not chat.parallel_tool_calls


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "tool", "name": "time"},
        {"type": "tool", "name": "time", "disable_parallel_tool_use": False},
    ],
)
def test_one_tool_is_called(
    claude: anthropic.Anthropic, node: Node, choice: ToolChoiceToolParam
) -> None:
    with claude.messages.stream(
        model=CHAT, max_tokens=100, messages=HELLO, tools=[WEATHER, TIME], tool_choice=choice
    ) as stream:
        (use,) = uses(stream.get_final_message())
    assert (use.name, use.input) == ("time", {})
    chat = last_request(node).chat
    assert (chat.tool_choice, chat.tool_choice_name) == (pb.TOOL_CHOICE_NAMED, "time")
    assert not chat.HasField("parallel_tool_calls")


def test_no_more_than_one_call_can_be_asked_for(claude: anthropic.Anthropic) -> None:
    question = f"{CALL[0]['content']}\n{CALL[0]['content']}"
    more: dict[str, Any] = {
        "model": CHAT,
        "max_tokens": 200,
        "messages": [{"role": "user", "content": question}],
        "tools": [WEATHER],
    }
    assert len(uses(claude.messages.create(**more))) == 2
    more["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
    assert len(uses(claude.messages.create(**more))) == 1


def test_a_strict_tool_is_strict_in_the_engine(claude: anthropic.Anthropic, node: Node) -> None:
    schema = Step.model_json_schema()
    claude.messages.create(
        model=CHAT,
        max_tokens=100,
        messages=HELLO,
        tools=[{"name": "step", "input_schema": schema, "strict": True}, WEATHER],
    )
    assert [tool.strict for tool in last_request(node).chat.tools] == [True, False]


def test_a_count_takes_and_refuses_what_an_answer_does(
    claude: anthropic.Anthropic, node: Node
) -> None:
    bare = claude.messages.count_tokens(model=CHAT, messages=HELLO)
    formed = claude.messages.count_tokens(
        model=CHAT, messages=HELLO, output_config=form({"type": "array"})["output_config"]
    )
    assert formed == bare
    forced = claude.messages.count_tokens(
        model=CHAT, messages=HELLO, tools=[TIME], tool_choice={"type": "any"}
    )
    assert forced.input_tokens > bare.input_tokens
    for more in ({"output_config": {"effort": "little"}}, {"tool_choice": {"type": "any"}}):
        body = {"model": CHAT, "messages": HELLO, **more}
        assert node.request("POST", f"{PATH}/count_tokens", body).status == 400


@pytest.mark.parametrize(
    ("more", "place", "code"),
    [
        (form(UNIQUE), "output_config.format.schema.uniqueItems", "unsupported_parameter"),
        (
            {"tools": [TIME, {"name": "f", "input_schema": UNIQUE, "strict": True}]},
            "tools[1].input_schema.uniqueItems",
            "unsupported_parameter",
        ),
        (
            {"tools": [{"name": "f", "input_schema": UNIQUE}], "tool_choice": {"type": "any"}},
            "tools[0].input_schema.uniqueItems",
            "unsupported_parameter",
        ),
        (
            {"output_config": {"format": {"type": "json_object"}}},
            "output_config.format.type",
            "invalid_value",
        ),
        (
            {"output_config": {"format": {"type": "json_schema"}}},
            "output_config.format.schema",
            "missing_parameter",
        ),
        ({"output_config": {"effort": "little"}}, "output_config.effort", "invalid_value"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type", "invalid_value"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name", "missing_parameter"),
        (
            {"tools": [TIME], "tool_choice": {"type": "tool", "name": "f"}},
            "tool_choice.name",
            "invalid_value",
        ),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": "{"}], **form({})},
            "messages",
            "invalid_request",
        ),
    ],
    ids=str,
)
def test_what_is_not_possible_names_its_place(
    node: Node, more: dict[str, Any], place: str, code: str
) -> None:
    answer = node.request("POST", PATH, {**BASE, **more})
    assert answer.status == 400
    error = error_of(answer.json)
    assert (error["type"], error["details"]["error_code"]) == ("invalid_request_error", code)
    assert f"`{place}`" in error["message"]
