"""GLM-4.5 and 4.7 behind the endpoint: calls that are forced, streamed and sent back; reasoning.

The tags of the first are special tokens here, those of the second are not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tokenizers import Tokenizer

from appliance.prompting.formats import FORMATS
from tests.checkpoint.drawn import draw_checkpoint
from tests.checkpoint.families.glm4_moe import GLM4_MOE
from tests.conftest import BuildOnce
from tests.fakes.chat_formats import TEMPLATES, VOCAB, speak
from tests.fakes.engine_node import EngineNode
from tests.shim.node import Node
from tests.shim.real_node import standing_on

MODELS = ("glm", "glm_v47")
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
SILENT: Any = {"chat_template_kwargs": {"enable_thinking": False}}


def build_models(root: Path) -> None:
    node = EngineNode(root)
    for name in MODELS:
        checkpoint = draw_checkpoint(root / f"checkpoint-{name}", GLM4_MOE | {"vocab_size": VOCAB})
        speak(checkpoint, TEMPLATES[name])  # type: ignore[index]
        if name == "glm_v47":
            make_plain(checkpoint / "tokenizer.json")
        node.add(checkpoint, name=name)


def make_plain(tokenizer: Path) -> None:
    """Make the format's tags tokens that are not special, as publishers may have them."""
    document = json.loads(tokenizer.read_text())
    tags = FORMATS["glm_v47"].tags
    for token in document["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in tags
    tokenizer.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def models(build_once: BuildOnce) -> Path:
    return build_once("glm-models", build_models)


@pytest.fixture(scope="module")
def node(models: Path) -> Iterator[Node]:
    with standing_on(models, "cache_bytes = 67108864\n") as made:
        yield made


@pytest.fixture
def client(node: Node) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=node.base_url, api_key=node.secret, max_retries=0) as made:
        yield made


def called(client: openai.OpenAI, model: str) -> Any:
    """The one call that the model is made to stream."""
    parts = client.chat.completions.create(
        model=model,
        messages=[ASKED],
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
        temperature=0,
        stream=True,
        extra_body=SILENT,
    )
    call: dict[str, Any] = {"type": "function", "function": {"name": "", "arguments": ""}}
    pieces = 0
    for part in parts:
        for delta in part.choices[0].delta.tool_calls or ():
            pieces += 1
            call["id"] = delta.id or call.get("id")
            if delta.function is not None:
                call["function"]["name"] += delta.function.name or ""
                call["function"]["arguments"] += delta.function.arguments or ""
        finish = part.choices[0].finish_reason
    assert (finish, pieces > 3) == ("tool_calls", True)
    return call


@pytest.mark.parametrize("model", MODELS)
def test_a_forced_call_is_streamed_and_goes_back_into_the_prompt_as_it_was_written(
    node: Node, models: Path, client: openai.OpenAI, model: str
) -> None:
    call = called(client, model)
    arguments = json.loads(call["function"]["arguments"])
    assert call["function"]["name"] == "forecast"
    assert list(arguments) == ["unit", "days", "exact"]
    assert (arguments["unit"] in "CF", type(arguments["days"])) == (True, int)
    messages: list[Any] = [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "Yes."},
    ]
    body = {"model": model, "messages": messages, "tools": TOOLS, **SILENT}
    ids = node.request("POST", "/tokenize", body).json["tokens"]
    tokenizer = Tokenizer.from_file(str(models / f"checkpoint-{model}/tokenizer.json"))
    text = tokenizer.decode(ids, skip_special_tokens=False)
    line = "\n" if model == "glm" else ""
    written = f"<arg_key>unit</arg_key>{line}<arg_value>{arguments['unit']}</arg_value>{line}"
    assert f"<tool_call>forecast{line}{written}" in text
    answer = client.chat.completions.create(
        model=model,
        messages=messages,
        tools=TOOLS,
        max_tokens=4,
        extra_body={**SILENT, "ignore_eos": True},
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)


@pytest.mark.parametrize("model", MODELS)
def test_reasoning_can_be_switched_and_comes_before_a_forced_call(
    client: openai.OpenAI, model: str
) -> None:
    def asked(thinking: bool) -> Any:
        answer = client.chat.completions.create(
            model=model,
            messages=[ASKED],
            tools=TOOLS,
            tool_choice="required",
            max_tokens=400,
            seed=3,
            extra_body={"chat_template_kwargs": {"enable_thinking": thinking}},
        )
        return answer.choices[0]

    assert getattr(asked(False).message, "reasoning_content", None) is None
    assert asked(False).message.tool_calls[0].function.name == "forecast"
    thought = asked(True)
    assert thought.message.reasoning_content
    assert thought.message.content in (None, "")
