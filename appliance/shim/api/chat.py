"""/v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET
from starlette.types import Receive, Scope, Send

from appliance.audit.event import clip
from appliance.errors import ApplianceError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.answer import send_answer
from appliance.shim.body import read_body
from appliance.shim.event_stream import CHUNKS
from appliance.shim.exchange import exchange_of
from appliance.shim.generation import FINISH_REASONS, Generation, admitted
from appliance.shim.refusals import refusal
from appliance.shim.renamed import renamed
from appliance.shim.service_tier import serve_as
from appliance.shim.services import Services
from appliance.shim.wire import chat as wire
from appliance.shim.wire.chosen import places
from appliance.shim.wire.decode import decode
from appliance.shim.wire.parameters import CHAT
from appliance.shim.wire.structured import in_the_callers_words
from appliance.shim.wire.usage import Usage

_DECODER = msgspec.json.Decoder(wire.ChatRequest)


class ChatEndpoint:
    """POST /v1/chat/completions."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        request = decode(scope, await read_body(receive), _DECODER, CHAT)
        exchange.model = clip(request.model)
        serve_as(exchange, request.service_tier)
        engine_request = request.to_engine(exchange.request_id, exchange.cache_namespace)
        given = [tool.function.name for tool in request.tools or ()]
        kept = places(given, engine_request.chat.tools)
        with (
            renamed("thinking", "reasoning_effort"),
            in_the_callers_words(
                "response_format.json_schema.schema",
                lambda tool, inside: f"tools[{tool}].function.parameters{inside}",
                kept,
            ),
        ):
            async with admitted(self._services, exchange, receive, [engine_request]) as generation:
                await send_answer(
                    generation,
                    ChatShape(generation, request),
                    send,
                    stream=bool(request.stream),
                    keepalive_seconds=self._services.settings.keepalive_seconds,
                )


@dataclass(slots=True)
class _Choice:
    """What a choice has said so far."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, wire.ToolCallOut] = field(default_factory=dict)
    logprobs: list[wire.TokenLogprob] = field(default_factory=list)
    finish_reason: str = ""


class ChatShape:
    """A generation as chat.completion or chat.completion.chunk objects."""

    framing = CHUNKS

    def __init__(self, generation: Generation, request: wire.ChatRequest) -> None:
        self._generation = generation
        self._request = request
        self._tier = generation.exchange.tier
        self._id = f"chatcmpl-{generation.exchange.request_id.removeprefix('req_')}"
        self._choices = [_Choice() for _ in range(generation.choices)]

    def first(self) -> Sequence[msgspec.Struct]:
        """The role of each choice, once, in order: the SDKs concatenate what repeats."""
        opening = wire.Delta(role="assistant", content="")
        return [
            self._chunk(wire.ChunkChoice(index, opening)) for index in range(len(self._choices))
        ]

    def delta(self, choice: int, delta: pb.Delta) -> Sequence[msgspec.Struct]:
        text, reasoning, calls = delta.text, delta.reasoning, delta.tool_calls
        logprobs = self._logprobs(delta)
        if not (text or reasoning or calls or logprobs):
            return ()
        said = wire.Delta(
            content=text or UNSET,
            reasoning_content=reasoning or UNSET,
            tool_calls=[_call_delta(call) for call in calls] if calls else UNSET,
        )
        return [self._chunk(wire.ChunkChoice(choice, said, logprobs))]

    def finish(self, choice: int, finished: pb.Finished) -> Sequence[msgspec.Struct]:
        reason = FINISH_REASONS[finished.reason]
        return [self._chunk(wire.ChunkChoice(choice, wire.Delta(), finish_reason=reason))]

    def last(self, usage: Usage) -> Sequence[msgspec.Struct]:
        if not self._request.include_usage:
            return ()
        chunk = self._chunk()
        chunk.usage = usage
        return [chunk]

    def failed(self, error: ApplianceError, usage: Usage) -> Sequence[msgspec.Struct]:
        return [refusal(error).document]

    def take(self, choice: int, event: pb.Delta | pb.Finished) -> None:
        kept = self._choices[choice]
        if isinstance(event, pb.Finished):
            kept.finish_reason = FINISH_REASONS[event.reason]
            return
        kept.text.append(event.text)
        kept.reasoning.append(event.reasoning)
        for call in event.tool_calls:
            if call.index not in kept.calls:
                kept.calls[call.index] = wire.ToolCallOut(
                    call.id, wire.FunctionOut(call.name, call.arguments_json)
                )
            else:
                kept.calls[call.index].function.arguments += call.arguments_json
        logprobs = self._logprobs(event)
        kept.logprobs.extend(logprobs.content if logprobs else ())

    def whole(self, usage: Usage) -> msgspec.Struct:
        return wire.ChatCompletion(
            id=self._id,
            created=self._generation.created,
            model=self._request.model,
            choices=[self._whole(index, choice) for index, choice in enumerate(self._choices)],
            usage=usage,
            system_fingerprint=self._generation.fingerprint,
            service_tier=self._tier,
        )

    def _whole(self, index: int, choice: _Choice) -> wire.ChatChoice:
        text = "".join(choice.text)
        calls = [call for _, call in sorted(choice.calls.items())]
        message = wire.MessageOut(
            role="assistant",
            content=text if text or not calls else None,
            reasoning_content="".join(choice.reasoning) or UNSET,
            tool_calls=calls or UNSET,
        )
        logprobs = wire.Logprobs(choice.logprobs) if self._request.logprobs else None
        return wire.ChatChoice(index, message, logprobs, choice.finish_reason)

    def _chunk(self, *choices: wire.ChunkChoice) -> wire.ChatChunk:
        return wire.ChatChunk(
            id=self._id,
            created=self._generation.created,
            model=self._request.model,
            choices=list(choices),
            system_fingerprint=self._generation.fingerprint,
            # With include_usage the field stands in every chunk, null but in the last.
            usage=None if self._request.include_usage else UNSET,
            service_tier=UNSET if self._request.service_tier is None else self._tier,
        )

    def _logprobs(self, delta: pb.Delta) -> wire.Logprobs | None:
        if not self._request.logprobs or not delta.logprobs:
            return None
        return wire.Logprobs([_token(token) for token in delta.logprobs])


def _call_delta(call: pb.ToolCallDelta) -> wire.ToolCallDelta:
    if not call.name:
        return wire.ToolCallDelta(call.index, wire.FunctionDelta(call.arguments_json))
    function = wire.FunctionDelta(call.arguments_json, name=call.name)
    return wire.ToolCallDelta(call.index, function, id=call.id, type="function")


def _token(token: pb.TokenLogprob) -> wire.TokenLogprob:
    return wire.TokenLogprob(
        token=token.token.decode("utf-8", "replace"),
        logprob=token.logprob,
        bytes=list(token.token),
        top_logprobs=[
            wire.TopLogprob(top.token.decode("utf-8", "replace"), top.logprob, list(top.token))
            for top in token.top
        ],
    )
