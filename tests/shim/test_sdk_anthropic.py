"""The official, unmodified Anthropic SDK against /v1/messages."""

from __future__ import annotations

import asyncio
import json
from itertools import islice
from typing import Any

import anthropic
import grpc
import pytest
from anthropic.types import MessageParam, ToolParam

from appliance.pb import engine_v1_pb2 as pb
from tests.fakes.engine import CHAT, CONTEXT, Fault
from tests.shim.node import Node

PATH = "/v1/messages"
HELLO: list[MessageParam] = [{"role": "user", "content": "hello"}]
PROMPT = len("user: hello\n")
WEATHER: ToolParam = {
    "name": "weather",
    "description": "The weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL: list[MessageParam] = [{"role": "user", "content": 'call weather {"city": "Bern"}'}]
BASE: dict[str, Any] = {"model": CHAT, "max_tokens": 100, "messages": HELLO}


def last_request(node: Node) -> pb.GenerateRequest:
    request = node.engine.requests[-1]
    assert isinstance(request, pb.GenerateRequest)
    return request


def said(request: pb.GenerateRequest) -> list[tuple[str, str]]:
    return [(m.role, "".join(p.text for p in m.content)) for m in request.chat.messages]


def error_of(document: Any) -> Any:
    """The inner object of a complete error."""
    assert set(document) == {"type", "error", "request_id"}
    assert document["type"] == "error"
    assert set(document["error"]) == {"type", "message", "details"}
    return document["error"]


def test_an_answer_is_a_message_with_usage_and_a_request_id(
    claude: anthropic.Anthropic,
) -> None:
    message = claude.messages.create(model=CHAT, max_tokens=100, messages=HELLO)
    (block,) = message.content
    assert block.type == "text"
    assert block.text == "hello"
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert (message.role, message.model) == ("assistant", CHAT)
    assert message.usage.input_tokens == PROMPT
    assert message.usage.output_tokens == len("hello") + 1
    assert message._request_id is not None
    assert message._request_id.removeprefix("req_") == message.id.removeprefix("msg_")


def test_cached_tokens_are_counted_apart(claude: anthropic.Anthropic) -> None:
    claude.messages.create(model=CHAT, max_tokens=100, messages=HELLO)
    usage = claude.messages.create(model=CHAT, max_tokens=100, messages=HELLO).usage
    assert usage.cache_read_input_tokens == PROMPT - 1
    assert usage.input_tokens == 1


def test_the_stream_helper_accumulates_the_same_message(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(
        model=CHAT,
        max_tokens=2000,
        messages=HELLO,
        thinking={"type": "enabled", "budget_tokens": 1024},
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "hello"
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == len("hm") + len("hello") + 1


def test_events_come_in_their_order_each_with_its_name(node: Node) -> None:
    thinking = {"type": "enabled", "budget_tokens": 50}
    frames = list(node.stream({**BASE, "stream": True, "thinking": thinking}, PATH))
    events = []
    for frame in frames:
        name, data = frame.decode().splitlines()
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    kinds = [event["type"] for event in events]
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 2,
        "content_block_stop",
        "content_block_start",
        *["content_block_delta"] * 5,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [e["index"] for e in events if "index" in e] == [0] * 4 + [1] * 7
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["usage"]["input_tokens"] == PROMPT
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == len("hm") + len("hello") + 1
    assert events[-2]["usage"]["output_tokens_details"] == {"thinking_tokens": 2}


def test_a_tool_call_and_its_result_go_round(claude: anthropic.Anthropic, node: Node) -> None:
    message = claude.messages.create(
        model=CHAT,
        max_tokens=2000,
        messages=CALL,
        tools=[WEATHER],
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    assert message.stop_reason == "tool_use"
    _, use = message.content
    assert use.type == "tool_use"
    assert (use.name, use.input) == ("weather", {"city": "Bern"})
    result: MessageParam = {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"},
            {"type": "tool_result", "tool_use_id": "other", "is_error": True, "content": "no"},
            {"type": "text", "text": "well?"},
        ],
    }
    claude.messages.create(
        model=CHAT, max_tokens=100, messages=[*CALL, message.to_param(), result], tools=[WEATHER]
    )
    request = last_request(node)
    assert said(request)[1:] == [
        ("assistant", ""),
        ("tool", "sunny"),
        ("tool", "Error: no"),
        ("user", "well?"),
    ]
    assistant, tool = request.chat.messages[1:3]
    assert assistant.reasoning == "hm"
    assert assistant.tool_calls[0].id == use.id == tool.tool_call_id
    assert json.loads(assistant.tool_calls[0].arguments_json) == {"city": "Bern"}


def test_a_tool_call_streams_its_input(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(
        model=CHAT, max_tokens=100, messages=CALL, tools=[WEATHER]
    ) as stream:
        final = stream.get_final_message()
    (use,) = final.content
    assert use.type == "tool_use"
    assert use.input == {"city": "Bern"}


def test_parameters_reach_the_engine(claude: anthropic.Anthropic, node: Node) -> None:
    claude.messages.create(
        model=CHAT,
        max_tokens=50,
        system=[
            {"type": "text", "text": "be ", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "brief"},
        ],
        messages=[{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        stop_sequences=["x", "y"],
        extra_body={"top_k": 3, "top_p": 0.5, "temperature": 0},
        thinking={"type": "disabled"},
        tools=[WEATHER],
        tool_choice={"type": "none"},
        metadata={"user_id": "u"},
    )
    request = last_request(node)
    assert said(request) == [("system", "be brief"), ("user", "a")]
    assert request.sampling.max_tokens == 50
    assert list(request.sampling.stop) == ["x", "y"]
    assert request.sampling.top_k == 3
    assert request.sampling.top_p == pytest.approx(0.5)
    assert request.chat.thinking == pb.THINKING_MODE_OFF
    assert not request.chat.tools
    assert request.cache_namespace == node.key.id


def test_a_last_assistant_text_is_gone_on_from(claude: anthropic.Anthropic, node: Node) -> None:
    message = claude.messages.create(
        model=CHAT, max_tokens=50, messages=[*HELLO, {"role": "assistant", "content": "hel"}]
    )
    assert last_request(node).chat.continue_final_message
    assert message.content[0].type == "text"
    assert message.content[0].text == "lo"


@pytest.mark.parametrize(
    ("more", "reason", "sequence"),
    [({"stop_sequences": ["l"]}, "stop_sequence", "l"), ({"max_tokens": 2}, "max_tokens", None)],
)
def test_why_it_stopped_is_told(
    claude: anthropic.Anthropic, more: dict[str, Any], reason: str, sequence: str | None
) -> None:
    message = claude.messages.create(**{**BASE, **more})
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)


def test_tokens_are_counted_without_generating(claude: anthropic.Anthropic, node: Node) -> None:
    counted = claude.messages.count_tokens(model=CHAT, messages=HELLO, system="s")
    assert counted.input_tokens == len("system: s\n") + PROMPT
    assert not node.engine.requests
    assert node.res().tokens.prompt == 0


def test_the_asynchronous_sdk_streams(node: Node) -> None:
    async def run() -> str:
        base_url = node.base_url.removesuffix("/v1")
        async with (
            anthropic.AsyncAnthropic(
                base_url=base_url, api_key=node.secret, max_retries=0
            ) as client,
            client.messages.stream(**BASE) as stream,
        ):
            return "".join([text async for text in stream.text_stream])

    assert asyncio.run(run()) == "hello"


@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
def test_the_key_may_come_in_either_header(node: Node, header: str) -> None:
    value = node.secret if header == "x-api-key" else f"Bearer {node.secret}"
    connection = node.connect()
    headers = {header: value, "content-type": "application/json"}
    connection.request("POST", PATH, json.dumps(BASE), headers)
    assert connection.getresponse().status == 200
    connection.close()


def test_two_different_keys_are_none(node: Node) -> None:
    answer = node.request("POST", PATH, BASE, headers={"x-api-key": "sk-other"})
    assert (answer.status, error_of(answer.json)["type"]) == (401, "authentication_error")
    assert node.request("POST", PATH, BASE, headers={"x-api-key": node.secret}).status == 200


def test_the_other_header_opens_no_other_route(node: Node) -> None:
    headers = {"Authorization": "", "x-api-key": node.secret}
    for path in ("/v1/chat/completions", "/v1/embeddings"):
        assert node.request("POST", path, {}, headers=headers).status == 401


@pytest.mark.parametrize(
    ("body", "length", "status", "kind"),
    [
        (b"{", "1", 400, "invalid_request_error"),
        (json.dumps({**BASE, "model": "nobody"}).encode(), "", 404, "not_found_error"),
        (b"{", str(1 << 30), 413, "request_too_large"),
    ],
    ids=["invalid", "unknown model", "too large"],
)
def test_errors_have_anthropic_s_shape_here(
    node: Node, body: bytes, length: str, status: int, kind: str
) -> None:
    headers = {"Content-Length": length} if length else {}
    answer = node.request("POST", PATH, body, headers=headers)
    assert (answer.status, error_of(answer.json)["type"]) == (status, kind)
    assert answer.json["request_id"] == answer.headers["request-id"] == answer.request_id
    assert node.reject(answer.request_id).status == status


def test_the_sdk_raises_the_exception_of_each_error(
    claude: anthropic.Anthropic, node: Node
) -> None:
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="nobody", max_tokens=1, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(model=CHAT, max_tokens=0, messages=HELLO)
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="sk-wrong").messages.create(**BASE)
    node.engine.behaviour.slots = 0
    with pytest.raises(anthropic.RateLimitError):
        claude.messages.create(**BASE)
    node.engine.behaviour.fault = Fault(grpc.StatusCode.UNAVAILABLE)
    node.engine.behaviour.slots = 64
    with pytest.raises(anthropic.InternalServerError):
        claude.messages.create(**BASE)
    assert node.request("GET", PATH).json["error"]["type"] == "invalid_request_error"


def test_an_error_on_the_way_is_an_event_and_billed_exactly(
    claude: anthropic.Anthropic, node: Node
) -> None:
    node.engine.behaviour.fault = Fault(grpc.StatusCode.INTERNAL, after_tokens=2)
    answer = node.stream({**BASE, "stream": True}, PATH)
    frames = list(answer)
    assert frames[-1].startswith(b"event: error\n")
    assert error_of(json.loads(frames[-1].split(b"data: ")[1]))["type"] == "api_error"
    assert node.res(answer.request_id).tokens.generated == 2
    with pytest.raises(anthropic.APIStatusError):
        list(claude.messages.create(**BASE, stream=True))


def test_a_caller_that_hangs_up_pays_what_was_computed(node: Node) -> None:
    node.engine.behaviour.pause_after = 3
    answer = node.stream({**BASE, "stream": True}, PATH)
    deltas = (frame for frame in answer if b"text_delta" in frame)
    assert len(list(islice(deltas, 3))) == 3, "a delta for each token that was computed"
    answer.hang_up()
    res = node.res(answer.request_id)
    assert (res.outcome, res.tokens.generated) == ("cancelled", 3)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0]"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"temperature": 1.5}, "temperature"),
        ({"unheard_of": 1}, "unheard_of"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0].source.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": "a" * CONTEXT}]}, "messages"),
    ],
    ids=str,
)
def test_what_is_not_possible_is_refused_by_name(
    node: Node, more: dict[str, Any], param: str
) -> None:
    answer = node.request("POST", PATH, {**BASE, **more})
    assert answer.status == 400
    assert f"`{param}" in error_of(answer.json)["message"]


def test_another_version_of_the_api_is_refused(node: Node) -> None:
    for path in (PATH, f"{PATH}/count_tokens"):
        body = {"model": CHAT, "messages": HELLO}
        answer = node.request("POST", path, body, headers={"anthropic-version": "2033-01-01"})
        assert answer.status == 400
        assert "anthropic-version" in error_of(answer.json)["message"]
