"""The official, unmodified OpenAI SDK against /v1/chat/completions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.chat.chat_completion_message_function_tool_call import (
    ChatCompletionMessageFunctionToolCall,
)

from appliance.pb import engine_v1_pb2 as pb
from tests.fakes.engine import CHAT, DIGEST, LOGPROB
from tests.shim.node import Node

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
PROMPT = len("user: hello\n")
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def last_request(node: Node) -> pb.GenerateRequest:
    request = node.engine.requests[-1]
    assert isinstance(request, pb.GenerateRequest)
    return request


def test_an_answer_has_text_reason_usage_and_the_bundle_it_came_from(
    client: openai.OpenAI,
) -> None:
    answer = client.chat.completions.create(model=CHAT, messages=HELLO)
    assert answer.choices[0].message.content == "hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == CHAT
    assert answer.system_fingerprint == f"fp_{DIGEST[CHAT][:16]}"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == PROMPT
    assert answer.usage.completion_tokens == len("hello") + 1
    assert answer.usage.total_tokens == PROMPT + len("hello") + 1


def test_a_stream_has_the_same_text_and_its_usage_in_the_last_chunk(
    client: openai.OpenAI,
) -> None:
    chunks = list(
        client.chat.completions.create(
            model=CHAT, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "hello"
    assert [c.usage is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len("hello") + 1
    assert len({c.id for c in chunks}) == 1


def test_the_stream_helper_of_the_sdk_accumulates_a_final_completion(
    client: openai.OpenAI,
) -> None:
    with client.chat.completions.stream(model=CHAT, messages=HELLO, n=2) as stream:
        final = stream.get_final_completion()
    assert [c.message.content for c in final.choices] == ["hello", "hello #1"]
    assert [c.message.role for c in final.choices] == ["assistant", "assistant"]


def test_the_asynchronous_sdk_streams_many_answers_at_once(node: Node) -> None:
    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        stream = await client.chat.completions.create(
            model=CHAT, messages=[{"role": "user", "content": f"to {number}"}], stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=node.base_url, api_key=node.secret, max_retries=0
        ) as client:
            return await asyncio.gather(*(one(client, number) for number in range(16)))

    assert asyncio.run(all_of_them()) == [f"to {number}" for number in range(16)]


def test_tool_calls_come_back_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": 'call weather {"city": "Bern"}'}],
        tools=[WEATHER],
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Bern"}


def test_tool_calls_stream_with_id_and_name_once_and_contiguous_indices(
    client: openai.OpenAI,
) -> None:
    question = 'call weather {"city": "Bern"}\ncall weather {"city": "Rome"}'
    stream = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": question}],
        tools=[WEATHER],
        stream=True,
    )
    calls: dict[int, str] = {}
    ids = []
    for chunk in stream:
        for delta in chunk.choices[0].delta.tool_calls or ():
            assert delta.function is not None
            assert delta.function.arguments is not None
            if delta.id is not None:
                ids.append(delta.id)
                assert (delta.type, delta.function.name) == ("function", "weather")
            else:
                assert (delta.type, delta.function.name) == (None, None)
            calls[delta.index] = calls.get(delta.index, "") + delta.function.arguments
    assert ids == ["call_0_0", "call_0_1"]
    assert calls == {0: '{"city": "Bern"}', 1: '{"city": "Rome"}'}


def test_a_tool_call_and_its_result_go_back_to_the_model(client: openai.OpenAI, node: Node) -> None:
    first = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": 'call weather {"city": "Bern"}'}],
        tools=[WEATHER],
    )
    history: list[Any] = [
        {"role": "user", "content": 'call weather {"city": "Bern"}'},
        first.choices[0].message,
        {"role": "tool", "tool_call_id": "call_0_0", "content": "sunny"},
        {"role": "user", "content": "thanks"},
    ]
    client.chat.completions.create(model=CHAT, messages=history, tools=[WEATHER])
    sent = last_request(node).chat.messages
    assert [m.role for m in sent] == ["user", "assistant", "tool", "user"]
    assert sent[1].tool_calls[0].arguments_json == '{"city": "Bern"}'
    assert (sent[2].tool_call_id, sent[2].content[0].text) == ("call_0_0", "sunny")


def test_tool_choice_none_keeps_the_tools_from_the_model(client: openai.OpenAI, node: Node) -> None:
    client.chat.completions.create(model=CHAT, messages=HELLO, tools=[WEATHER], tool_choice="none")
    assert not last_request(node).chat.tools


def test_reasoning_is_apart_from_the_answer_and_counted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT, messages=HELLO, extra_body={"chat_template_kwargs": {"enable_thinking": True}}
    )
    message = answer.choices[0].message
    assert message.content == "hello"
    assert message.model_extra == {"reasoning_content": "hm"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2


def test_reasoning_streams_as_strings_in_its_own_field(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=CHAT, messages=HELLO, reasoning_effort="high", stream=True
    )
    deltas = [chunk.choices[0].delta for chunk in stream]
    reasoning = "".join((d.model_extra or {}).get("reasoning_content", "") for d in deltas)
    assert reasoning == "hm"
    assert "".join(d.content or "" for d in deltas) == "hello"


@pytest.mark.parametrize(
    ("effort", "mode"),
    [
        ("none", pb.THINKING_MODE_OFF),
        ("minimal", pb.THINKING_MODE_OFF),
        ("low", pb.THINKING_MODE_LOW),
        ("medium", pb.THINKING_MODE_MEDIUM),
        ("high", pb.THINKING_MODE_HIGH),
        ("xhigh", pb.THINKING_MODE_HIGH),
    ],
)
def test_reasoning_effort_switches_thinking(
    client: openai.OpenAI, node: Node, effort: Any, mode: int
) -> None:
    client.chat.completions.create(model=CHAT, messages=HELLO, reasoning_effort=effort)
    assert last_request(node).chat.thinking == mode


def test_a_request_that_says_nothing_leaves_everything_to_the_bundle(
    client: openai.OpenAI, node: Node
) -> None:
    client.chat.completions.create(model=CHAT, messages=HELLO)
    request = last_request(node)
    assert request.chat.thinking == pb.THINKING_MODE_DEFAULT
    assert request.sampling == pb.SamplingParams()
    assert request.n == 1


def test_every_sampling_parameter_reaches_the_engine(client: openai.OpenAI, node: Node) -> None:
    client.chat.completions.create(
        model=CHAT,
        messages=HELLO,
        temperature=0.5,
        top_p=0.25,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"7": -100},
        seed=-1,
        stop=["x", "y"],
        max_completion_tokens=9,
        n=3,
        extra_body={
            "top_k": 5,
            "min_p": 0.125,
            "repetition_penalty": 1.5,
            "stop_token_ids": [1],
            "ignore_eos": True,
            "min_tokens": 2,
        },
    )
    request = last_request(node)
    assert request.n == 3
    assert request.sampling == pb.SamplingParams(
        max_tokens=9,
        temperature=0.5,
        top_p=0.25,
        top_k=5,
        min_p=0.125,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.5,
        seed=(1 << 64) - 1,
        stop=["x", "y"],
        stop_token_ids=[1],
        ignore_eos=True,
        logit_bias={7: -100},
        min_tokens=2,
    )


def test_the_prefix_cache_is_separate_for_each_key(client: openai.OpenAI, node: Node) -> None:
    for expected in (0, PROMPT - 1):
        answer = client.chat.completions.create(model=CHAT, messages=HELLO)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == expected
    assert last_request(node).cache_namespace == node.key.id
    assert last_request(node).caller == node.key.id, "and keys take turns"


@pytest.mark.parametrize("content", ["hello there", [{"type": "text", "text": "hello there"}]])
@pytest.mark.parametrize("stream", [False, True])
def test_a_prediction_changes_the_counts_and_neither_the_answer_nor_the_bill(
    client: openai.OpenAI, node: Node, content: Any, stream: bool
) -> None:
    plain = client.chat.completions.create(model=CHAT, messages=HELLO)
    given: Any = {"model": CHAT, "messages": HELLO}
    given["prediction"] = {"type": "content", "content": content}
    if stream:
        options: Any = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(**given, **options))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        usage = chunks[-1].usage
    else:
        answer = client.chat.completions.create(**given)
        text, usage = answer.choices[0].message.content, answer.usage
    assert text == plain.choices[0].message.content == "hello"
    assert last_request(node).prediction == "hello there"
    assert usage is not None
    assert plain.usage is not None
    details = usage.completion_tokens_details
    assert details is not None
    assert details.accepted_prediction_tokens == len("hello")
    assert details.rejected_prediction_tokens == len(" there")
    assert usage.completion_tokens == plain.usage.completion_tokens
    row = node.row(last_request(node).request_id)
    assert row.completion_tokens == usage.completion_tokens


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT, messages=[{"role": "user", "content": "one END two"}], stop="END"
    )
    assert answer.choices[0].message.content == "one "
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len("one END")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_ends_the_answer_with_length(client: openai.OpenAI, name: str) -> None:
    limit: dict[str, Any] = {name: 3}
    answer = client.chat.completions.create(model=CHAT, messages=HELLO, **limit)
    assert answer.choices[0].message.content == "hel"
    assert answer.choices[0].finish_reason == "length"


def test_several_choices_bill_the_prompt_once(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=CHAT, messages=HELLO, n=3)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert [c.message.content for c in answer.choices] == ["hello", "hello #1", "hello #2"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == PROMPT
    assert answer.usage.completion_tokens == 6 + 9 + 9


def test_the_same_seed_gives_the_same_answer(client: openai.OpenAI) -> None:
    def once(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=CHAT, messages=HELLO, temperature=1, seed=seed
        )
        return answer.choices[0].message.content

    assert once(1) == once(1) != once(2)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_come_with_their_tokens(client: openai.OpenAI, stream: bool) -> None:
    given: dict[str, Any] = {"model": CHAT, "messages": HELLO, "stream": stream}
    answer = client.chat.completions.create(**given, logprobs=True, top_logprobs=2)
    parts = list(answer) if stream else [answer]
    tokens = [
        token
        for part in parts
        if part.choices[0].logprobs
        for token in part.choices[0].logprobs.content
    ]
    assert "".join(token.token for token in tokens) == "hello"
    assert all(token.logprob == LOGPROB for token in tokens)
    assert [top.token for top in tokens[0].top_logprobs] == ["a", "b"]
    assert bytes(tokens[0].bytes) == b"h"


def test_the_final_assistant_message_can_be_continued(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT,
        messages=[*HELLO, {"role": "assistant", "content": "hel"}],
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert answer.choices[0].message.content == "lo"


def test_roles_names_and_parts_reach_the_model(client: openai.OpenAI, node: Node) -> None:
    client.chat.completions.create(
        model=CHAT,
        messages=[
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "name": "ann",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
        ],
    )
    system, user = last_request(node).chat.messages
    assert (system.role, system.content[0].text) == ("system", "be brief")
    assert (user.name, [part.text for part in user.content]) == ("ann", ["a", "b"])


def test_parameters_without_effect_are_taken(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT,
        messages=HELLO,
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        modalities=["text"],
        verbosity="medium",
    )
    assert answer.service_tier == "default"


def test_the_raw_response_shows_the_request_id(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=CHAT, messages=HELLO)
    assert raw.request_id is not None
    assert raw.request_id.startswith("req_")
    assert raw.parse()._request_id == raw.request_id
