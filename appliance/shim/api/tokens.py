"""/tokenize and /detokenize: nothing is generated, and nothing billed."""

from __future__ import annotations

import msgspec
from starlette.types import Receive, Scope, Send

from appliance.audit.event import clip
from appliance.shim.answer import send_recorded
from appliance.shim.api.models import served
from appliance.shim.body import read_body
from appliance.shim.exchange import exchange_of
from appliance.shim.services import Services
from appliance.shim.wire import tokens as wire
from appliance.shim.wire.decode import decode
from appliance.shim.wire.parameters import DETOKENIZE, TOKENIZE

_TOKENIZE = msgspec.json.Decoder(wire.TokenizeRequest)
_DETOKENIZE = msgspec.json.Decoder(wire.DetokenizeRequest)


class TokenizeEndpoint:
    """POST /tokenize."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        request = decode(scope, await read_body(receive), _TOKENIZE, TOKENIZE)
        exchange.model = clip(request.model)
        async with self._services.watched(exchange, receive):
            ids = await self._services.engine.tokenize(request.to_engine())
            model = await served(self._services.engine, request.model)
        answer = wire.TokenizeAnswer(len(ids), model.context_length, list(ids))
        digest = model.bundle_digest
        await send_recorded(self._services, exchange, send, answer, bundle_digest=digest)


class DetokenizeEndpoint:
    """POST /detokenize."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        request = decode(scope, await read_body(receive), _DETOKENIZE, DETOKENIZE)
        exchange.model = clip(request.model)
        async with self._services.watched(exchange, receive):
            text = await self._services.engine.detokenize(request.to_engine())
        await send_recorded(self._services, exchange, send, wire.DetokenizeAnswer(text))
