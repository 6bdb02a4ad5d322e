"""/health: whether requests can be served now. Needs no key and names nothing secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
from starlette.types import Receive, Scope, Send

from appliance.errors import ApplianceError
from appliance.shim.answer import send_document
from appliance.shim.api.models import serving
from appliance.shim.engine_client import EngineClient


class Health(msgspec.Struct, frozen=True):
    """`ok` if a request for one of `models` would be served."""

    status: Literal["ok", "degraded"]
    engine: bool
    audit: bool
    models: list[str]


class HealthEndpoint:
    """GET /health: 200 as long as this process answers; the body says what works."""

    def __init__(self, engine: EngineClient, audit_available: Callable[[], bool]) -> None:
        self._engine = engine
        self._audit_available = audit_available

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_document(send, await self._health())

    async def _health(self) -> Health:
        audit = self._audit_available()
        engine = await self._engine.serving()
        try:
            models = [model.name for model in serving(await self._engine.models())]
        except ApplianceError:
            engine, models = False, []
        return Health("ok" if engine and audit else "degraded", engine, audit, models)
