"""Qwen3.5 behind the endpoint: conversations that go on where a state stands, and forced calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai

from tests.checkpoint.families.qwen3_5 import QWEN3_5
from tests.fakes.engine_node import EngineNode
from tests.shim.real_node import SMALL_CACHE, served
from tests.shim.speaking import ASKED, UNIT, draw_speaking, forecast

NAME = "states"
SYSTEM: Any = {
    "role": "system",
    "content": "Every request is written to the audit log before its first word is sent. " * 9,
}
TOOLS = forecast(unit=UNIT)


def build_models(root: Path) -> None:
    checkpoint = draw_speaking(root, NAME, QWEN3_5, "qwen_coder")
    EngineNode(root).add(checkpoint, name=NAME, precision="w8a8")


node = served("state-models", build_models, SMALL_CACHE)


def test_the_second_turn_of_a_conversation_computes_little_of_the_first(
    client: openai.OpenAI,
) -> None:
    def say(messages: list[Any]) -> tuple[str, int, int]:
        done = client.chat.completions.create(
            model=NAME, messages=messages, temperature=0, max_tokens=16
        )
        usage = done.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        cached = usage.prompt_tokens_details.cached_tokens or 0
        return done.choices[0].message.content or "", usage.prompt_tokens, cached

    asked: Any = {"role": "user", "content": "Is the log kept?"}
    answer, first, cached = say([SYSTEM, asked])
    assert cached == 0
    more = [SYSTEM, asked, {"role": "assistant", "content": "Told otherwise."}, asked]
    _, second, cached = say(more)
    assert second > first
    assert first - 50 < cached < first, "but for what stands behind the last state"
    assert say([SYSTEM, asked])[0] == answer


def test_the_second_request_with_a_system_prompt_computes_little_of_it(
    client: openai.OpenAI,
) -> None:
    def found(question: str, **more: Any) -> tuple[int, int]:
        asked: Any = {"role": "user", "content": question}
        told: Any = {**SYSTEM, "content": f"Say it in German. {SYSTEM['content']}"}
        usage = client.chat.completions.create(
            model=NAME, messages=[told, asked], temperature=0, max_tokens=1, **more
        ).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0, usage.prompt_tokens

    none, length = found("?")
    assert none == 0
    cached, _ = found("How long are the records kept, and who may read them? " * 3)
    assert length - 60 < cached < length
    none, length = found("?", tools=TOOLS)
    assert none == 0, "tools stand in front of it"
    cached, _ = found("Who may read them? " * 3, tools=TOOLS)
    assert length - 60 < cached < length


def test_a_forced_call_satisfies_its_schema(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model=NAME,
        messages=[ASKED],
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
    )
    calls: Any = done.choices[0].message.tool_calls
    (call,) = calls
    assert json.loads(call.function.arguments)["unit"] in ("C", "F")


def test_answers_that_are_broken_off_leave_the_next_as_it_was(client: openai.OpenAI) -> None:
    def start() -> openai.Stream[Any]:
        return client.chat.completions.create(
            model=NAME, messages=[SYSTEM], temperature=0, max_tokens=32, stream=True
        )

    with start() as stream:
        whole = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
    with start() as stream:
        next(iter(stream))
    with start() as stream:
        assert [chunk.choices[0].delta.content for chunk in stream if chunk.choices] == whole
