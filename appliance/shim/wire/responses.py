"""The request of /v1/responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire.messages import tool_to_engine
from appliance.shim.wire.prompt import Effort, chat_request, thinking_mode, thinks
from appliance.shim.wire.response_items import GivenMessage, Item, to_engine
from appliance.shim.wire.sampling import Penalty, Share

MAX_TOOLS = 128
MAX_ITEMS = 4096
LOGPROBS = "message.output_text.logprobs"
_INCLUDED = frozenset({LOGPROBS, "reasoning.encrypted_content"})
"""Nothing is encrypted, so there is nothing to include for the second."""


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class FunctionTool(_Strict, frozen=True, tag_field="type", tag="function"):
    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class ReasoningOptions(_Strict, frozen=True):
    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    """There is no summariser: `auto` gets what there is, the reasoning itself."""


class TextOptions(_Strict, frozen=True):
    format: object = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(_Strict, frozen=True):
    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(_Strict, frozen=True):
    """A request as parameters.RESPONSES describes it; limited parameters are checked there."""

    model: str
    input: str | Annotated[list[Item], Meta(min_length=1, max_length=MAX_ITEMS)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: object = None
    parallel_tool_calls: object = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    truncation: object = None
    service_tier: object = None
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

    @property
    def items(self) -> list[Item]:
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
        if self.text is not None and self.text.format not in (None, {"type": "text"}):
            raise _unsupported("text.format", 'only `{"type": "text"}`')
        for index, name in enumerate(self.include or ()):
            if name not in _INCLUDED:
                raise _unsupported(f"include[{index}]", f"there is no {name!r}")
        for index, tool in enumerate(self.tools or ()):
            if tool.strict:
                raise _unsupported(f"tools[{index}].strict", "only false")
        if self.background and self.stream:
            raise _unsupported("stream", "not together with `background`")

    def to_engine(
        self, request_id: str, cache_namespace: str, earlier: Sequence[Item]
    ) -> pb.GenerateRequest:
        """This request behind the `earlier` items, in the engine's words. Raises RequestError."""
        self.check()
        tools = self.tools if self.tools and self.tool_choice != "none" else ()
        effort = self.reasoning.effort if self.reasoning is not None else None
        return chat_request(
            request_id=request_id,
            model=self.model,
            messages=[*self._instructions(), *to_engine([*earlier, *self.items])],
            tools=[tool_to_engine(t.name, t.description, t.parameters) for t in tools],
            thinking=thinking_mode(None if effort is None else thinks(effort)),
            sampling=pb.SamplingParams(
                max_tokens=self.max_output_tokens or 0,
                temperature=self.temperature,
                top_p=self.top_p,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                logprobs=self.logprobs,
            ),
            cache_namespace=cache_namespace,
        )

    def _instructions(self) -> list[pb.ChatMessage]:
        if not self.instructions:
            return []
        part = pb.ContentPart(text=self.instructions)
        return [pb.ChatMessage(role="system", content=[part])]


def name_messages(body: object) -> None:
    """Give the input's messages the `type` that callers may leave out."""
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
