"""Writes a REJECT for each request that is refused before it was admitted.

Only for routes that need a key: what anybody may ask (health, metrics) leaves no record. If the
log cannot be written, the answer is that, whatever else was wrong with the request.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import ApplianceError, AuditUnavailableError
from appliance.shim.accounting import Accounting
from appliance.shim.exchange import exchange_of
from appliance.shim.lifeline import DisconnectedError
from appliance.shim.refusals import INTERNAL, status_of


class RecordRejectionsLayer:
    """Sees the error on its way out, records it and lets it go on."""

    def __init__(self, app: ASGIApp, accounting: Accounting, public: frozenset[str]) -> None:
        self._app = app
        self._accounting = accounting
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except AuditUnavailableError:
            raise
        except Exception as error:
            exchange = exchange_of(scope)
            if not exchange.admitted and exchange.route not in self._public:
                status, code = _named(error)
                await self._accounting.reject(exchange, status=status, code=code)
            raise


def _named(error: Exception) -> tuple[int, str]:
    if isinstance(error, DisconnectedError):
        return 0, "disconnected"
    known = error if isinstance(error, ApplianceError) else INTERNAL
    return status_of(known), known.code
