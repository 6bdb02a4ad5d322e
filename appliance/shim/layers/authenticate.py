"""Lets in who has a key that is valid now.

Decides by the decoded path of the request line alone, which is what the router uses too; never
by a URL rebuilt from the Host header. The key is looked up for each request, so a revoked one
stops on connections that are already open.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.access import KeyStore
from appliance.errors import RequestError
from appliance.shim.exchange import Dialect, exchange_of

_SCHEME = b"bearer "


class AuthenticateLayer:
    """Everything needs a key but the `public` routes."""

    def __init__(self, app: ASGIApp, keys: KeyStore, public: frozenset[str]) -> None:
        self._app = app
        self._keys = keys
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        if exchange.route not in self._public:
            presented = _presented(scope["headers"], exchange.dialect)
            exchange.key = self._keys.authenticate(presented) if presented is not None else None
            if exchange.key is None:
                raise _unknown(presented)
        await self._app(scope, receive, send)


def _presented(headers: list[tuple[bytes, bytes]], dialect: Dialect) -> str | None:
    """The presented key; None unless there is exactly one. Anthropic's SDKs have another header."""
    found = {_bearer(headers)}
    if dialect == "anthropic":
        found |= {value.decode("latin-1") for name, value in headers if name == b"x-api-key"}
    found.discard(None)
    return found.pop() if len(found) == 1 else None


def _bearer(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The presented key; None unless there is exactly one Authorization header with a bearer."""
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1 or values[0][: len(_SCHEME)].lower() != _SCHEME:
        return None
    return values[0][len(_SCHEME) :].strip().decode("latin-1")


def _unknown(presented: str | None) -> RequestError:
    if presented is None:
        message = "no API key was sent, or more than one"
    else:
        message = "the API key is mistyped, expired or revoked"
    return RequestError(
        message, hint="send `Authorization: Bearer KEY` with a valid key", code="invalid_api_key"
    )
