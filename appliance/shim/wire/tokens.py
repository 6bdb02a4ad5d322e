"""/tokenize and /detokenize on the wire: an extension, in the shape that vLLM gave it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire.chat import MAX_TOOLS, TemplateKwargs
from appliance.shim.wire.messages import Assistant, Message, Tool, to_engine, tools_to_engine
from appliance.shim.wire.prompt import chat_prompt, thinking_mode
from appliance.shim.wire.sampling import TokenId

_CHAT_ONLY = ("tools", "chat_template_kwargs", "continue_final_message", "add_generation_prompt")


class TokenizeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A text, or a conversation as /v1/chat/completions would render it."""

    model: str
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    def to_engine(self) -> pb.TokenizeRequest:
        """This request in the engine's words. Raises RequestError."""
        if self.messages is None:
            return pb.TokenizeRequest(model=self.model, text=self._text())
        if self.prompt is not None:
            raise RequestError(
                "`prompt` and `messages` exclude each other", param="prompt", code="invalid_value"
            )
        goes_on = bool(self.continue_final_message)
        self._check(self.messages, goes_on=goes_on)
        kwargs = self.chat_template_kwargs
        prompt = chat_prompt(
            to_engine(self.messages),
            tools_to_engine(self.tools or ()),
            thinking_mode(kwargs.enable_thinking if kwargs is not None else None),
            continue_final=goes_on,
        )
        return pb.TokenizeRequest(model=self.model, chat=prompt)

    def _text(self) -> str:
        if self.prompt is None:
            raise RequestError(
                "`prompt` is required",
                param="prompt",
                hint="or give `messages`",
                code="missing_parameter",
            )
        for name in _CHAT_ONLY:
            if getattr(self, name) is not None:
                raise RequestError(f"`{name}` needs `messages`", param=name, code="invalid_value")
        return self.prompt

    def _check(self, messages: list[Message], *, goes_on: bool) -> None:
        if self.add_generation_prompt is not None and self.add_generation_prompt == goes_on:
            raise RequestError(
                "`add_generation_prompt` contradicts `continue_final_message`",
                param="add_generation_prompt",
                code="invalid_value",
            )
        if goes_on and not isinstance(messages[-1], Assistant):
            raise RequestError(
                "there is no final assistant message to go on from",
                param="continue_final_message",
                code="invalid_value",
            )


class TokenizeAnswer(msgspec.Struct, frozen=True):
    count: int
    max_model_len: int
    """Tokens of the model's context."""
    tokens: list[int]


class DetokenizeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    model: str
    tokens: list[TokenId]

    def to_engine(self) -> pb.DetokenizeRequest:
        """This request in the engine's words."""
        return pb.DetokenizeRequest(model=self.model, tokens=pb.TokenIds(ids=self.tokens))


class DetokenizeAnswer(msgspec.Struct, frozen=True):
    prompt: str
