"""/v1/embeddings."""

from __future__ import annotations

import sys
from array import array
from base64 import b64encode
from collections.abc import Sequence

import msgspec
from starlette.types import Receive, Scope, Send

from appliance.audit.event import Tokens, clip
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.answer import send_recorded
from appliance.shim.api.one_answer import one_answer
from appliance.shim.body import read_body
from appliance.shim.exchange import exchange_of
from appliance.shim.services import Services
from appliance.shim.wire import embeddings as wire
from appliance.shim.wire.decode import decode
from appliance.shim.wire.parameters import EMBEDDINGS
from appliance.shim.wire.usage import EmbeddingUsage

_DECODER = msgspec.json.Decoder(wire.EmbeddingRequest)


class EmbeddingsEndpoint:
    """POST /v1/embeddings."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        request = decode(scope, await read_body(receive), _DECODER, EMBEDDINGS)
        exchange.model = clip(request.model)
        engine_request = request.to_engine(exchange.request_id)
        async with self._services.admission.embedding(exchange, engine_request):
            answer = await one_answer(
                self._services, exchange, receive, engine_request, self._services.engine.embed
            )
            await send_recorded(
                self._services,
                exchange,
                send,
                _document(request, answer),
                tokens=Tokens(prompt=answer.prompt_tokens),
                bundle_digest=answer.bundle_digest,
            )


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
