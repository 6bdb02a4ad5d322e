"""Anthropic's /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import msgspec
from starlette.types import Receive, Scope, Send

from appliance.audit.event import clip
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.answer import send_answer, send_recorded
from appliance.shim.api.message_shape import MessageShape
from appliance.shim.body import read_body
from appliance.shim.exchange import exchange_of
from appliance.shim.generation import admitted
from appliance.shim.renamed import renamed
from appliance.shim.services import Services
from appliance.shim.wire.anthropic import CountRequest, MessagesRequest
from appliance.shim.wire.anthropic_message import MessageTokens
from appliance.shim.wire.anthropic_version import check_version
from appliance.shim.wire.decode import decode
from appliance.shim.wire.parameters import COUNT_TOKENS, MESSAGES
from appliance.shim.wire.structured import in_the_callers_words

_MESSAGES = msgspec.json.Decoder(MessagesRequest)
_COUNT = msgspec.json.Decoder(CountRequest)


class MessagesEndpoint:
    """POST /v1/messages."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        check_version(scope)
        request = decode(scope, await read_body(receive), _MESSAGES, MESSAGES)
        exchange.model = clip(request.model)
        engine_request = request.to_engine(exchange.request_id, exchange.cache_namespace)
        with (
            renamed("continue_final_message", "messages"),
            in_the_callers_words(
                "output_config.format.schema",
                lambda tool, inside: f"tools[{tool}].input_schema{inside}",
            ),
        ):
            async with admitted(self._services, exchange, receive, [engine_request]) as generation:
                await send_answer(
                    generation,
                    MessageShape(generation, request),
                    send,
                    stream=bool(request.stream),
                    keepalive_seconds=self._services.settings.keepalive_seconds,
                )


class CountTokensEndpoint:
    """POST /v1/messages/count_tokens: nothing is generated, and nothing billed."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        check_version(scope)
        request = decode(scope, await read_body(receive), _COUNT, COUNT_TOKENS)
        exchange.model = clip(request.model)
        prompt = pb.TokenizeRequest(model=request.model, chat=request.prompt())
        async with self._services.watched(exchange, receive):
            ids = await self._services.engine.tokenize(prompt)
        await send_recorded(self._services, exchange, send, MessageTokens(len(ids)))
