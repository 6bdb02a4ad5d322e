"""/v1/responses/{id}: stored responses are read, listed, cancelled and deleted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.types import Receive, Scope, Send

from appliance.audit.event import clip
from appliance.errors import NotFoundError, RequestError
from appliance.shim.answer import send_recorded
from appliance.shim.exchange import Exchange, exchange_of
from appliance.shim.response_store import ResponseStore, StoredResponse
from appliance.shim.services import Services
from appliance.shim.wire.decode import decode_query
from appliance.shim.wire.parameters import Parameter
from appliance.shim.wire.response_object import DeletedResponse, ItemList, ResponseObject

_RESPONSE = msgspec.json.Decoder(ResponseObject)
_ITEMS = msgspec.json.Decoder(list[dict[str, object]])


Included = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]
"""What a response was made with is there in any case, and nothing else."""


class RetrieveQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    stream: Literal["false", "true"] | None = None
    include: list[Included] = []
    include_obfuscation: Literal["false"] | None = None


class ItemsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include: list[Included] = []
    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


_WHOLE = "a stored response is given whole; ask until it has ended"
_STREAM = Parameter("stream", "limited", _WHOLE)
_REFUSED = (Parameter("starting_after", "refused", _WHOLE),)


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Stored:
    """What the endpoints of one stored response share."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def _store(self) -> ResponseStore:
        if self._services.responses is None:
            raise NotFoundError(
                "this appliance keeps no responses",
                hint="have api.store_responses switched on",
                code="response_not_found",
            )
        return self._services.responses

    async def _row(self, scope: Scope, exchange: Exchange) -> StoredResponse:
        row = await self._store().get(exchange.owner, scope["path_params"]["response_id"])
        exchange.model = clip(_RESPONSE.decode(row.body).model)
        return row


class ResponseEndpoint(_Stored):
    """GET /v1/responses/{response_id}."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        if decode_query(scope, RetrieveQuery, _REFUSED).stream == "true":
            raise _STREAM.refusal()
        row = await self._row(scope, exchange)
        await send_recorded(self._services, exchange, send, _RESPONSE.decode(row.body))


class DeleteResponseEndpoint(_Stored):
    """DELETE /v1/responses/{response_id}: one that is still computed is cancelled first."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        decode_query(scope, NoQuery)
        row = await self._row(scope, exchange)
        await self._services.background.cancel(row.id)
        await self._store().delete(exchange.owner, row.id)
        await send_recorded(self._services, exchange, send, DeletedResponse(row.id))


class CancelResponseEndpoint(_Stored):
    """POST /v1/responses/{response_id}/cancel: harmless if it has ended."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        decode_query(scope, NoQuery)
        row = await self._row(scope, exchange)
        if not _RESPONSE.decode(row.body).background:
            raise RequestError(
                "only a response in the background can be cancelled",
                param="response_id",
                hint="close the connection of any other",
                code="invalid_value",
            )
        await self._services.background.cancel(row.id)
        row = await self._row(scope, exchange)
        await send_recorded(self._services, exchange, send, _RESPONSE.decode(row.body))


class InputItemsEndpoint(_Stored):
    """GET /v1/responses/{response_id}/input_items: those of earlier turns included."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        query = decode_query(scope, ItemsQuery)
        row = await self._row(scope, exchange)
        chain = await self._store().chain(exchange.owner, row.id)
        await send_recorded(self._services, exchange, send, _page(_items(chain), query))


def _items(chain: Sequence[StoredResponse]) -> list[dict[str, object]]:
    *earlier, last = chain
    items: list[dict[str, object]] = []
    for row in earlier:
        output = msgspec.to_builtins(_RESPONSE.decode(row.body).output)
        items += [*_ITEMS.decode(row.input), *output]
    return items + _ITEMS.decode(last.input)


def _page(items: list[dict[str, object]], query: ItemsQuery) -> ItemList:
    ordered = items if query.order == "asc" else items[::-1]
    if query.after is not None:
        places = [place for place, item in enumerate(ordered) if item["id"] == query.after]
        if not places:
            raise RequestError(
                f"there is no item {query.after!r}", param="after", code="invalid_value"
            )
        ordered = ordered[places[0] + 1 :]
    data = ordered[: query.limit]
    return ItemList(
        data=data,
        first_id=str(data[0]["id"]) if data else "",
        last_id=str(data[-1]["id"]) if data else "",
        has_more=len(ordered) > len(data),
    )
