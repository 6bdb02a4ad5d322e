"""Counts answers and their durations."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.shim.exchange import exchange_of
from appliance.shim.metrics import Metrics


class ObserveLayer:
    """Sees each answer once, also the one that nobody waited for (status 0)."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        try:
            await self._app(scope, receive, send)
        finally:
            seconds = time.monotonic() - exchange.started
            self._metrics.answered(exchange.route, exchange.status, seconds)
