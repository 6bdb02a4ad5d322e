"""/v1/rerank, /v2/rerank and /v1/score."""

from __future__ import annotations

import time

import msgspec
from starlette.types import Receive, Scope, Send

from appliance.audit.event import Tokens, clip
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.answer import send_recorded
from appliance.shim.api.one_answer import one_answer
from appliance.shim.body import read_body
from appliance.shim.exchange import Exchange, exchange_of
from appliance.shim.renamed import renamed
from appliance.shim.services import Services
from appliance.shim.wire import rerank as wire
from appliance.shim.wire.decode import decode
from appliance.shim.wire.parameters import RERANK, SCORE
from appliance.shim.wire.usage import EmbeddingUsage

_RERANK = msgspec.json.Decoder(wire.RerankRequest)
_SCORE = msgspec.json.Decoder(wire.ScoreRequest)


class RerankEndpoint:
    """POST /v1/rerank and /v2/rerank: documents in the order in which they answer a query."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        request = decode(scope, await read_body(receive), _RERANK, RERANK)
        exchange.model = clip(request.model)
        engine_request = request.to_engine(exchange.request_id)
        with renamed("queries", "query"):
            await _answer(self._services, exchange, receive, send, request, engine_request)


class ScoreEndpoint:
    """POST /v1/score: how well texts fit each other, in the order given."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        request = decode(scope, await read_body(receive), _SCORE, SCORE)
        exchange.model = clip(request.model)
        engine_request = request.to_engine(exchange.request_id)
        with (
            renamed("queries", "text_1", parts=True),
            renamed("documents", "text_2", parts=True),
        ):
            await _answer(self._services, exchange, receive, send, request, engine_request)


async def _answer(
    services: Services,
    exchange: Exchange,
    receive: Receive,
    send: Send,
    request: wire.RerankRequest | wire.ScoreRequest,
    engine_request: pb.ScoreRequest,
) -> None:
    """Refuse, or answer with the whole."""
    async with services.admission.scoring(exchange, engine_request):
        answer = await one_answer(
            services, exchange, receive, engine_request, services.engine.score
        )
        await send_recorded(
            services,
            exchange,
            send,
            _document(exchange, request, answer),
            tokens=Tokens(prompt=answer.prompt_tokens),
            bundle_digest=answer.bundle_digest,
        )


def _document(
    exchange: Exchange, request: wire.RerankRequest | wire.ScoreRequest, answer: pb.ScoreResponse
) -> msgspec.Struct:
    number = exchange.request_id.removeprefix("req_")
    usage = EmbeddingUsage(answer.prompt_tokens, answer.prompt_tokens)
    if isinstance(request, wire.RerankRequest):
        return wire.Ranking(
            id=f"rerank-{number}",
            model=request.model,
            results=request.results(answer.scores),
            usage=usage,
        )
    return wire.ScoreList(
        id=f"score-{number}",
        created=int(time.time()),
        model=request.model,
        data=[wire.ScoreOut(index, score) for index, score in enumerate(answer.scores)],
        usage=usage,
    )
