"""The official, unmodified OpenAI SDK against /v1/responses."""

from __future__ import annotations

import asyncio
import json
from itertools import islice
from typing import Any, cast

import openai
import pytest
from openai.types.responses import (
    FunctionToolParam,
    ResponseFunctionToolCall,
    ResponseInputParam,
    ResponseOutputMessage,
    ResponseReasoningItem,
)
from openai.types.responses.response_output_text import ResponseOutputText

from appliance.pb import engine_v1_pb2 as pb
from tests.fakes.engine import CHAT, LOGPROB, Fault
from tests.shim.node import Node

PROMPT = len("user: hello\n")
WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
CALL = 'call weather {"city": "Bern"}'


def last_request(node: Node) -> pb.GenerateRequest:
    request = node.engine.requests[-1]
    assert isinstance(request, pb.GenerateRequest)
    return request


def test_an_answer_is_one_message_with_usage(client: openai.OpenAI) -> None:
    response = client.responses.create(model=CHAT, input="hello")
    assert response.output_text == "hello"
    assert response.status == "completed"
    assert response.completed_at is not None
    (message,) = response.output
    assert isinstance(message, ResponseOutputMessage)
    assert message.status == "completed"
    assert response.usage is not None
    assert response.usage.input_tokens == PROMPT
    assert response.usage.output_tokens == len("hello") + 1
    assert response.usage.total_tokens == PROMPT + len("hello") + 1


