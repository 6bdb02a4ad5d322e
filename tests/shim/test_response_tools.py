"""Tools of /v1/responses beside plain functions: namespaces, custom tools, and what is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, cast

import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseInputParam, ToolParam

from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.api.custom_input import CustomInput
from appliance.shim.wire.responses import ResponsesRequest
from tests.fakes.engine import CHAT
from tests.shim.node import Node, standing

LOOK: dict[str, Any] = {
    "type": "function",
    "name": "look",
    "description": "Look at a place.",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    "strict": False,
}
NOTES = cast(
    ToolParam,
    {
        "type": "namespace",
        "name": "notes",
        "description": "What was written down.",
        "tools": [LOOK, {"type": "custom", "name": "write", "description": "Write a note."}],
    },
)
PATCH: ToolParam = {"type": "custom", "name": "patch", "description": "Change files."}
TEXT = 'a "b"\\\n\tç 😀'


def last_request(node: Node) -> pb.GenerateRequest:
    request = node.engine.requests[-1]
    assert isinstance(request, pb.GenerateRequest)
    return request


def refusal(node: Node, *tools: object, **more: object) -> tuple[int, str, str]:
    body = {"model": CHAT, "input": "hello", "tools": tools, **more}
    answer = node.request("POST", "/v1/responses", body)
    return answer.status, answer.error["param"], answer.error["code"]


def test_a_function_of_a_namespace_goes_round(client: openai.OpenAI, node: Node) -> None:
    node.engine.behaviour.answers.append([("notes__look", '{"at": "b"}')])
    asked: ResponseInputParam = [{"role": "user", "content": "look"}]
    response = client.responses.create(model=CHAT, input=asked, tools=[NOTES])
    (call,) = response.output
    assert call.type == "function_call"
    assert (call.namespace, call.name, call.arguments) == ("notes", "look", '{"at": "b"}')
    look, write = last_request(node).chat.tools
    assert look.description == "What was written down.\n\nLook at a place."
    assert (write.name, write.description) == ("notes__write", "Write a note.")
    asked += cast(Any, response.output)
    asked.append({"type": "function_call_output", "call_id": call.call_id, "output": "there"})
    client.responses.create(model=CHAT, input=asked, tools=[NOTES])
    _, turn, result = last_request(node).chat.messages
    assert turn.tool_calls[0].name == "notes__look"
    assert result.tool_call_id == call.call_id


def test_a_function_without_a_namespace_has_none(client: openai.OpenAI) -> None:
    tool = cast(ToolParam, {**LOOK, "allowed_callers": ["direct"], "defer_loading": False})
    response = client.responses.create(model=CHAT, input="call look {}", tools=[tool])
    (call,) = response.output
    assert call.type == "function_call"
    assert "namespace" not in call.model_fields_set


@pytest.mark.parametrize("together", [1, 512])
def test_a_custom_tool_is_called_with_a_text(node: Node, together: int) -> None:
    node.engine.behaviour.together = together
    node.engine.behaviour.answers.append([("patch", json.dumps({"input": TEXT}))])
    body = {"model": CHAT, "input": "change it", "tools": [PATCH], "stream": True}
    events = node.stream(body, "/v1/responses").documents()
    deltas = [e["delta"] for e in events[:-1] if e["type"].endswith("input.delta")]
    assert "".join(deltas) == TEXT
    (done,) = [e for e in events[:-1] if e["type"] == "response.custom_tool_call_input.done"]
    assert done["input"] == TEXT
    (item,) = events[-2]["response"]["output"]
    kept = {name: item[name] for name in ("type", "name", "input", "status")}
    assert kept == {
        "type": "custom_tool_call",
        "name": "patch",
        "input": TEXT,
        "status": "completed",
    }


def test_a_custom_call_and_its_result_go_round(client: openai.OpenAI, node: Node) -> None:
    node.engine.behaviour.answers.append([("patch", json.dumps({"input": TEXT}))])
    asked: ResponseInputParam = [{"role": "user", "content": "change it"}]
    response = client.responses.create(model=CHAT, input=asked, tools=[PATCH])
    (call,) = response.output
    assert call.type == "custom_tool_call"
    assert call.input == TEXT
    assert response.tools[0].to_dict()["format"] == {"type": "text"}
    asked += cast(Any, response.output)
    asked.append({"type": "custom_tool_call_output", "call_id": call.call_id, "output": "done"})
    client.responses.create(model=CHAT, input=asked, tools=[PATCH])
    _, turn, result = last_request(node).chat.messages
    assert json.loads(turn.tool_calls[0].arguments_json) == {"input": TEXT}
    assert (result.role, result.content[0].text) == ("tool", "done")


def test_the_text_of_a_custom_tool_is_held_to(client: openai.OpenAI, node: Node) -> None:
    client.responses.create(model=CHAT, input="hello", tools=[PATCH])
    (tool,) = last_request(node).chat.tools
    assert tool.strict
    assert json.loads(tool.parameters_json)["required"] == ["input"]


def test_a_custom_call_that_is_cut_off_keeps_what_was_said(node: Node) -> None:
    node.engine.behaviour.answers.append([("patch", json.dumps({"input": "abcdef"}))])
    cut = len('+{"input": "abc')
    body = {"model": CHAT, "input": "x", "tools": [PATCH], "max_output_tokens": cut}
    (item,) = node.request("POST", "/v1/responses", body).json["output"]
    assert (item["input"], item["status"]) == ("abc", "incomplete")


@pytest.mark.parametrize(
    ("syntax", "definition", "pattern"),
    [
        ("regex", "a|b", "^(?:a|b)$"),
        ("lark", 'start: "a" | /b+/ LF\n%import common.LF', r"^(?:(?:a|(?:b+)\n))$"),
    ],
)
def test_a_grammar_reaches_the_engine_as_a_pattern(
    client: openai.OpenAI, node: Node, syntax: Any, definition: str, pattern: str
) -> None:
    client.responses.create(
        model=CHAT,
        input="x",
        tools=[
            {
                "type": "custom",
                "name": "pick",
                "format": {"type": "grammar", "syntax": syntax, "definition": definition},
            }
        ],
    )
    (tool,) = last_request(node).chat.tools
    assert json.loads(tool.parameters_json)["properties"]["input"]["pattern"] == pattern


def test_a_grammar_that_the_engine_refuses_is_named_where_it_stands(node: Node) -> None:
    form = {"type": "grammar", "syntax": "regex", "definition": "(?=a)b"}
    custom = {"type": "custom", "name": "pick", "format": form}
    spaced = {"type": "namespace", "name": "n", "tools": [LOOK, custom]}
    bad = (400, "tools[0].tools[1].format.definition", "unsupported_parameter")
    assert refusal(node, spaced) == bad


def test_a_choice_may_name_a_custom_tool(client: openai.OpenAI, node: Node) -> None:
    client.responses.create(
        model=CHAT, input="x", tools=[PATCH], tool_choice={"type": "custom", "name": "patch"}
    )
    assert last_request(node).chat.tool_choice_name == "patch"
    client.responses.create(
        model=CHAT,
        input="x",
        tools=[PATCH, NOTES],
        tool_choice={
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "custom", "name": "patch"}],
        },
    )
    assert [tool.name for tool in last_request(node).chat.tools] == ["patch"]


@pytest.mark.parametrize(
    "kind", ["web_search", "web_search_2025_08_26", "local_shell", "tool_search", "mcp", "shell"]
)
def test_a_tool_that_the_appliance_would_have_to_run_is_refused(node: Node, kind: str) -> None:
    hosted = {"type": kind, "external_web_access": True}
    assert refusal(node, LOOK, hosted) == (400, "tools[1].type", "unsupported_parameter")


def test_what_would_change_a_tool_is_refused_by_name(node: Node) -> None:
    lark = {"type": "grammar", "syntax": "lark", "definition": 'start: "a" start?'}
    shown = [
        ({**PATCH, "format": lark}, "tools[0].format.definition"),
        ({**LOOK, "defer_loading": True}, "tools[0].defer_loading"),
        ({**LOOK, "allowed_callers": ["programmatic"]}, "tools[0].allowed_callers[0]"),
        ({**LOOK, "output_schema": {}}, "tools[0].output_schema"),
        ({"type": "namespace", "name": "n", "tools": []}, "tools[0].tools"),
    ]
    assert [refusal(node, tool)[:2] for tool, _ in shown] == [(400, place) for _, place in shown]


def test_two_tools_that_would_be_called_alike_are_refused(node: Node) -> None:
    apart = {**LOOK, "name": "notes__look"}
    assert refusal(node, apart, NOTES) == (400, "tools[1].tools[0].name", "invalid_value")


def test_tools_of_namespaces_are_counted_one_by_one(node: Node) -> None:
    many = [{**LOOK, "name": f"f{number}"} for number in range(65)]
    spaces = [{"type": "namespace", "name": name, "tools": many} for name in ("a", "b")]
    assert refusal(node, *spaces) == (400, "tools", "invalid_value")


def test_tools_are_found_once_for_a_request() -> None:
    """An assistant sends a hundred: the prompt, refusals and the answer's shape share them."""
    body = json.dumps({"model": CHAT, "input": "hello", "tools": [NOTES, LOOK]})
    request = msgspec.json.decode(body, type=ResponsesRequest)
    assert [tool.called for tool in request.callables] == ["notes__look", "notes__write", "look"]
    assert request.callables is request.callables


