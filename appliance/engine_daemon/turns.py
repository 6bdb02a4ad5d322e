"""What a request asks of the model's turn: the form of the answer, and which functions it calls.

Owns the meaning of `structured`, `tool_choice`, `parallel_tool_calls` and `strict`. Refuses what
contradicts itself, naming the parameter; what a grammar cannot express is refused where it is
compiled.
"""

from __future__ import annotations

from typing import Literal

from appliance.bundle.specs import Prompting
from appliance.engine.grammar.tagged import CallableTool
from appliance.engine.grammar.turn import Structured, Turn
from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb


def turn(
    request: pb.GenerateRequest, prompting: Prompting, *, thinking: bool, reasoning_opened: bool
) -> Turn:
    """The turn that `request` asks for. Raises RequestError.

    thinking: whether the model is asked to reason, the bundle's default included.
    reasoning_opened: whether the prompt ends inside of its reasoning.
    """
    reasoning: Literal["none", "opened", "unopened"] = "none"
    if reasoning_opened:
        reasoning = "opened"
    elif thinking and prompting.reasoning_start:
        reasoning = "unopened"
    chat = request.chat
    asked = Turn(
        _structured(request),
        _callable(chat),
        _calls(chat),
        _parallel(chat),
        reasoning,
    )
    if asked.constrains and chat.continue_final_message:
        raise RequestError(
            "what a message goes on with cannot be held to a form",
            param="continue_final_message",
            hint="leave it out, or the response format and the tool choice",
        )
    return asked


def _structured(request: pb.GenerateRequest) -> Structured | None:
    kind = request.structured.WhichOneof("kind")
    if kind is None:
        return None
    if kind == "json_object":
        if not request.structured.json_object:
            raise RequestError("json_object must be true", param="structured.json_object")
        return Structured(kind)
    return Structured(kind, getattr(request.structured, kind))


def _callable(chat: pb.ChatPrompt) -> tuple[CallableTool, ...]:
    """The tools that may be called; those that must be called have valid arguments always."""
    if chat.tool_choice == pb.TOOL_CHOICE_NONE:
        return ()
    forced = chat.tool_choice in (pb.TOOL_CHOICE_REQUIRED, pb.TOOL_CHOICE_NAMED)
    if forced and not chat.tools:
        raise RequestError("there are no tools to call", param="tool_choice", hint="give `tools`")
    tools = tuple(
        CallableTool(index, tool.name, tool.parameters_json, tool.strict or forced)
        for index, tool in enumerate(chat.tools)
    )
    if chat.tool_choice != pb.TOOL_CHOICE_NAMED:
        return tools
    named = tuple(tool for tool in tools if tool.name == chat.tool_choice_name)
    if not named:
        raise RequestError(
            f"there is no tool named {chat.tool_choice_name!r}",
            param="tool_choice",
            hint="name one of `tools`",
        )
    return named[:1]


def _calls(chat: pb.ChatPrompt) -> Literal["none", "optional", "required"]:
    if not chat.tools or chat.tool_choice == pb.TOOL_CHOICE_NONE:
        return "none"
    return "optional" if chat.tool_choice == pb.TOOL_CHOICE_AUTO else "required"


def _parallel(chat: pb.ChatPrompt) -> bool:
    if chat.HasField("parallel_tool_calls"):
        return chat.parallel_tool_calls
    return chat.tool_choice != pb.TOOL_CHOICE_NAMED
