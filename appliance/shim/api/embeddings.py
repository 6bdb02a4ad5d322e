"""/v1/embeddings."""

from __future__ import annotations

import sys
from array import array
from base64 import b64encode
from collections.abc import Sequence

import msgspec
from starlette.types import Receive, Scope, Send

from appliance.audit.event import Tokens, clip
from appliance.errors import ApplianceError, UnavailableError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.answer import send_recorded
from appliance.shim.body import read_body
from appliance.shim.engine_errors import ENGINE_UNAVAILABLE
from appliance.shim.exchange import Exchange, exchange_of
from appliance.shim.lifeline import DisconnectedError
from appliance.shim.services import Services
from appliance.shim.wire import embeddings as wire
from appliance.shim.wire.decode import decode
from appliance.shim.wire.parameters import EMBEDDINGS
from appliance.shim.wire.usage import EmbeddingUsage

_DECODER = msgspec.json.Decoder(wire.EmbeddingRequest)


class EmbeddingsEndpoint:
    """POST /v1/embeddings.

    The engine refuses or answers with one message, so REQ is written when that is known: a
    refusal is a REJECT, an answer is held back until REQ and RES are durable.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        request = decode(scope, await read_body(receive), _DECODER, EMBEDDINGS)
        exchange.model = clip(request.model)
        engine_request = request.to_engine(exchange.request_id)
        async with self._services.admission.embedding(exchange, engine_request):
            answer = await self._compute(exchange, receive, engine_request)
            await send_recorded(
                self._services,
                exchange,
                send,
                _document(request, answer),
                tokens=Tokens(prompt=answer.prompt_tokens),
                bundle_digest=answer.bundle_digest,
            )

    async def _compute(
        self, exchange: Exchange, receive: Receive, request: pb.EmbedRequest
    ) -> pb.EmbedResponse:
        engine = self._services.engine
        try:
            async with (
                self._services.suspects.watching([request]) as suspicion,
                self._services.watched(exchange, receive),
            ):
                connected = engine.connected
                try:
                    return await engine.embed(request)
                except UnavailableError as error:
                    suspicion.engine_ended = connected and error.code == ENGINE_UNAVAILABLE
                    raise
        except DisconnectedError:
            await self._bill_lost(exchange)
            raise

    async def _bill_lost(self, exchange: Exchange) -> None:
        """The caller hung up: bill what the engine had computed until it noticed."""
        try:
            usages = await self._services.engine.settle(exchange.request_id)
        except ApplianceError:
            return
        tokens = Tokens(prompt=sum(usage.prompt_tokens for usage in usages))
        if tokens.prompt:
            bill = await self._services.accounting.admit(exchange)
            await bill.close("cancelled", tokens, status=0)


def _document(request: wire.EmbeddingRequest, answer: pb.EmbedResponse) -> wire.EmbeddingList:
    encode = _base64 if request.encoding_format == "base64" else list
    return wire.EmbeddingList(
        data=[
            wire.EmbeddingOut(index, encode(embedding.values))
            for index, embedding in enumerate(answer.embeddings)
        ],
        model=request.model,
        usage=EmbeddingUsage(answer.prompt_tokens, answer.prompt_tokens),
    )


def _base64(values: Sequence[float]) -> str:
    """Little-endian float32, as the SDKs unpack it."""
    floats = array("f", values)
    if sys.byteorder == "big":
        floats.byteswap()
    return b64encode(floats.tobytes()).decode("ascii")