def test_what_a_program_says_about_itself_changes_nothing(node: Node) -> None:
    body = {"model": CHAT, "input": "hello", "client_metadata": {"turn": "1"}}
    assert node.request("POST", "/v1/responses", body).status == 200


def test_custom_calls_are_stored_with_a_response(tmp_path: Any) -> None:
    with standing(tmp_path, store_responses=True) as node:
        node.engine.behaviour.answers.append([("notes__write", '{"input": "x"}')])
        body = {"model": CHAT, "input": "hello", "tools": [NOTES]}
        first = node.request("POST", "/v1/responses", body).json
        told = {
            "type": "custom_tool_call_output",
            "call_id": first["output"][0]["call_id"],
            "output": "ok",
        }
        more = {"model": CHAT, "input": [told], "previous_response_id": first["id"]}
        second = node.request("POST", "/v1/responses", more).json
        _, turn, _ = last_request(node).chat.messages
        assert turn.tool_calls[0].name == "notes__write"
        shown = node.request("GET", f"/v1/responses/{second['id']}/input_items").json["data"]
    assert [item["type"] for item in shown] == [
        "custom_tool_call_output",
        "custom_tool_call",
        "message",
    ]
    assert shown[1]["namespace"] == "notes"


@given(st.text(), st.booleans(), st.lists(st.integers(0, 400)))
def test_a_custom_text_is_read_wherever_it_is_cut(
    text: str, ascii_only: bool, cuts: list[int]
) -> None:
    written = json.dumps({"input": text}, ensure_ascii=ascii_only)
    reader, places = CustomInput(), sorted({0, len(written), *cuts})
    pieces = [written[a:b] for a, b in pairwise(places)]
    assert "".join(reader.add(piece) for piece in pieces) == text
