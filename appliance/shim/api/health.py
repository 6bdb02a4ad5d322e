"""/health and /ready: what works now. They need no key and name nothing secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
from starlette.types import Receive, Scope, Send

from appliance.errors import ApplianceError
from appliance.shim.answer import send_document
from appliance.shim.engine_client import EngineClient
from appliance.shim.serving import serving


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
        models = await _names(self._engine)
        engine = engine and models is not None
        return Health("ok" if engine and audit else "degraded", engine, audit, models or [])


class Readiness(msgspec.Struct, frozen=True):
    """`reasons` say why not; empty if ready."""

    ready: bool
    reasons: list[str]
    models: list[str]


class ReadyEndpoint:
    """GET /ready: 200 if a model serves and the audit log can be written, else 503."""

    def __init__(self, engine: EngineClient, audit_available: Callable[[], bool]) -> None:
        self._engine = engine
        self._audit_available = audit_available

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        readiness = await self._readiness()
        await send_document(send, readiness, 200 if readiness.ready else 503)

    async def _readiness(self) -> Readiness:
        reasons = []
        if not self._audit_available():
            reasons.append("the audit log cannot be written")
        models = await _names(self._engine)
        if models is None or not await self._engine.serving():
            reasons.append("the engine does not answer")
        elif not models:
            reasons.append("no model is loaded")
        return Readiness(not reasons, reasons, models or [])


async def _names(engine: EngineClient) -> list[str] | None:
    """The models that take requests; None if the engine does not answer."""
    try:
        return [model.name for model in serving(await engine.models())]
    except ApplianceError:
        return None
