"""/metrics: Prometheus text. Needs no key: it has counts, never who or what."""

from __future__ import annotations

from prometheus_client.exposition import choose_encoder
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from appliance.errors import ApplianceError
from appliance.shim.engine_client import EngineClient
from appliance.shim.metrics import Metrics


class MetricsEndpoint:
    """GET /metrics: this process's counters, and the engine's as it tells them now."""

    def __init__(self, engine: EngineClient, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._metrics.engine.latest = await self._engine.stats()
        except ApplianceError:
            self._metrics.engine.latest = None
        encode, content_type = choose_encoder(Headers(scope=scope).get("accept", ""))
        body = encode(self._metrics.registry)
        headers = [
            (b"content-type", content_type.encode("ascii")),
            (b"content-length", str(len(body)).encode("ascii")),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
