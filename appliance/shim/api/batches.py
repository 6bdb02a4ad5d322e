"""/v1/batches: batches are made of files, looked at and cancelled; run.py brings them on."""

from __future__ import annotations

import secrets
import time

import msgspec
from starlette.types import Receive, Scope, Send

from appliance.errors import RequestError
from appliance.shim.answer import send_document, send_recorded
from appliance.shim.api.files import kept_here
from appliance.shim.api.stored_responses import NoQuery
from appliance.shim.batches.batch_store import Counts, StoredBatch
from appliance.shim.batches.batches import Batches
from appliance.shim.body import read_body
from appliance.shim.exchange import Exchange, exchange_of
from appliance.shim.layers.authorise import check
from appliance.shim.services import Services
from appliance.shim.wire import batches as wire
from appliance.shim.wire.decode import decode, decode_query
from appliance.shim.wire.parameters import BATCHES

_DECODER = msgspec.json.Decoder(wire.BatchRequest)
_OBJECT = msgspec.json.Decoder(wire.BatchObject)
_WINDOW_SECONDS = 24 * 3600


class _Batches:
    """What the endpoints of batches share."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def _kept(self) -> Batches:
        return kept_here(self._services)

    async def _batch(self, scope: Scope) -> tuple[StoredBatch, Counts]:
        kept = self._kept()
        decode_query(scope, NoQuery)
        batch_id = scope["path_params"]["batch_id"]
        return await kept.batches.get(exchange_of(scope).owner, batch_id)


class CreateBatchEndpoint(_Batches):
    """POST /v1/batches."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        kept = self._kept()
        request = decode(scope, await read_body(receive), _DECODER, BATCHES)
        batch = await self._made(exchange, kept, request)
        await kept.batches.create(batch)
        try:
            await send_recorded(self._services, exchange, send, _OBJECT.decode(batch.body))
        except BaseException:
            await kept.batches.remove(batch)
            raise
        kept.begin(batch)

    async def _made(
        self, exchange: Exchange, kept: Batches, request: wire.BatchRequest
    ) -> StoredBatch:
        """The batch that `request` asks for. Raises RequestError, NotFoundError."""
        assert exchange.key is not None
        check(exchange.key, request.endpoint)
        file = await kept.files.get(exchange.owner, request.input_file_id)
        if file.purpose != "batch":
            raise RequestError(
                "the input file must have the purpose `batch`",
                param="input_file_id",
                code="invalid_value",
            )
        asked = request.output_expires_after
        if asked is not None and asked.seconds > kept.file_seconds:
            raise RequestError(
                f"files are kept for {kept.file_seconds} seconds at most",
                param="output_expires_after.seconds",
                hint="ask for less, or have api.stored_file_hours raised",
                code="invalid_value",
            )
        name, now = f"batch_{secrets.token_hex(16)}", int(time.time())
        body = wire.BatchObject(
            id=name,
            endpoint=request.endpoint,
            input_file_id=file.id,
            completion_window=request.completion_window,
            created_at=now,
            expires_at=now + _WINDOW_SECONDS,
            metadata=request.metadata,
            output_expires_after=asked,
        )
        return StoredBatch(
            id=name,
            owner=file.owner,
            key_id=exchange.key_id,
            created=now,
            ended=None,
            input=file.id,
            output=f"file-{secrets.token_hex(16)}",
            errors=f"file-{secrets.token_hex(16)}",
            body=msgspec.json.encode(body),
        )


class BatchesEndpoint(_Batches):
    """GET /v1/batches."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept = self._kept()
        query = decode_query(scope, wire.BatchesQuery)
        rows, more = await kept.batches.page(exchange_of(scope).owner, query.after, query.limit)
        data = [_out(*row) for row in rows]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        await send_document(send, wire.BatchList(data, first, last, more))


class BatchEndpoint(_Batches):
    """GET /v1/batches/{batch_id}."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_document(send, _out(*await self._batch(scope)))


class CancelBatchEndpoint(_Batches):
    """POST /v1/batches/{batch_id}/cancel."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        batch, _ = await self._batch(scope)
        await self._kept().cancel(batch)
        found = await self._kept().batches.get(batch.owner, batch.id)
        await send_recorded(self._services, exchange, send, _out(*found))


def _out(batch: StoredBatch, counts: Counts) -> wire.BatchObject:
    body = _OBJECT.decode(batch.body)
    total = body.request_counts.total
    body.request_counts = wire.RequestCounts(total, counts.completed, counts.failed)
    body.usage = wire.usage_of(counts.tokens)
    return body
