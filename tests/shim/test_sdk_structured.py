"""Response formats and tool choices with the official, unmodified OpenAI SDK."""

from __future__ import annotations

import enum
import json
from typing import Any, Literal

import openai
import pytest
from openai.types.chat.chat_completion_message_function_tool_call import (
    ChatCompletionMessageFunctionToolCall,
)
from pydantic import BaseModel

from appliance.pb import engine_v1_pb2 as pb
from tests.fakes.engine import CHAT
from tests.shim.node import Node
from tests.shim.test_sdk_chat import HELLO, WEATHER, last_request

TIME: Any = {
    "type": "function",
    "function": {"name": "time", "parameters": {"type": "object", "properties": {}}},
}


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Step(BaseModel):
    text: str
    done: bool


class Plan(BaseModel):
    name: str
    color: Color
    kind: Literal["short", "long"]
    steps: list[Step]
    parent: Plan | None


def test_parse_gives_a_typed_answer(client: openai.OpenAI, node: Node) -> None:
    answer = client.chat.completions.parse(model=CHAT, messages=HELLO, response_format=Plan)
    plan = answer.choices[0].message.parsed
    assert plan == Plan(name="", color=Color.RED, kind="short", steps=[], parent=None)
    assert answer.choices[0].message.refusal is None
    sent = json.loads(last_request(node).structured.json_schema)
    assert list(sent["properties"]) == ["name", "color", "kind", "steps", "parent"]


def test_a_stream_of_a_typed_answer_ends_parsed(client: openai.OpenAI) -> None:
    given = Plan(name="größe", color=Color.BLUE, kind="long", steps=[], parent=None)
    with client.chat.completions.stream(
        model=CHAT,
        messages=[{"role": "user", "content": given.model_dump_json()}],
        response_format=Plan,
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        assert "".join(deltas) == given.model_dump_json()
        assert stream.get_final_completion().choices[0].message.parsed == given


def test_any_object_can_be_asked_for(client: openai.OpenAI, node: Node) -> None:
    answer = client.chat.completions.create(
        model=CHAT, messages=HELLO, response_format={"type": "json_object"}
    )
    assert json.loads(answer.choices[0].message.content or "") == {}
    assert last_request(node).structured == pb.StructuredOutput(json_object=True)


def test_text_leaves_the_form_to_the_model(client: openai.OpenAI, node: Node) -> None:
    client.chat.completions.create(model=CHAT, messages=HELLO, response_format={"type": "text"})
    assert not last_request(node).HasField("structured")


def test_a_required_call_is_made(client: openai.OpenAI, node: Node) -> None:
    answer = client.chat.completions.create(
        model=CHAT,
        messages=HELLO,
        tools=[WEATHER, TIME],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert call.function.name == "weather"
    chat = last_request(node).chat
    assert chat.tool_choice == pb.TOOL_CHOICE_REQUIRED
    assert chat.HasField("parallel_tool_calls")
    assert not chat.parallel_tool_calls


def test_a_named_function_is_called(client: openai.OpenAI, node: Node) -> None:
    answer = client.chat.completions.create(
        model=CHAT,
        messages=HELLO,
        tools=[WEATHER, TIME],
        tool_choice={"type": "function", "function": {"name": "time"}},
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert call.function.name == "time"
    chat = last_request(node).chat
    assert (chat.tool_choice, chat.tool_choice_name) == (pb.TOOL_CHOICE_NAMED, "time")
    assert not chat.HasField("parallel_tool_calls")


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_allowed_tools_reach_the_model(
    client: openai.OpenAI, node: Node, mode: Literal["auto", "required"]
) -> None:
    client.chat.completions.create(
        model=CHAT,
        messages=HELLO,
        tools=[WEATHER, TIME],
        tool_choice={
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": mode,
                "tools": [{"type": "function", "function": {"name": "time"}}],
            },
        },
    )
    chat = last_request(node).chat
    assert [tool.name for tool in chat.tools] == ["time"]
    assert pb.ToolChoice.Name(chat.tool_choice) == f"TOOL_CHOICE_{mode.upper()}"


def test_typed_tools_are_strict_and_their_arguments_come_parsed(
    client: openai.OpenAI, node: Node
) -> None:
    answer = client.chat.completions.parse(
        model=CHAT,
        messages=[{"role": "user", "content": 'call Step {"text": "x", "done": true}'}],
        tools=[openai.pydantic_function_tool(Step)],
        parallel_tool_calls=False,
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == Step(text="x", done=True)
    assert last_request(node).chat.tools[0].strict


def test_a_keyword_that_cannot_be_honoured_names_its_place(client: openai.OpenAI) -> None:
    schema = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=CHAT,
            messages=HELLO,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": schema, "strict": True},
            },
        )
    assert caught.value.param == "response_format.json_schema.schema.uniqueItems"
    assert caught.value.code == "unsupported_parameter"
    strict: Any = {"type": "function", "function": {"name": "f", "parameters": schema}}
    strict["function"]["strict"] = True
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=CHAT, messages=HELLO, tools=[strict])
    assert caught.value.param == "tools[0].function.parameters.uniqueItems"
    only: Any = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=CHAT,
            messages=HELLO,
            tools=[WEATHER, strict],
            tool_choice={"type": "allowed_tools", "allowed_tools": only},
        )
    assert caught.value.param == "tools[1].function.parameters.uniqueItems"


def test_a_continuation_has_no_form(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=CHAT,
            messages=[*HELLO, {"role": "assistant", "content": "{"}],
            response_format={"type": "json_object"},
            extra_body={"continue_final_message": True},
        )
    assert caught.value.param == "continue_final_message"
