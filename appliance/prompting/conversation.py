"""A conversation as the engine receives it, and as chat templates expect to see it.

The shapes that templates read were set by the transformers library's `apply_chat_template`;
every published template is written against them.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from typing import Literal

from appliance.errors import RequestError

ROLES = ("system", "user", "assistant", "tool")
_JOINED = ("system", "user")
_BETWEEN = "\n\n"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant turn made; `arguments_json` is a JSON object as text."""

    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters_json` is a JSON schema, or empty."""

    name: str
    description: str = ""
    parameters_json: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: str
    content: str = ""
    name: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    parts: tuple[str | None, ...] = ()
    """Texts, and None for each image, if there is one: then templates read these, not `content`."""

    def goes_on_in(self, other: Message) -> bool:
        """Whether both are one voice, so that nothing is lost if they are one message."""
        return self.role in _JOINED and (self.role, self.name) == (other.role, other.name)

    @property
    def text(self) -> str:
        """What it says, without images."""
        return "".join(part or "" for part in self.parts) if self.parts else self.content

    def with_behind(self, other: Message) -> Message:
        """This and `other` as one message, a blank line between them."""
        content = f"{self.content}{_BETWEEN}{other.content}"
        if not self.parts and not other.parts:
            return replace(self, content=content)
        parts = (*(self.parts or (self.content,)), _BETWEEN, *(other.parts or (other.content,)))
        return replace(self, content=content, parts=parts)


_ANOTHER = Message("user", "XANOTHERX")
"""A turn that begins like nobody's."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, tools, and how the next turn is to be opened.

    Attributes:
        thinking: whether the model is asked to reason in tags before it answers.
        effort: how much, in the words of templates that know degrees; empty: theirs to say.
        continue_final: the last message is the beginning of the answer.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    thinking: bool = False
    effort: Literal["", "low", "medium", "high"] = ""
    continue_final: bool = False

    def check(self) -> None:
        """Raise RequestError, naming the parameter, if no template could render this."""
        if not self.messages:
            raise RequestError("there are no messages", param="messages")
        for index, message in enumerate(self.messages):
            if message.role not in ROLES:
                raise RequestError(
                    f"{message.role!r} is not a role",
                    param=f"messages[{index}].role",
                    hint=f"roles are {', '.join(ROLES)}",
                )
        if self.continue_final and self.messages[-1].role != "assistant":
            raise RequestError(
                "only an assistant message can be continued",
                param=f"messages[{len(self.messages) - 1}].role",
                hint="end the messages with the beginning of the assistant's answer",
            )

    def joined(self) -> Conversation:
        """The same with neighbours of one role, system or user, as one message."""
        messages: list[Message] = []
        for message in self.messages:
            if messages and messages[-1].goes_on_in(message):
                message = messages.pop().with_behind(message)
            messages.append(message)
        return replace(self, messages=tuple(messages))

    def opening(self) -> Conversation | None:
        """What stands before its first turn, with another turn behind it; None: there is nothing.

        Where the prompts of both part, those of all conversations with this beginning do.
        """
        systems = tuple(itertools.takewhile(lambda m: m.role == "system", self.messages))
        if not systems and not self.tools:
            return None
        return replace(self, messages=(*systems, _ANOTHER), continue_final=False)

    def template_messages(self) -> list[dict[str, object]]:
        """The messages as templates read them. Raises RequestError for arguments not in JSON."""
        return [_template_message(index, m) for index, m in enumerate(self.messages)]

    def template_tools(self) -> list[dict[str, object]] | None:
        """The tools as templates read them. Raises RequestError for a schema not in JSON."""
        return [_template_tool(index, t) for index, t in enumerate(self.tools)] or None


def switches(*, thinking: bool) -> dict[str, object]:
    """How templates are told whether to have the model reason: Qwen's word for it, DeepSeek's, and
    MiniMax's, whose model decides for itself unless it is told not to."""
    mode = "adaptive" if thinking else "disabled"
    return {"enable_thinking": thinking, "thinking": thinking, "thinking_mode": mode}


def effort(level: str) -> dict[str, object]:
    """How templates are told how much to reason: gpt-oss's word for it, and Muse's."""
    return {"reasoning_effort": level, "reasoning_strength": level}


def _template_message(index: int, message: Message) -> dict[str, object]:
    shape: dict[str, object] = {}
    if message.reasoning:
        shape["thinking"] = message.reasoning  # the name that gpt-oss templates read
    shape |= {"role": message.role, "content": _content(message)}
    if message.name:
        shape["name"] = message.name
    if message.reasoning:
        shape["reasoning_content"] = message.reasoning
    if message.tool_calls:
        at = f"messages[{index}].tool_calls"
        shape["tool_calls"] = [
            _template_call(f"{at}[{i}]", call) for i, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id:
        shape["tool_call_id"] = message.tool_call_id
    return shape


def _content(message: Message) -> str | list[dict[str, str]]:
    if not message.parts:
        return message.content
    return [
        {"type": "image"} if part is None else {"type": "text", "text": part}
        for part in message.parts
    ]


def _template_call(param: str, call: ToolCall) -> dict[str, object]:
    arguments = _object(call.arguments_json, f"{param}.function.arguments")
    return {
        "type": "function",
        "id": call.id,
        "function": {"name": call.name, "arguments": arguments},
    }


def _template_tool(index: int, tool: Tool) -> dict[str, object]:
    function: dict[str, object] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json:
        param = f"tools[{index}].function.parameters"
        function["parameters"] = _object(tool.parameters_json, param)
    return {"type": "function", "function": function}


def _object(text: str, param: str) -> dict[str, object]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise RequestError("this is not valid JSON", param=param) from None
    if not isinstance(value, dict):
        raise RequestError("this is not a JSON object", param=param)
    return value
