"""/v1/chat/completions on the wire: the request, the answer, the chunk."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.exchange import Tier
from appliance.shim.service_tier import Asked
from appliance.shim.wire.messages import (
    Assistant,
    Content,
    Message,
    Tool,
    to_engine,
    tools_to_engine,
)
from appliance.shim.wire.prompt import (
    Effort,
    chat_request,
    effort_mode,
    thinking_mode,
    thinks,
)
from appliance.shim.wire.sampling import Sampling
from appliance.shim.wire.structured import ResponseFormat, ToolChoice, choose, structured
from appliance.shim.wire.usage import Usage

MAX_TOOLS = 128
Tokens = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]


class TemplateKwargs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enable_thinking: bool | None = None


class Prediction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the answer is expected to be, or to repeat."""

    type: Literal["content"]
    content: Content

    @property
    def text(self) -> str:
        """The whole of it."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(Sampling, frozen=True):
    """A request as parameters.CHAT describes it; limited parameters are checked there."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    prediction: Prediction | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    modalities: object = None
    service_tier: Asked | None = None
    store: object = None
    verbosity: object = None
    prompt_cache_retention: object = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None

    def check(self) -> None:
        super().check()
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise _contradiction("max_tokens", "max_completion_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(
                "`top_logprobs` needs `logprobs`", param="top_logprobs", code="invalid_value"
            )
        self._check_continuation()

    def to_engine(self, request_id: str, cache_namespace: str) -> pb.GenerateRequest:
        """This request in the engine's words. Raises RequestError."""
        self.check()
        chosen = choose(self.tool_choice, tools_to_engine(self.tools or ()))
        top = (self.top_logprobs or 0) if self.logprobs else None
        return chat_request(
            request_id=request_id,
            model=self.model,
            messages=to_engine(self.messages),
            tools=chosen.tools,
            thinking=self._thinking(),
            continue_final=bool(self.continue_final_message),
            tool_choice=chosen.choice,
            parallel_tool_calls=self.parallel_tool_calls,
            sampling=self.params(
                max_tokens=self.max_completion_tokens or self.max_tokens, logprobs=top
            ),
            n=self.n or 1,
            cache_namespace=cache_namespace,
            structured=structured(self.response_format),
            prediction=self.prediction.text if self.prediction is not None else "",
        )

    def _thinking(self) -> pb.ThinkingMode:
        asked = self.chat_template_kwargs.enable_thinking if self.chat_template_kwargs else None
        if self.reasoning_effort is not None:
            if asked is not None and asked != thinks(self.reasoning_effort):
                raise _contradiction("chat_template_kwargs.enable_thinking", "reasoning_effort")
            return effort_mode(self.reasoning_effort)
        return thinking_mode(asked)

    def _check_continuation(self) -> None:
        goes_on = bool(self.continue_final_message)
        if self.add_generation_prompt is not None and self.add_generation_prompt == goes_on:
            raise _contradiction("add_generation_prompt", "continue_final_message")
        if goes_on and not isinstance(self.messages[-1], Assistant):
            raise RequestError(
                "there is no final assistant message to go on from",
                param="continue_final_message",
                code="invalid_value",
            )


def _contradiction(one: str, other: str) -> RequestError:
    return RequestError(f"`{one}` contradicts `{other}`", param=one, code="invalid_value")


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class FunctionOut(msgspec.Struct):
    name: str
    arguments: str


class ToolCallOut(msgspec.Struct):
    id: str
    function: FunctionOut
    type: Literal["function"] = "function"


class MessageOut(msgspec.Struct):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallOut] | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: MessageOut
    logprobs: Logprobs | None
    finish_reason: str


class ChatCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    service_tier: Tier = "default"
    object: Literal["chat.completion"] = "chat.completion"


class FunctionDelta(msgspec.Struct):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct):
    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Delta(msgspec.Struct):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    service_tier: Tier | UnsetType = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
