"""Lets a key through to what it is for: its APIs, or the administration.

An API key never opens the administration API, an admin key opens nothing else. The model is
checked at admission, where it is known.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.access import APIS, KeyInfo, api_of
from appliance.errors import RequestError
from appliance.shim.exchange import exchange_of

ADMINISTRATION = "/v1/organization/"
"""What routes of the administration API begin with."""


class AuthoriseLayer:
    """Below authentication: a request without a key is for a public route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        if exchange.key is not None:
            check(exchange.key, exchange.route)
        await self._app(scope, receive, send)


def check(key: KeyInfo, route: str) -> None:
    """Raise RequestError with code `insufficient_permissions` unless `key` may use `route`."""
    administration = route.startswith(ADMINISTRATION)
    if administration and key.kind != "admin":
        raise _forbidden("this is for admin keys", "`appliance keys create NAME --admin` makes one")
    if key.kind == "admin" and not administration and route != "unknown":
        raise _forbidden("an admin key opens the administration only", "use an API key here")
    api = api_of(route)
    if api in APIS and not key.may_call(api):
        raise _forbidden(f"the API key may not use {api}", "ask the operator to allow it")


def _forbidden(message: str, hint: str) -> RequestError:
    return RequestError(message, hint=hint, code="insufficient_permissions")
