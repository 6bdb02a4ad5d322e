"""Templates as their publishers wrote them: equal to the reference implementation, and read back.

The templates are fetched by `scripts/fetch-templates`; where they are not, these tests are
skipped, and those with templates of our own still run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from appliance.bundle.specs import ToolFormat
from appliance.errors import RequestError
from appliance.prompting import ChatTemplate, Conversation, Message
from appliance.prompting.conversation import switches
from appliance.prompting.first_system import Place, placed
from appliance.prompting.marks import ControlTokens
from installer.checkpoint.tool_format import speaks_harmony, tool_format
from tests.conftest import BUILD_CACHE
from tests.fakes.chat_formats import CONTROLS, SAID, TEMPLATES
from tests.prompting.conversations import CONVERSATIONS
from tests.prompting.turns import TURNS, observed, read_turn, saying

FETCHED = BUILD_CACHE / "templates"
PUBLISHED: dict[str, ToolFormat] = {
    "meta-llama-Llama-3.1-8B-Instruct": "llama",
    "meta-llama-Llama-3.2-3B-Instruct": "llama",
    "meta-llama-Llama-3.3-70B-Instruct": "llama",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "Qwen3-Coder": "qwen_coder",
    "GLM-4.6": "glm",
    "GLM-4.7-Flash": "glm_v47",
    "tencent-Hy3": "hy3",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "deepseek",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek",
    "deepseek-ai-DeepSeek-V3.1": "deepseek_v31",
    "MiniMax-M2": "minimax",
    "MiniMax-M3": "minimax_m3",
    "openai-gpt-oss-120b": "harmony",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral_v11",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral_v13",
    "unsloth-mistral-Devstral-Small-2507": "mistral_v13",
    "ibm-granite-granite-4.0": "hermes",
    "ibm-granite-granite-4.1": "hermes",
    "ibm-granite-granite-3.3-2B-Instruct": "granite",
    "moonshotai-Kimi-K2": "kimi_k2",
    "LFM2-8B-A1B": "lfm2",
    "LFM2.5-8B-A1B": "lfm2",
    "LFM2.5-Instruct": "lfm2",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "qwen_coder",
    "NVIDIA-Nemotron-Nano-v2": "",
    "HuggingFaceTB-SmolLM3-3B": "",
    "Apertus-8B-Instruct": "apertus",
    "ByteDance-Seed-OSS": "seed_oss",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "cohere",
    "Cohere2MoE": "cohere",
    "microsoft-Phi-3.5-mini-instruct": "",
    "google-gemma-2-2b-it": "",
    "google-gemma-4-31B-it": "gemma4",
    "google-gemma-4-31B-it-interleaved": "gemma4",
}
SYSTEM_BEFORE: dict[str, Place] = {
    "mistralai-Mistral-Nemo-Instruct-2407": "last",
    "google-gemma-2-2b-it": "first",
}
"""They do not show a system's words themselves: before which user's turn these are said."""
SISTERS = {
    "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "Qwen-QwQ-32B",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "LFM2.5-Instruct",
}
"""Much like another one: left to the long sweep."""
SHOWS_NO_TOOLS = {name for name in PUBLISHED if name.startswith("deepseek-ai")}
"""They write calls, and leave it to their callers to tell the model of the tools."""
JOINS_ARGUMENTS = {"deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "MiniMax-M3"}
"""One joins arguments to its text as if they were text, and so fails on a call, here and there; the
other leaves null and empty lists in lists out."""
SAYS_CALLS = {
    *(f"own-{name}" for name in SAID),
    *("ibm-granite-granite-3.3-2B-Instruct", "LFM2-8B-A1B", "LFM2.5-Instruct"),
}
"""They show of a call what its turn says."""
SOURCES = [f"own-{name}" for name in TEMPLATES] + list(PUBLISHED)


def source_of(name: str) -> str:
    own = TEMPLATES.get(name.removeprefix("own-"))  # type: ignore[call-overload]
    if own is not None:
        return str(own)
    path = FETCHED / f"{name}.jinja"
    if not path.exists():
        pytest.skip("scripts/fetch-templates has not been run")
    return path.read_text("utf-8")


def format_of(name: str) -> ToolFormat:
    return PUBLISHED[name] if name in PUBLISHED else name.removeprefix("own-")  # type: ignore[return-value]


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] if n in SISTERS else []) for n in SOURCES],
)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    source_of(chosen)
    return chosen


@pytest.fixture(scope="module")
def template(name: str) -> Iterator[ChatTemplate]:
    control = ControlTokens(CONTROLS)
    subject = ChatTemplate(source_of(name), bos_token="<s>", eos_token="</s>", control=control)
    yield subject
    subject.close()


def reference(source: str, conversation: Conversation) -> str | None:
    """The prompt as transformers renders it; None if the template refuses the conversation."""
    tools: list[Any] | None = conversation.template_tools()
    effort: dict[str, Any] = {}
    if conversation.effort:
        effort = dict.fromkeys(("reasoning_effort", "reasoning_strength"), conversation.effort)
    try:
        rendered = render_jinja_template(
            conversations=[conversation.template_messages()],
            tools=tools,
            chat_template=source,
            add_generation_prompt=not conversation.continue_final,
            continue_final_message=conversation.continue_final,
            **switches(thinking=conversation.thinking),
            bos_token="<s>",
            eos_token="</s>",
            **effort,
        )
    except (jinja2.TemplateError, TypeError, ValueError):
        return None
    text: str = rendered[0][0]
    return text


def ours(template: ChatTemplate, conversation: Conversation) -> str | None:
    try:
        prompt = template.render(conversation)
    except RequestError:
        return None
    return prompt.text.replace(prompt.mark, "") if prompt.mark else prompt.text


def test_thirty_prompts_equal_the_reference_implementation(
    name: str, template: ChatTemplate
) -> None:
    source, rendered = source_of(name), 0
    for shape, conversation in CONVERSATIONS.items():
        text = ours(template, conversation)
        if conversation.messages[0].role == "system":
            moved = placed(conversation.messages, SYSTEM_BEFORE.get(name, ""))
            conversation = replace(conversation, messages=moved)
        before = reference(source, conversation)
        # A template may name the day, and a day may end in between.
        assert text in (before, reference(source, conversation)), shape
        rendered += text is not None
    # Those without tools refuse the conversations that have them; the others refuse few.
    assert rendered >= (20 if format_of(name) else 8)


def test_the_format_is_observed(name: str) -> None:
    def has_tokens(tokens: tuple[str, ...]) -> bool:
        return all(token in CONTROLS for token in tokens)

    shown, written = observed(source_of(name))
    if speaks_harmony(source_of(name), has_tokens):
        assert format_of(name) == "harmony"
    else:
        expected = "" if name in SHOWS_NO_TOOLS else format_of(name)
        said = partial(saying, source_of(name))
        assert tool_format(shown, written, has_tokens, said) == expected
        # Without the tokens, no model was trained on it; Llama's formats have none of their own.
        without = tool_format(shown, written, lambda tokens: not tokens, said)
        assert without in ("", "llama", "pythonic")


@pytest.mark.parametrize("turn", TURNS)
def test_the_turn_that_a_template_writes_is_read_back(name: str, turn: str) -> None:
    """A conversation with calls is rendered, the assistant's turn cut out and parsed."""
    written, message = format_of(name), TURNS[turn]
    if (
        name in JOINS_ARGUMENTS
        or not written
        or (len(message.tool_calls) > 1 and written in ("llama", "harmony"))
    ):
        return  # these write one call at most
    read_turn(source_of(name), written, message, says=name in SAYS_CALLS)


def test_a_typed_control_token_stays_text_in_every_format(
    name: str, template: ChatTemplate
) -> None:
    """Of all that a user types, nothing becomes a token that the template did not write."""
    control = ControlTokens(CONTROLS)
    plain, typed = (
        template.render(Conversation((Message("user", text),)))
        for text in ("typed", "typed " + " ".join(CONTROLS))
    )
    tokens = [
        [token for _, token in control.split(prompt.text, prompt.mark or "\U000f0000") if token]
        for prompt in (plain, typed)
    ]
    assert tokens[0] == tokens[1]
    whole = "".join(text for text, _ in control.split(typed.text, typed.mark))
    assert all(token in whole for token in CONTROLS)
