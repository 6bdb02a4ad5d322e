"""GLM-4.5 and 4.7 behind the endpoint: calls that are forced, streamed and sent back; reasoning.

The tags of the first are special tokens here, those of the second are not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from appliance.prompting.formats import FORMATS
from tests.checkpoint.families.glm4_moe import GLM4_MOE
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

MODELS = ("glm", "glm_v47")
TOOLS = forecast(unit=UNIT, days=DAYS, exact=EXACT)
SILENT: Any = {"chat_template_kwargs": {"enable_thinking": False}}


def build_models(root: Path) -> None:
    node = EngineNode(root)
    for name in MODELS:
        checkpoint = draw_speaking(root, name, GLM4_MOE, name)
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


node = served("glm-models", build_models, SMALL_CACHE)


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
    node: Node, client: openai.OpenAI, model: str
) -> None:
    call = called(client, model)
    arguments = json.loads(call["function"]["arguments"])
    assert call["function"]["name"] == "forecast"
    assert list(arguments) == ["unit", "days", "exact"]
    assert (arguments["unit"] in "CF", type(arguments["days"])) == (True, int)
    messages = sent_back(call)
    body = {"model": model, "messages": messages, "tools": TOOLS, **SILENT}
    ids = node.request("POST", "/tokenize", body).json["tokens"]
    text = tokenizer_of(node, model).decode(ids, skip_special_tokens=False)
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
