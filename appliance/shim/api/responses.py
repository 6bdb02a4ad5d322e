"""/v1/responses: answers, whole, streamed or in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec
from starlette.types import Receive, Scope, Send

from appliance.audit.event import clip
from appliance.errors import ApplianceError, AuditUnavailableError, RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.answer import send_answer, send_document, take_all
from appliance.shim.api.referenced import resolved
from appliance.shim.api.response_shape import ResponseShape
from appliance.shim.body import read_body
from appliance.shim.exchange import Exchange, exchange_of
from appliance.shim.generation import Generation, admitted
from appliance.shim.lifeline import DisconnectedError
from appliance.shim.refusals import INTERNAL
from appliance.shim.renamed import renamed
from appliance.shim.response_store import ResponseStore, StoredResponse
from appliance.shim.service_tier import serve_as
from appliance.shim.services import Services
from appliance.shim.wire.chosen import places
from appliance.shim.wire.decode import decode
from appliance.shim.wire.parameters import RESPONSES
from appliance.shim.wire.response_items import Item, listed
from appliance.shim.wire.response_object import ResponseObject
from appliance.shim.wire.responses import ResponsesRequest, prepare
from appliance.shim.wire.structured import in_the_callers_words

_log = logging.getLogger(__name__)
_DECODER = msgspec.json.Decoder(ResponsesRequest)


class _KeptBody(msgspec.Struct, frozen=True):
    """What of a stored response a later one builds on."""

    output: list[Item]


_INPUT = msgspec.json.Decoder(list[Item])
_BODY = msgspec.json.Decoder(_KeptBody)


@dataclass(frozen=True, slots=True)
class _Call:
    """One request, ready to be computed."""

    request: ResponsesRequest
    items: Sequence[Item]
    engine_request: pb.GenerateRequest
    exchange: Exchange
    store: ResponseStore | None
    """Where the response is to be kept; None if it is not."""

    def row(self, response: ResponseObject) -> StoredResponse:
        """`response` as it is kept."""
        assert self.store is not None
        suffix = response.id.removeprefix("resp_")
        items = [listed(item, f"item_{suffix}_{index}") for index, item in enumerate(self.items)]
        return StoredResponse(
            id=response.id,
            owner=self.exchange.owner,
            created=response.created_at,
            expires=self.store.expiry(),
            previous=response.previous_response_id or "",
            running=int(response.status == "in_progress"),
            input=msgspec.json.encode(items),
            body=msgspec.json.encode(response),
        )


class ResponsesEndpoint:
    """POST /v1/responses."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        request = decode(scope, await read_body(receive), _DECODER, RESPONSES, prepare)
        exchange.model = clip(request.model)
        serve_as(exchange, request.service_tier)
        store = self._store_for(request)
        earlier = await self._earlier(exchange, request)
        items = await resolved(request.items, self._services.responses, exchange.owner)
        engine_request = request.to_engine(
            exchange.request_id, exchange.cache_namespace, earlier, items
        )
        call = _Call(request, items, engine_request, exchange, store)
        tools = request.callables
        kept = places([tool.called for tool in tools], engine_request.chat.tools)
        with (
            renamed("messages", "input"),
            renamed("thinking", "reasoning.effort"),
            in_the_callers_words(
                "text.format.schema", lambda tool, inside: tools[tool].place_of(inside), kept
            ),
        ):
            if request.background:
                await self._begin(call, send)
            else:
                await self._answer(call, receive, send)

    async def _answer(self, call: _Call, receive: Receive, send: Send) -> None:
        async with admitted(
            self._services, call.exchange, receive, [call.engine_request]
        ) as generation:
            shape = ResponseShape(generation, call.request, stored=call.store is not None)

            async def keep() -> None:
                if call.store is not None:
                    await call.store.put(call.row(shape.end(generation.usage())))

            await send_answer(
                generation,
                shape,
                send,
                stream=bool(call.request.stream),
                keepalive_seconds=self._services.settings.keepalive_seconds,
                settled=keep,
            )

    async def _begin(self, call: _Call, send: Send) -> None:
        name = f"resp_{call.exchange.request_id.removeprefix('req_')}"

        async def work(receive: Receive, begun: asyncio.Future[ResponseObject]) -> None:
            assert call.store is not None
            async with admitted(
                self._services, call.exchange, receive, [call.engine_request]
            ) as generation:
                shape = ResponseShape(generation, call.request, stored=True)
                await call.store.put(call.row(shape.response))
                generation.started = True
                begun.set_result(msgspec.structs.replace(shape.response, output=[]))
                await _finish(generation, shape)
                await call.store.update(name, msgspec.json.encode(shape.response))

        drain = self._services.drain
        response: ResponseObject = await self._services.background.start(drain, name, work)
        await send_document(send, response)

    def _store_for(self, request: ResponsesRequest) -> ResponseStore | None:
        """Where to keep the response: nowhere if it was declined. Raises RequestError."""
        store = self._services.responses
        for name in ("store", "background", "previous_response_id"):
            if store is None and getattr(request, name):
                raise RequestError(
                    f"`{name}` is not supported here: this appliance keeps no content",
                    param=name,
                    hint="send the whole conversation, or have api.store_responses switched on",
                    code="unsupported_parameter",
                )
        if request.background and request.store is False:
            raise RequestError(
                "`background` needs `store`", param="background", code="invalid_value"
            )
        return None if request.store is False else store

    async def _earlier(self, exchange: Exchange, request: ResponsesRequest) -> Sequence[Item]:
        """The items that the request builds on. Raises NotFoundError, or RequestError."""
        if request.previous_response_id is None:
            return ()
        assert self._services.responses is not None
        chain = await self._services.responses.chain(exchange.owner, request.previous_response_id)
        if chain[-1].running:
            raise RequestError(
                "the previous response is not finished",
                param="previous_response_id",
                code="invalid_value",
            )
        return [
            item
            for row in chain
            for item in (*_INPUT.decode(row.input), *_BODY.decode(row.body).output)
        ]


async def _finish(generation: Generation, shape: ResponseShape) -> None:
    """Compute it to whatever end; the response then says which."""
    try:
        await take_all(generation, shape)
    except DisconnectedError as error:
        await _abandon(generation, error)
        shape.break_off("cancelled", None, generation.usage())
    except ApplianceError as error:
        await _abandon(generation, error)
        shape.break_off("failed", error, generation.usage())
    except Exception as error:
        _log.error("%s: %s", shape.response.id, type(error).__name__)
        await _abandon(generation, error)
        shape.break_off("failed", INTERNAL, generation.usage())
    else:
        shape.end(generation.usage())


async def _abandon(generation: Generation, error: Exception) -> None:
    """Stop and bill it. If that cannot be recorded, the response has failed all the same."""
    if not generation.closed:
        with suppress(AuditUnavailableError):
            await generation.abandon(error)
