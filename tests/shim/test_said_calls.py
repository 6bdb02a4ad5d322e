"""Calls of models whose templates do not write them: forced, streamed, and sent back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tokenizers import Tokenizer

from tests.conftest import BuildOnce
from tests.fakes.chat_formats import TEMPLATES, VOCAB, speak
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.engine_node import EngineNode
from tests.shim.node import Node
from tests.shim.real_node import standing_on

LFM2 = """\
{%- if tools -%}{{- 'List of tools: ' + tools | tojson + '\\n' -}}{%- endif -%}
{%- for message in messages -%}
{{- message.role | upper + ':' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""
SOURCES = {"lfm2": LFM2, "glm4": TEMPLATES["glm4"]}
WRITTEN = {
    "lfm2": '<|tool_call_start|>[forecast(unit="{unit}", days={days}, exact={exact})]'
    "<|tool_call_end|>",
    "glm4": '<|assistant|>forecast\n{{"unit": "{unit}", "days": {days}, "exact": {exact}}}'
    "<|observation|>\nYes.<|assistant|>",
}
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
        "exact": {"type": "boolean"},
    },
    "required": ["unit", "days", "exact"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "forecast", "strict": True, "parameters": PARAMETERS}}
]
ASKED: Any = {"role": "user", "content": "Will it snow?"}


def build_models(root: Path) -> None:
    node = EngineNode(root)
    for name, source in SOURCES.items():
        checkpoint = write_qwen3(root / f"checkpoint-{name}", vocab=VOCAB, context=1024)
        node.add(speak(checkpoint, source), name=name)


@pytest.fixture(scope="module")
def models(build_once: BuildOnce) -> Path:
    return build_once("said-calls-models", build_models)


@pytest.fixture(scope="module")
def node(models: Path) -> Iterator[Node]:
    with standing_on(models, "cache_bytes = 67108864\n") as made:
        yield made


@pytest.mark.parametrize("model", SOURCES)
def test_a_forced_call_goes_back_into_the_prompt_as_its_model_writes_it(
    node: Node, models: Path, model: str
) -> None:
    with openai.OpenAI(base_url=node.base_url, api_key=node.secret, max_retries=0) as client:
        parts = client.chat.completions.create(
            model=model,
            messages=[ASKED],
            tools=TOOLS,
            tool_choice={"type": "function", "function": {"name": "forecast"}},
            parallel_tool_calls=False,
            max_tokens=200,
            temperature=0,
            stream=True,
        )
        deltas = [delta for part in parts for delta in part.choices[0].delta.tool_calls or ()]
    assert len(deltas) > 3
    text = "".join(d.function.arguments or "" for d in deltas if d.function is not None)
    call = {"id": deltas[0].id, "type": "function"}
    call["function"] = {"name": "forecast", "arguments": text}  # type: ignore[assignment]
    messages: list[Any] = [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "Yes."},
    ]
    body = {"model": model, "messages": messages, "tools": TOOLS}
    ids = node.request("POST", "/tokenize", body).json["tokens"]
    tokenizer = Tokenizer.from_file(str(models / f"checkpoint-{model}/tokenizer.json"))
    prompt = tokenizer.decode(ids, skip_special_tokens=False)
    found = json.loads(text)
    exact = str(found["exact"]) if model == "lfm2" else json.dumps(found["exact"])
    assert WRITTEN[model].format(**{**found, "exact": exact}) in prompt
    tag = "<|tool_call_start|>" if model == "lfm2" else "<|observation|>"
    assert ids.count(tokenizer.token_to_id(tag)) == 1
