"""A conversation as the engine takes it, whatever API it came in.

Owns the one place where a chat prompt becomes a request to the engine: chat, responses and
messages differ in their words and agree in this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire import images

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
FREE_CHOICE = (pb.TOOL_CHOICE_AUTO, "")
_NO_THINKING = frozenset({"none", "minimal"})
_DEGREES = {"low": pb.THINKING_MODE_LOW, "medium": pb.THINKING_MODE_MEDIUM}


def chat_request(
    *,
    request_id: str,
    model: str,
    messages: Sequence[pb.ChatMessage],
    tools: Sequence[pb.Tool],
    thinking: pb.ThinkingMode,
    sampling: pb.SamplingParams,
    cache_namespace: str,
    continue_final: bool = False,
    n: int = 1,
    tool_choice: tuple[pb.ToolChoice, str] = FREE_CHOICE,
    parallel_tool_calls: bool | None = None,
    structured: pb.StructuredOutput | None = None,
    prediction: str = "",
) -> pb.GenerateRequest:
    """The request for `n` answers.

    `continue_final`: go on from the last assistant message; `tool_choice`: which, and the name of
    the one function; `structured`: what the answer is held to; `prediction`: what it is expected
    to repeat.
    """
    return pb.GenerateRequest(
        request_id=request_id,
        model=model,
        chat=chat_prompt(
            messages,
            tools,
            thinking,
            continue_final=continue_final,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
        ),
        sampling=sampling,
        n=n,
        cache_namespace=cache_namespace,
        structured=structured,
        prediction=prediction,
    )


def chat_prompt(
    messages: Sequence[pb.ChatMessage],
    tools: Sequence[pb.Tool],
    thinking: pb.ThinkingMode,
    *,
    continue_final: bool,
    tool_choice: tuple[pb.ToolChoice, str] = FREE_CHOICE,
    parallel_tool_calls: bool | None = None,
) -> pb.ChatPrompt:
    """The prompt alone, to be generated from or only counted.

    Raises RequestError if its images are too large.
    """
    images.check_total(messages)
    return pb.ChatPrompt(
        messages=messages,
        tools=tools,
        thinking=thinking,
        continue_final_message=continue_final,
        tool_choice=tool_choice[0],
        tool_choice_name=tool_choice[1],
        parallel_tool_calls=parallel_tool_calls,
    )


def thinks(effort: Effort) -> bool:
    """Whether `effort` asks for any reasoning."""
    return effort not in _NO_THINKING


def effort_mode(effort: Effort) -> pb.ThinkingMode:
    """`effort` in the engine's words, which know three degrees."""
    if not thinks(effort):
        return pb.THINKING_MODE_OFF
    return _DEGREES.get(effort, pb.THINKING_MODE_HIGH)


def thinking_mode(asked: bool | None) -> pb.ThinkingMode:
    """`asked` in the engine's words; None leaves it to the bundle."""
    if asked is None:
        return pb.THINKING_MODE_DEFAULT
    return pb.THINKING_MODE_ON if asked else pb.THINKING_MODE_OFF
