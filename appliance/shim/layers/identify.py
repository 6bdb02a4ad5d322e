"""The outermost layer: a request gets its id and its exchange, the answer its `x-request-id`.

The only layer that sees what is sent, because each one that does costs every piece of a stream;
the others find in the exchange whether the answer has begun, and with which status.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.shim.caller_certificate import NO_CERTIFICATE, SCOPE_NAME
from appliance.shim.exchange import Dialect, Exchange, new_request_id
from appliance.shim.rate_limit_headers import rate_limit_headers

_ANTHROPIC = frozenset({b"anthropic-version", b"x-api-key"})
"""Headers that say of their sender that it speaks Anthropic's API."""


class IdentifyLayer:
    """Ids are made here and never taken from the caller: the bill is keyed by them.

    `anthropic` are the routes whose callers speak Anthropic's API; it has a header of its own.
    On `shared` routes those do who send a header that only Anthropic's API has.
    """

    def __init__(
        self,
        app: ASGIApp,
        route_of: Callable[[str], str],
        anthropic: frozenset[str],
        shared: frozenset[str],
    ) -> None:
        self._app = app
        self._route_of = route_of
        self._anthropic = anthropic
        self._shared = shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "websockets and lifespan are switched off in the server"
        route = self._route_of(scope["path"])
        exchange = Exchange(
            request_id=new_request_id(),
            route=route,
            dialect=self._dialect(route, scope),
            peer=scope["client"][0] if scope.get("client") else "",
            caller=scope.get(SCOPE_NAME, NO_CERTIFICATE),
        )
        exchange.attach(scope)
        value = exchange.request_id.encode("ascii")
        added = [(b"x-request-id", value)]
        if exchange.dialect == "anthropic":
            added.append((b"request-id", value))

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                limits = rate_limit_headers(exchange)
                message["headers"] = [*message["headers"], *limits, *added]
            await send(message)

        await self._app(scope, receive, stamped)

    def _dialect(self, route: str, scope: Scope) -> Dialect:
        if route in self._shared and any(name in _ANTHROPIC for name, _ in scope["headers"]):
            return "anthropic"
        return "anthropic" if route in self._anthropic else "openai"
