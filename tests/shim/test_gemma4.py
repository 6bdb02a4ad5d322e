"""Gemma 4 and Llama 4 behind the endpoint: calls that are forced and sent back; reasoning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.checkpoint.families.gemma4 import GEMMA4
from tests.checkpoint.families.llama4 import LLAMA4
from tests.fakes.engine_node import EngineNode
from tests.shim.node import Node
from tests.shim.real_node import SMALL_CACHE, served
from tests.shim.speaking import (
    ASKED,
    DAYS,
    EXACT,
    UNIT,
    draw_speaking,
    forecast,
    sent_back,
    tokenizer_of,
)

AREA = {
    "type": "object",
    "properties": {"exact": EXACT},
    "required": ["exact"],
    "additionalProperties": False,
}
TOOLS = forecast(unit=UNIT, days=DAYS, area=AREA)
pytestmark = pytest.mark.slow


def build_models(root: Path) -> None:
    node = EngineNode(root)
    for name, config in (("gemma4", GEMMA4), ("llama4", LLAMA4)):
        longer = {**config, "max_position_embeddings": 1024}
        node.add(draw_speaking(root, name, longer, name), name=name)


node = served("gemma4-models", build_models, SMALL_CACHE)


def answered(client: openai.OpenAI, model: str, *, thinking: bool, **more: Any) -> Any:
    answer = client.chat.completions.create(
        model=model,
        messages=[ASKED],
        tools=TOOLS,
        max_tokens=400,
        seed=3,
        extra_body={"chat_template_kwargs": {"enable_thinking": thinking}},
        **more,
    )
    return answer.choices[0].message


@pytest.mark.parametrize("model", ["gemma4", "llama4"])
def test_a_forced_call_goes_back_into_the_prompt_as_it_was_written(
    node: Node, client: openai.OpenAI, model: str
) -> None:
    message = answered(client, model, thinking=False, tool_choice="required")
    call = message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "forecast"
    assert (arguments["unit"] in "CF", type(arguments["days"])) == (True, int)
    assert type(arguments["area"]["exact"]) is bool
    written = call.model_dump(include={"id", "type", "function"})
    body = {"model": model, "messages": sent_back(written), "tools": TOOLS}
    ids = node.request("POST", "/tokenize", body).json["tokens"]
    text = tokenizer_of(node, model).decode(ids, skip_special_tokens=False)
    exact = json.dumps(arguments["area"]["exact"])
    wanted = {
        "gemma4": f"<|tool_call>call:forecast{{area:{{exact:{exact}}},days:{arguments['days']},"
        f'unit:<|"|>{arguments["unit"]}<|"|>}}<tool_call|>',
        "llama4": '<|python_end|>{"name": "forecast", "parameters": {',
    }
    assert wanted[model] in text


def test_reasoning_in_a_channel_comes_before_a_forced_call(
    node: Node, client: openai.OpenAI
) -> None:
    closing = tokenizer_of(node, "gemma4").token_to_id("<channel|>")
    silent = answered(client, "gemma4", thinking=False, tool_choice="required")
    assert getattr(silent, "reasoning_content", None) is None
    thought = answered(
        *(client, "gemma4"), thinking=True, tool_choice="required", logit_bias={str(closing): 2}
    )
    assert thought.reasoning_content
    assert not thought.reasoning_content.startswith("thought")
    assert thought.content in (None, "")
    assert thought.tool_calls[0].function.name == "forecast"
