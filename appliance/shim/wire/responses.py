"""The request of /v1/responses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.service_tier import Asked
from appliance.shim.wire.chosen import Chosen, allowed, forced, free, named
from appliance.shim.wire.prompt import Effort, chat_request, effort_mode, thinking_mode
from appliance.shim.wire.response_items import GivenMessage, Item, ItemReference, to_engine
from appliance.shim.wire.response_tools import (
    MAX_TOOLS,
    CallableTool,
    Tool,
    callables,
    refuse_hosted,
)
from appliance.shim.wire.sampling import Penalty, TopP
from appliance.shim.wire.structured import (
    JsonObjectFormat,
    Name,
    TextFormat,
    schema_form,
    structured,
)

MAX_ITEMS = 4096
LOGPROBS = "message.output_text.logprobs"
_INCLUDED = frozenset({LOGPROBS, "reasoning.encrypted_content"})
"""Nothing is encrypted, so there is nothing to include for the second."""


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ReasoningOptions(_Strict, frozen=True):
    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    """There is no summariser: `auto` gets what there is, the reasoning itself."""


class SchemaFormat(_Strict, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that a schema admits, `strict` or not."""

    name: Name
    schema: dict[str, object]
    description: str | None = None
    strict: bool | None = None


class TextOptions(_Strict, frozen=True):
    format: TextFormat | JsonObjectFormat | SchemaFormat | None = None
    verbosity: Literal["medium"] | None = None


class NamedFunction(_Strict, frozen=True, tag_field="type", tag="function"):
    """As a choice: it must be called. In a list: it may be."""

    name: Name


class NamedCustom(_Strict, frozen=True, tag_field="type", tag="custom"):
    """The same of a custom tool."""

    name: Name


class AllowedTools(_Strict, frozen=True, tag_field="type", tag="allowed_tools"):
    """Of the tools only these, for this request."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction | NamedCustom], Meta(min_length=1)]


ToolChoice = Literal["auto", "none", "required"] | NamedFunction | NamedCustom | AllowedTools


class ResponseStreamOptions(_Strict, frozen=True):
    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(_Strict, frozen=True, dict=True):
    """A request as parameters.RESPONSES describes it; limited parameters are checked there."""

    model: str
    input: str | Annotated[list[Item | ItemReference], Meta(min_length=1, max_length=MAX_ITEMS)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    truncation: object = None
    service_tier: Asked | None = None
    prompt_cache_retention: object = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, Meta(max_length=64)],
                Annotated[str, Meta(max_length=512)],
            ],
            Meta(max_length=16),
        ]
        | None
    ) = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    client_metadata: dict[str, str] | None = None

    @property
    def items(self) -> Sequence[Item | ItemReference]:
        """The input; a string is one user message."""
        if isinstance(self.input, str):
            return [GivenMessage(role="user", content=self.input)]
        return self.input

    @property
    def logprobs(self) -> int | None:
        """How many alternatives each token is to have; None: no log probabilities."""
        if self.top_logprobs or LOGPROBS in (self.include or ()):
            return self.top_logprobs or 0
        return None

    def check(self) -> None:
        """Raise RequestError if fields contradict each other or ask for what is not there."""
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "`stream_options` needs `stream`", param="stream_options", code="invalid_value"
            )
        for index, name in enumerate(self.include or ()):
            if name not in _INCLUDED:
                raise _unsupported(f"include[{index}]", f"there is no {name!r}")
        if self.background and self.stream:
            raise _unsupported("stream", "not together with `background`")

    def to_engine(
        self,
        request_id: str,
        cache_namespace: str,
        earlier: Sequence[Item],
        items: Sequence[Item],
    ) -> pb.GenerateRequest:
        """This request, whose items are `items`, behind the `earlier` ones, in the engine's words.

        Raises RequestError.
        """
        self.check()
        chosen = self._chosen()
        effort = self.reasoning.effort if self.reasoning is not None else None
        turns = to_engine([*earlier, *items], earlier=len(earlier))
        return chat_request(
            request_id=request_id,
            model=self.model,
            messages=[*self._instructions(), *turns],
            tools=chosen.tools,
            thinking=thinking_mode(None) if effort is None else effort_mode(effort),
            sampling=pb.SamplingParams(
                max_tokens=self.max_output_tokens or 0,
                temperature=self.temperature,
                top_p=self.top_p,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                logprobs=self.logprobs,
            ),
            cache_namespace=cache_namespace,
            tool_choice=chosen.choice,
            parallel_tool_calls=self.parallel_tool_calls,
            structured=self._form(),
        )

    @cached_property
    def callables(self) -> list[CallableTool]:
        """The tools one by one, found once. Raises RequestError if they cannot be told apart."""
        return callables(self.tools or ())

    def _chosen(self) -> Chosen:
        tools = [one.to_engine() for one in self.callables]
        match self.tool_choice:
            case None | "auto":
                return free(tools)
            case "none":
                return Chosen()
            case "required":
                return forced(tools, "tool_choice")
            case AllowedTools(mode=mode, tools=some):
                names = {f"tool_choice.tools[{i}].name": tool.name for i, tool in enumerate(some)}
                return allowed(tools, names, required=mode == "required")
            case NamedFunction(name=name) | NamedCustom(name=name):
                return named(tools, name, "tool_choice.name")

    def _form(self) -> pb.StructuredOutput | None:
        wanted = self.text.format if self.text is not None else None
        if isinstance(wanted, SchemaFormat):
            return schema_form(wanted.schema)
        return structured(wanted)

    def _instructions(self) -> list[pb.ChatMessage]:
        if not self.instructions:
            return []
        part = pb.ContentPart(text=self.instructions)
        return [pb.ChatMessage(role="system", content=[part])]


def prepare(body: object) -> None:
    """Give the input's messages the `type` that callers may leave out.

    Raises RequestError for a tool that the appliance would have to run itself.
    """
    refuse_hosted(body)
    given = body.get("input") if isinstance(body, dict) else None
    for item in given if isinstance(given, list) else ():
        if isinstance(item, dict) and "role" in item:
            item.setdefault("type", "message")


def _unsupported(param: str, note: str) -> RequestError:
    return RequestError(
        f"`{param}` is not supported here: {note}",
        param=param,
        hint="leave the parameter out",
        code="unsupported_parameter",
    )
