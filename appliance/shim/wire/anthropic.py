"""The requests of Anthropic's /v1/messages and /v1/messages/count_tokens.

Refuses what no model here understands (server tools, tools to be loaded later) by its type.
`cache_control` is taken everywhere and changes nothing: the prefix cache needs no marks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire.anthropic_blocks import (
    CacheControl,
    Shown,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    part,
    parts,
)
from appliance.shim.wire.anthropic_choice import Choice, OutputConfig, choose, parallel
from appliance.shim.wire.anthropic_thinking import (
    ContextManagement,
    Thinking,
    mode,
    reasoning_of,
)
from appliance.shim.wire.messages import tool_to_engine
from appliance.shim.wire.prompt import chat_prompt, chat_request
from appliance.shim.wire.sampling import MAX_STOPS, Count, Share, Stop, TopP

MAX_TOOLS = 128


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


Text = str | Annotated[list[TextBlock], Meta(min_length=1)]


class UserMessage(_Strict, frozen=True, tag_field="role", tag="user"):
    content: str | Annotated[list[Shown | ToolResultBlock], Meta(min_length=1)]


class AssistantMessage(_Strict, frozen=True, tag_field="role", tag="assistant"):
    content: str | Annotated[list[TextBlock | ThinkingBlock | ToolUseBlock], Meta(min_length=1)]

    @property
    def is_prefix(self) -> bool:
        """As a last message: whether it is the beginning of the answer."""
        return isinstance(self.content, str) or isinstance(self.content[-1], TextBlock)


class SystemMessage(_Strict, frozen=True, tag_field="role", tag="system"):
    content: Text


Message = UserMessage | AssistantMessage | SystemMessage


class CustomTool(_Strict, frozen=True):
    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,128}$")]
    input_schema: dict[str, object]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None
    """Input comes as it is generated, whatever is asked for: its pieces make up the same."""
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: bool | None = None
    """Known, and only false: there is no search for tools, so each is in the prompt."""


class Metadata(_Strict, frozen=True):
    user_id: str | None = None


class CountRequest(_Strict, frozen=True):
    """What is counted: the parts of a request that make up its prompt."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    system: Text | None = None
    tools: Annotated[list[CustomTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    context_management: ContextManagement | None = None
    speed: object = None

    def prompt(self) -> pb.ChatPrompt:
        """The prompt in the engine's words. Raises RequestError."""
        last = self.messages[-1]
        chosen = choose(self.tool_choice, self._tools())
        self._form()
        return chat_prompt(
            [*self._system(), *_turns(self.messages)],
            chosen.tools,
            self._thinking(),
            continue_final=isinstance(last, AssistantMessage) and last.is_prefix,
            tool_choice=chosen.choice,
            parallel_tool_calls=parallel(self.tool_choice),
        )

    def _form(self) -> pb.StructuredOutput | None:
        """No part of the prompt; but a count refuses what an answer would."""
        return self.output_config.form() if self.output_config is not None else None

    def _system(self) -> list[pb.ChatMessage]:
        if not self.system:
            return []
        return [pb.ChatMessage(role="system", content=parts(self.system))]

    def _tools(self) -> list[pb.Tool]:
        return [_tool(tool, f"tools[{index}]") for index, tool in enumerate(self.tools or ())]

    def _thinking(self) -> pb.ThinkingMode:
        return mode(self.thinking, self.output_config.effort if self.output_config else None)


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    """A request as parameters.MESSAGES describes it; limited parameters are checked there."""

    max_tokens: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
    stop_sequences: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    temperature: Share | None = None
    top_p: TopP | None = None
    top_k: Count | None = None
    service_tier: object = None
    metadata: Metadata | None = None

    def to_engine(self, request_id: str, cache_namespace: str) -> pb.GenerateRequest:
        """This request in the engine's words. Raises RequestError."""
        prompt = self.prompt()
        return chat_request(
            request_id=request_id,
            model=self.model,
            messages=prompt.messages,
            tools=prompt.tools,
            thinking=prompt.thinking,
            continue_final=prompt.continue_final_message,
            tool_choice=(prompt.tool_choice, prompt.tool_choice_name),
            parallel_tool_calls=parallel(self.tool_choice),
            structured=self._form(),
            sampling=pb.SamplingParams(
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                stop=self.stop_sequences,
            ),
            cache_namespace=cache_namespace,
        )


def _tool(tool: CustomTool, at: str) -> pb.Tool:
    if tool.defer_loading:
        raise RequestError(
            f"`{at}.defer_loading` is not supported here: there is no search for tools",
            param=f"{at}.defer_loading",
            hint="leave it out, and send the tools that the model is to know",
            code="unsupported_parameter",
        )
    return tool_to_engine(tool.name, tool.description, tool.input_schema, strict=bool(tool.strict))


def _turns(messages: Iterable[Message]) -> Iterator[pb.ChatMessage]:
    for index, message in enumerate(messages):
        if isinstance(message, UserMessage):
            yield from _user(message, f"messages[{index}].content")
        elif isinstance(message, AssistantMessage):
            yield _assistant(message, f"messages[{index}].content")
        else:
            yield pb.ChatMessage(role="system", content=parts(message.content))


def _user(message: UserMessage, at: str) -> list[pb.ChatMessage]:
    """Results of tools are turns of their own; what stands beside them is the user's."""
    if isinstance(message.content, str):
        return [pb.ChatMessage(role="user", content=parts(message.content))]
    turns: list[pb.ChatMessage] = []
    for index, block in enumerate(message.content):
        if isinstance(block, ToolResultBlock):
            turns.append(_result(block, f"{at}[{index}].content"))
            continue
        if not (turns and turns[-1].role == "user"):
            turns.append(pb.ChatMessage(role="user"))
        turns[-1].content.append(part(block, f"{at}[{index}]"))
    return turns


def _result(block: ToolResultBlock, at: str) -> pb.ChatMessage:
    content = parts(block.content or "", at)
    if block.is_error:
        # Templates have no field for it, and a failure must not read like a result.
        content.insert(0, pb.ContentPart(text="Error: "))
    return pb.ChatMessage(role="tool", tool_call_id=block.tool_use_id, content=content)


def _assistant(message: AssistantMessage, at: str) -> pb.ChatMessage:
    turn = pb.ChatMessage(role="assistant")
    if isinstance(message.content, str):
        turn.content.extend(parts(message.content))
        return turn
    for index, block in enumerate(message.content):
        if isinstance(block, TextBlock):
            turn.content.add(text=block.text)
        elif isinstance(block, ThinkingBlock):
            turn.reasoning += reasoning_of(block.thinking, block.signature, f"{at}[{index}]")
        else:
            arguments = msgspec.json.encode(block.input).decode()
            turn.tool_calls.add(id=block.id, name=block.name, arguments_json=arguments)
    return turn