def test_no_field_that_open_responses_requires_is_null(node: Node) -> None:
    answer = node.request("POST", "/v1/responses", {"model": CHAT, "input": "hello"}).json
    required = {
        "temperature": 1.0,
        "top_p": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "top_logprobs": 0,
        "tool_choice": "auto",
        "tools": [],
        "truncation": "disabled",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "store": False,
        "background": False,
        "service_tier": "default",
        "metadata": {},
        "parallel_tool_calls": True,
    }
    assert {name: answer[name] for name in required} == required
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == 0
    assert answer["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}


def test_what_was_asked_is_echoed(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=CHAT,
        input="hello",
        instructions="be brief",
        temperature=0,
        top_p=0.5,
        max_output_tokens=50,
        metadata={"a": "b"},
        tools=[WEATHER],
        tool_choice="none",
        reasoning={"effort": "none"},
    )
    assert (response.instructions, response.metadata) == ("be brief", {"a": "b"})
    assert (response.temperature, response.top_p, response.max_output_tokens) == (0, 0.5, 50)
    assert response.tool_choice == "none"
    assert response.tools[0].type == "function"
    assert response.reasoning is not None
    assert response.reasoning.effort == "none"


def test_parameters_reach_the_engine(client: openai.OpenAI, node: Node) -> None:
    client.responses.create(
        model=CHAT,
        input=[{"role": "developer", "content": "D"}, {"role": "user", "content": "U"}],
        instructions="I",
        temperature=0,
        top_p=0.5,
        max_output_tokens=50,
        reasoning={"effort": "minimal"},
        tools=[WEATHER],
        extra_body={"presence_penalty": 0.5, "frequency_penalty": -0.5},
    )
    request = last_request(node)
    assert [(m.role, m.content[0].text) for m in request.chat.messages] == [
        ("system", "I"),
        ("system", "D"),
        ("user", "U"),
    ]
    assert request.sampling.max_tokens == 50
    assert request.sampling.top_p == pytest.approx(0.5)
    assert request.sampling.presence_penalty == pytest.approx(0.5)
    assert request.sampling.frequency_penalty == pytest.approx(-0.5)
    assert request.chat.thinking == pb.THINKING_MODE_OFF
    assert request.chat.tools[0].name == "weather"
    assert request.cache_namespace == node.key.id


def test_reasoning_is_an_item_of_its_own_before_the_message(client: openai.OpenAI) -> None:
    response = client.responses.create(model=CHAT, input="hello", reasoning={"effort": "high"})
    reasoning, message = response.output
    assert isinstance(reasoning, ResponseReasoningItem)
    assert reasoning.content is not None
    assert reasoning.content[0].text == "hm"
    assert message.type == "message"
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == 2


def test_a_tool_call_and_its_result_go_round(client: openai.OpenAI, node: Node) -> None:
    conversation: ResponseInputParam = [{"role": "user", "content": CALL}]
    response = client.responses.create(
        model=CHAT, input=conversation, tools=[WEATHER], reasoning={"effort": "low"}
    )
    _, call = response.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Bern"})
    conversation += cast(Any, response.output)
    conversation.append(
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    )
    client.responses.create(model=CHAT, input=conversation, tools=[WEATHER])
    user, assistant, tool = last_request(node).chat.messages
    assert user.role == "user"
    assert (assistant.role, assistant.reasoning) == ("assistant", "hm")
    assert assistant.tool_calls[0].id == call.call_id == tool.tool_call_id
    assert tool.content[0].text == "sunny"


def test_turns_of_an_assistant_are_told_apart(client: openai.OpenAI, node: Node) -> None:
    client.responses.create(
        model=CHAT,
        input=[
            {"role": "assistant", "content": "one"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ],
    )
    turns = last_request(node).chat.messages
    assert [(t.role, t.content[0].text) for t in turns] == [
        ("assistant", "one"),
        ("assistant", "two"),
        ("user", "three"),
    ]
    assert turns[0].tool_calls[0].name == "f"


def test_the_stream_helper_accumulates_the_same_response(client: openai.OpenAI) -> None:
    with client.responses.stream(model=CHAT, input="hello", reasoning={"effort": "low"}) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == "hello"
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


def test_events_come_in_the_order_of_the_specification(node: Node) -> None:
    body = {"model": CHAT, "input": "hi", "stream": True, "reasoning": {"effort": "low"}}
    events = node.stream(body, "/v1/responses").documents()
    assert events.pop() == "[DONE]"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["response"]["output"] == []
    kinds = [event["type"].removeprefix("response.") for event in events]
    begin = ["output_item.added", "content_part.added"]
    end = ["content_part.done", "output_item.done"]
    assert kinds == [
        "created",
        "in_progress",
        *begin,
        *["reasoning_text.delta"] * 2,
        "reasoning_text.done",
        *end,
        *begin,
        *["output_text.delta"] * 2,
        "output_text.done",
        *end,
        "completed",
    ]
    assert [e["output_index"] for e in events if "output_index" in e] == [0] * 7 + [1] * 7
    assert events[-1]["response"]["usage"]["output_tokens"] == len("hm") + len("hi") + 1


def test_calls_stream_one_after_the_other(client: openai.OpenAI) -> None:
    question = f'{CALL}\ncall weather {{"city": "Rome"}}'
    stream = client.responses.create(model=CHAT, input=question, tools=[WEATHER], stream=True)
    done: list[str] = []
    open_items: list[int] = []
    for event in stream:
        if event.type == "response.output_item.added":
            assert not open_items
            open_items.append(event.output_index)
        elif event.type == "response.function_call_arguments.done":
            done.append(json.loads(event.arguments)["city"])
        elif event.type == "response.output_item.done":
            assert open_items.pop() == event.output_index
    assert done == ["Bern", "Rome"]


def test_every_frame_has_the_name_of_its_event(node: Node) -> None:
    frames = list(node.stream({"model": CHAT, "input": "hi", "stream": True}, "/v1/responses"))
    for frame in frames[:-1]:
        name, data = frame.decode().splitlines()
        assert name == "event: " + json.loads(data.removeprefix("data: "))["type"]


def test_a_limit_makes_it_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(model=CHAT, input="hello", max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text == "he"
    (message,) = response.output
    assert isinstance(message, ResponseOutputMessage)
    assert message.status == "incomplete"
    stream = client.responses.create(model=CHAT, input="hello", max_output_tokens=2, stream=True)
    last = list(stream)[-1]
    assert last.type == "response.incomplete"
    assert last.response.usage is not None


def test_log_probabilities_come_with_the_text(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=CHAT, input="hi", top_logprobs=2, include=["message.output_text.logprobs"]
    )
    message = response.output[0]
    assert isinstance(message, ResponseOutputMessage)
    part = message.content[0]
    assert isinstance(part, ResponseOutputText)
    assert part.logprobs is not None
    assert [token.token for token in part.logprobs] == ["h", "i"]
    assert part.logprobs[0].logprob == pytest.approx(LOGPROB)
    assert len(part.logprobs[0].top_logprobs) == 2


def test_an_empty_answer_is_an_empty_message(client: openai.OpenAI, node: Node) -> None:
    response = client.responses.create(model=CHAT, input=[{"role": "system", "content": "s"}])
    assert response.output_text == ""
    assert [item.type for item in response.output] == ["message"]


def test_a_failure_on_the_way_is_the_last_event_and_carries_what_is_billed(node: Node) -> None:
    import grpc

    node.engine.behaviour.fault = Fault(grpc.StatusCode.INTERNAL, after_tokens=2)
    answer = node.stream({"model": CHAT, "input": "hello", "stream": True}, "/v1/responses")
    last = answer.documents()[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert last["response"]["output"][0]["status"] == "incomplete"
    res = node.res(answer.request_id)
    assert (res.outcome, res.tokens.generated) == ("error", 2)
    assert last["response"]["usage"]["output_tokens"] == 2


def test_a_caller_that_hangs_up_pays_what_was_computed(node: Node) -> None:
    node.engine.behaviour.pause_after = 3
    answer = node.stream({"model": CHAT, "input": "hello", "stream": True}, "/v1/responses")
    deltas = (frame for frame in answer if b"output_text.delta" in frame)
    assert len(list(islice(deltas, 3))) == 3, "a delta for each token that was computed"
    answer.hang_up()
    res = node.res(answer.request_id)
    assert (res.outcome, res.tokens.generated) == ("cancelled", 3)
    node.engine.wait_until_idle()


def test_the_asynchronous_sdk_streams(node: Node) -> None:
    async def run() -> str:
        async with openai.AsyncOpenAI(
            base_url=node.base_url, api_key=node.secret, max_retries=0
        ) as client:
            stream = await client.responses.create(model=CHAT, input="hello", stream=True)
            return "".join(
                [e.delta async for e in stream if e.type == "response.output_text.delta"]
            )

    assert asyncio.run(run()) == "hello"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"include": ["web_search_call.results"]}, "include[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"reasoning": {"effort": "low", "x": 1}}, "reasoning.x"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"stream_options": {}}, "stream_options"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].image_url",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"unheard_of": 1}, "unheard_of"),
        ({"input": "a" * 5000}, "input"),
    ],
    ids=str,
)
def test_what_is_not_possible_is_refused_by_name(
    node: Node, more: dict[str, Any], param: str
) -> None:
    answer = node.request("POST", "/v1/responses", {"model": CHAT, "input": "a", **more})
    assert (answer.status, answer.error["param"]) == (400, param)
    assert node.reject(answer.request_id).status == 400
