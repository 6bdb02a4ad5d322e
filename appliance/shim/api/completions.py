"""/v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET
from starlette.types import Receive, Scope, Send

from appliance.audit.event import clip
from appliance.errors import ApplianceError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.admission import allowed
from appliance.shim.answer import send_answer
from appliance.shim.body import read_body
from appliance.shim.event_stream import CHUNKS
from appliance.shim.exchange import Exchange, exchange_of
from appliance.shim.generation import FINISH_REASONS, Generation, admitted
from appliance.shim.refusals import refusal
from appliance.shim.services import Services
from appliance.shim.wire import completions as wire
from appliance.shim.wire.decode import decode
from appliance.shim.wire.parameters import COMPLETIONS
from appliance.shim.wire.usage import Usage

_DECODER = msgspec.json.Decoder(wire.CompletionRequest)


class CompletionsEndpoint:
    """POST /v1/completions."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        request = decode(scope, await read_body(receive), _DECODER, COMPLETIONS)
        exchange.model = clip(request.model)
        engine_requests = request.to_engine(exchange.request_id, exchange.cache_namespace)
        echoed = await self._echoed(exchange, engine_requests) if request.echo else ()
        async with admitted(self._services, exchange, receive, engine_requests) as generation:
            shape = CompletionShape(generation, request, echoed)
            await send_answer(
                generation,
                shape,
                send,
                stream=bool(request.stream),
                keepalive_seconds=self._services.settings.keepalive_seconds,
            )

    async def _echoed(
        self, exchange: Exchange, requests: Sequence[pb.GenerateRequest]
    ) -> list[str]:
        """The text of each prompt."""
        allowed(exchange)
        engine = self._services.engine
        texts = []
        for request in requests:
            match request.WhichOneof("prompt"):
                case "text":
                    texts.append(request.text)
                case "fill_in":
                    texts.append(request.fill_in.prefix)
                case _:
                    asked = pb.DetokenizeRequest(model=request.model, tokens=request.tokens)
                    texts.append(await engine.detokenize(asked))
        return texts


@dataclass(slots=True)
class _Choice:
    """What a choice has said so far; `length` in characters of its logprobs' tokens."""

    text: list[str] = field(default_factory=list)
    logprobs: wire.CompletionLogprobs = field(
        default_factory=lambda: wire.CompletionLogprobs([], [], [], [])
    )
    length: int = 0
    finish_reason: str | None = None


class CompletionShape:
    """A generation as text_completion objects."""

    framing = CHUNKS

    def __init__(
        self, generation: Generation, request: wire.CompletionRequest, echoed: Sequence[str] = ()
    ) -> None:
        self._generation = generation
        self._request = request
        self._id = f"cmpl-{generation.exchange.request_id.removeprefix('req_')}"
        self._choices = [_Choice() for _ in range(generation.choices)]
        self._echoes = [text for text in echoed for _ in range(request.n or 1)]
        """For each choice the text that stands before it; empty if none does."""

    def first(self) -> Sequence[msgspec.Struct]:
        """The echo of each choice; else only an empty text for the first: there is no role."""
        return [
            self._chunk(wire.CompletionChoice(index, text))
            for index, text in enumerate(self._echoes or [""])
        ]

    def delta(self, choice: int, delta: pb.Delta) -> Sequence[msgspec.Struct]:
        logprobs = self._logprobs(choice, delta)
        if not delta.text and logprobs is None:
            return ()
        return [self._chunk(wire.CompletionChoice(choice, delta.text, logprobs))]

    def finish(self, choice: int, finished: pb.Finished) -> Sequence[msgspec.Struct]:
        reason = FINISH_REASONS[finished.reason]
        return [self._chunk(wire.CompletionChoice(choice, "", finish_reason=reason))]

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
        logprobs = self._logprobs(choice, event)
        if logprobs is not None:
            for name in logprobs.__struct_fields__:
                getattr(kept.logprobs, name).extend(getattr(logprobs, name))

    def whole(self, usage: Usage) -> msgspec.Struct:
        wanted = self._request.logprobs is not None
        answer = self._chunk(
            *(
                wire.CompletionChoice(
                    index,
                    "".join([*self._echoes[index : index + 1], *choice.text]),
                    choice.logprobs if wanted else None,
                    choice.finish_reason,
                )
                for index, choice in enumerate(self._choices)
            )
        )
        answer.usage = usage
        return answer

    def _chunk(self, *choices: wire.CompletionChoice) -> wire.Completion:
        return wire.Completion(
            id=self._id,
            created=self._generation.created,
            model=self._request.model,
            choices=list(choices),
            system_fingerprint=self._generation.fingerprint,
            usage=None if self._request.include_usage else UNSET,
        )

    def _logprobs(self, choice: int, delta: pb.Delta) -> wire.CompletionLogprobs | None:
        if self._request.logprobs is None or not delta.logprobs:
            return None
        kept = self._choices[choice]
        result = wire.CompletionLogprobs([], [], [], [])
        for token in delta.logprobs:
            text = _text(token.token)
            result.tokens.append(text)
            result.token_logprobs.append(token.logprob)
            result.top_logprobs.append({_text(top.token): top.logprob for top in token.top})
            result.text_offset.append(kept.length)
            kept.length += len(text)
        return result


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")
