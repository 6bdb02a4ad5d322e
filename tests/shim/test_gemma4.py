"""Gemma 4 and Llama 4 behind the endpoint: calls that are forced and sent back; reasoning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tokenizers import Tokenizer

from tests.checkpoint.drawn import draw_checkpoint
from tests.checkpoint.families.gemma4 import GEMMA4
from tests.checkpoint.families.llama4 import LLAMA4
from tests.conftest import BuildOnce
from tests.fakes.chat_formats import TEMPLATES, VOCAB, speak
from tests.fakes.engine_node import EngineNode
from tests.shim.node import Node
from tests.shim.real_node import standing_on

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
        "area": {
            "type": "object",
            "properties": {"exact": {"type": "boolean"}},
            "required": ["exact"],
            "additionalProperties": False,
        },
    },
    "required": ["unit", "days", "area"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "forecast", "strict": True, "parameters": PARAMETERS}}
]
pytestmark = pytest.mark.slow
ASKED: Any = {"role": "user", "content": "Will it snow?"}


def build_models(root: Path) -> None:
    node, words = EngineNode(root), {"vocab_size": VOCAB, "max_position_embeddings": 1024}
    for name, config in (("gemma4", GEMMA4), ("llama4", LLAMA4)):
        checkpoint = draw_checkpoint(root / f"checkpoint-{name}", {**config, **words})
        node.add(speak(checkpoint, TEMPLATES[name]), name=name)  # type: ignore[index]


@pytest.fixture(scope="module")
def models(build_once: BuildOnce) -> Path:
    return build_once("gemma4-models", build_models)


@pytest.fixture(scope="module")
def node(models: Path) -> Iterator[Node]:
    with standing_on(models, "cache_bytes = 67108864\n") as made:
        yield made


@pytest.fixture
def client(node: Node) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=node.base_url, api_key=node.secret, max_retries=0) as made:
        yield made


def tokenizer_of(models: Path, model: str) -> Tokenizer:
    return Tokenizer.from_file(str(models / f"checkpoint-{model}/tokenizer.json"))


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
    node: Node, models: Path, client: openai.OpenAI, model: str
) -> None:
    message = answered(client, model, thinking=False, tool_choice="required")
    call = message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "forecast"
    assert (arguments["unit"] in "CF", type(arguments["days"])) == (True, int)
    assert type(arguments["area"]["exact"]) is bool
    written = call.model_dump(include={"id", "type", "function"})
    messages = [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [written]},
        {"role": "tool", "tool_call_id": call.id, "content": "Yes."},
    ]
    body = {"model": model, "messages": messages, "tools": TOOLS}
    ids = node.request("POST", "/tokenize", body).json["tokens"]
    tokenizer = tokenizer_of(models, model)
    text = tokenizer.decode(ids, skip_special_tokens=False)
    exact = json.dumps(arguments["area"]["exact"])
    wanted = {
        "gemma4": f"<|tool_call>call:forecast{{area:{{exact:{exact}}},days:{arguments['days']},"
        f'unit:<|"|>{arguments["unit"]}<|"|>}}<tool_call|>',
        "llama4": '<|python_end|>{"name": "forecast", "parameters": {',
    }
    assert wanted[model] in text


def test_reasoning_in_a_channel_comes_before_a_forced_call(
    models: Path, client: openai.OpenAI
) -> None:
    closing = tokenizer_of(models, "gemma4").token_to_id("<channel|>")
    silent = answered(client, "gemma4", thinking=False, tool_choice="required")
    assert getattr(silent, "reasoning_content", None) is None
    thought = answered(
        *(client, "gemma4"), thinking=True, tool_choice="required", logit_bias={str(closing): 2}
    )
    assert thought.reasoning_content
    assert not thought.reasoning_content.startswith("thought")
    assert thought.content in (None, "")
    assert thought.tool_calls[0].function.name == "forecast"
