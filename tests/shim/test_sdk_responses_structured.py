"""Forms and tool choices of /v1/responses with the official, unmodified OpenAI SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai.types.responses import FunctionToolParam, ResponseFunctionToolCall

from appliance.pb import engine_v1_pb2 as pb
from tests.fakes.engine import CHAT
from tests.shim.node import Node, eventually, standing
from tests.shim.test_sdk_responses import CALL, WEATHER, last_request
from tests.shim.test_sdk_structured import Color, Plan, Step

PATH = "/v1/responses"
BASE: dict[str, Any] = {"model": CHAT, "input": "hello"}
TIME: FunctionToolParam = {
    "type": "function",
    "name": "time",
    "parameters": {"type": "object", "properties": {}},
    "strict": None,
}
UNIQUE: dict[str, object] = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
SHAPE: dict[str, Any] = {"type": "json_schema", "name": "a", "schema": {"type": "array"}}


@pytest.fixture
def storing(tmp_path: Path) -> Iterator[Node]:
    """A node that keeps responses."""
    with standing(tmp_path, store_responses=True) as made:
        yield made


def calls(response: Any) -> list[ResponseFunctionToolCall]:
    return [item for item in response.output if item.type == "function_call"]


def test_parse_gives_a_typed_answer(client: openai.OpenAI, node: Node) -> None:
    response = client.responses.parse(model=CHAT, input="hello", text_format=Plan)
    plan = Plan(name="", color=Color.RED, kind="short", steps=[], parent=None)
    assert response.output_parsed == plan
    sent = json.loads(last_request(node).structured.json_schema)
    assert list(sent["properties"]) == ["name", "color", "kind", "steps", "parent"]
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"
    assert (response.text.format.name, response.text.format.strict) == ("Plan", True)
    assert response.text.format.schema_ == sent


def test_a_typed_answer_comes_behind_its_reasoning(client: openai.OpenAI) -> None:
    response = client.responses.parse(
        model=CHAT, input="hello", text_format=Step, reasoning={"effort": "low"}
    )
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output_parsed == Step(text="", done=False)


def test_a_stream_of_a_typed_answer_ends_parsed(client: openai.OpenAI) -> None:
    given = Plan(name="größe", color=Color.BLUE, kind="long", steps=[], parent=None)
    with client.responses.stream(
        model=CHAT, input=given.model_dump_json(), text_format=Plan
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(deltas) == given.model_dump_json()
        assert stream.get_final_response().output_parsed == given


def test_any_object_can_be_asked_for(client: openai.OpenAI, node: Node) -> None:
    response = client.responses.create(
        model=CHAT, input="hello", text={"format": {"type": "json_object"}}
    )
    assert json.loads(response.output_text) == {}
    assert last_request(node).structured == pb.StructuredOutput(json_object=True)
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_object"


def test_text_leaves_the_form_to_the_model(client: openai.OpenAI, node: Node) -> None:
    client.responses.create(model=CHAT, input="hello", text={"format": {"type": "text"}})
    assert not last_request(node).HasField("structured")


def test_a_form_that_was_not_asked_to_be_strict_holds_and_says_so(node: Node) -> None:
    body = {**BASE, "text": {"format": {**SHAPE, "description": "d", "strict": False}}}
    answer = node.request("POST", PATH, body).json
    assert json.loads(answer["output"][0]["content"][0]["text"]) == []
    expected = {**SHAPE, "description": "d", "strict": True}
    assert answer["text"] == {"format": expected, "verbosity": "medium"}


def test_a_required_call_is_made(client: openai.OpenAI, node: Node) -> None:
    response = client.responses.create(
        model=CHAT,
        input=f"{CALL}\n{CALL}",
        tools=[WEATHER, TIME],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    assert [call.name for call in calls(response)] == ["weather"]
    assert response.tool_choice == "required"
    assert response.parallel_tool_calls is False
    chat = last_request(node).chat
    assert chat.tool_choice == pb.TOOL_CHOICE_REQUIRED
    assert chat.HasField("parallel_tool_calls")
    assert not chat.parallel_tool_calls


def test_a_named_function_is_called(client: openai.OpenAI, node: Node) -> None:
    response = client.responses.create(
        model=CHAT,
        input="hello",
        tools=[WEATHER, TIME],
        tool_choice={"type": "function", "name": "time"},
    )
    assert [call.name for call in calls(response)] == ["time"]
    assert response.to_dict()["tool_choice"] == {"type": "function", "name": "time"}
    chat = last_request(node).chat
    assert (chat.tool_choice, chat.tool_choice_name) == (pb.TOOL_CHOICE_NAMED, "time")
    assert not chat.HasField("parallel_tool_calls")


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_allowed_tools_reach_the_model(
    client: openai.OpenAI, node: Node, mode: Literal["auto", "required"]
) -> None:
    some: list[dict[str, object]] = [{"type": "function", "name": "time"}]
    response = client.responses.create(
        model=CHAT,
        input="hello",
        tools=[WEATHER, TIME],
        tool_choice={"type": "allowed_tools", "mode": mode, "tools": some},
    )
    chat = last_request(node).chat
    assert [tool.name for tool in chat.tools] == ["time"]
    assert pb.ToolChoice.Name(chat.tool_choice) == f"TOOL_CHOICE_{mode.upper()}"
    echoed = response.to_dict()["tool_choice"]
    assert echoed == {"type": "allowed_tools", "mode": mode, "tools": some}
    assert len(response.tools) == 2


def test_typed_tools_are_strict_and_their_arguments_come_parsed(
    client: openai.OpenAI, node: Node
) -> None:
    response = client.responses.parse(
        model=CHAT,
        input='call Step {"text": "x", "done": true}',
        tools=[openai.pydantic_function_tool(Step)],
    )
    (call,) = [item for item in response.output if item.type == "function_call"]
    assert call.parsed_arguments == Step(text="x", done=True)
    assert last_request(node).chat.tools[0].strict
    assert response.tools[0].to_dict()["strict"] is True


def test_a_function_that_does_not_say_strict_is_not(node: Node) -> None:
    tool = {"type": "function", "name": "f", "parameters": UNIQUE}
    for more in ({}, {"strict": None}, {"strict": False}):
        answer = node.request("POST", PATH, {**BASE, "tools": [{**tool, **more}]})
        assert answer.status == 200
        assert answer.json["tools"][0]["strict"] is False
        assert not last_request(node).chat.tools[0].strict


@pytest.mark.parametrize("store", [False, True])
def test_a_background_response_keeps_its_form(storing: Node, store: bool) -> None:
    body = {**BASE, "text": {"format": SHAPE}, "background": store, "store": store}
    answer = storing.request("POST", PATH, body).json
    if store:
        path = f"{PATH}/{answer['id']}"
        eventually(lambda: storing.request("GET", path).json["status"] == "completed")
        answer = storing.request("GET", path).json
    assert json.loads(answer["output"][0]["content"][0]["text"]) == []
    assert answer["text"]["format"]["schema"] == SHAPE["schema"]


def test_a_form_is_of_one_turn(storing: Node) -> None:
    first = storing.request("POST", PATH, {**BASE, "text": {"format": SHAPE}}).json
    body = {**BASE, "previous_response_id": first["id"]}
    answer = storing.request("POST", PATH, body).json
    assert answer["output"][0]["content"][0]["text"] == "hello"
    assert answer["text"]["format"] == {"type": "text"}


@pytest.mark.parametrize("background", [False, True])
def test_a_background_request_that_cannot_be_honoured_is_refused_at_once(
    storing: Node, background: bool
) -> None:
    body = {**BASE, "text": {"format": {**SHAPE, "schema": UNIQUE}}, "background": background}
    answer = storing.request("POST", PATH, body)
    assert (answer.status, answer.error["param"]) == (400, "text.format.schema.uniqueItems")


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        (
            {"text": {"format": {**SHAPE, "schema": UNIQUE}}},
            "text.format.schema.uniqueItems",
            "unsupported_parameter",
        ),
        (
            {"tools": [TIME, {**TIME, "name": "f", "parameters": UNIQUE, "strict": True}]},
            "tools[1].parameters.uniqueItems",
            "unsupported_parameter",
        ),
        (
            {"tools": [{**TIME, "parameters": UNIQUE}], "tool_choice": "required"},
            "tools[0].parameters.uniqueItems",
            "unsupported_parameter",
        ),
        (
            {
                "tools": [TIME, {**TIME, "name": "f", "parameters": UNIQUE}],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "f"}],
                },
            },
            "tools[1].parameters.uniqueItems",
            "unsupported_parameter",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a"}}},
            "text.format.schema",
            "missing_parameter",
        ),
        ({"text": {"format": {**SHAPE, "name": "a b"}}}, "text.format.name", "invalid_value"),
        ({"text": {"format": {**SHAPE, "x": 1}}}, "text.format.x", "unknown_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "any"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type", "invalid_value"),
        (
            {"tools": [TIME], "tool_choice": {"type": "function", "name": "f"}},
            "tool_choice.name",
            "invalid_value",
        ),
        (
            {
                "tools": [TIME],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [
                        {"type": "function", "name": "time"},
                        {"type": "function", "name": "f"},
                    ],
                },
            },
            "tool_choice.tools[1].name",
            "invalid_value",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls", "invalid_value"),
    ],
    ids=str,
)
def test_what_is_not_possible_names_its_place(
    node: Node, more: dict[str, Any], param: str, code: str
) -> None:
    answer = node.request("POST", PATH, {**BASE, **more})
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, code)
    assert node.reject(answer.request_id).status == 400
