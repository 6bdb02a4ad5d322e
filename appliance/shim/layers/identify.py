"""The outermost layer: a request gets its id and its exchange, the answer its `x-request-id`."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.shim.exchange import Exchange


class IdentifyLayer:
    """Ids are made here and never taken from the caller: the bill is keyed by them."""

    def __init__(self, app: ASGIApp, route_of: Callable[[str], str]) -> None:
        self._app = app
        self._route_of = route_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "websockets and lifespan are switched off in the server"
        exchange = Exchange(
            request_id=f"req_{secrets.token_hex(16)}",
            route=self._route_of(scope["path"]),
            peer=scope["client"][0] if scope.get("client") else "",
        )
        exchange.attach(scope)
        header = (b"x-request-id", exchange.request_id.encode("ascii"))

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], header]
            await send(message)

        await self._app(scope, receive, stamped)
