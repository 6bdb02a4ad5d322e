"""What the handlers share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.types import Receive

from appliance.access import KeyStore
from appliance.config import ApiSettings
from appliance.shim.accounting import Accounting
from appliance.shim.background import Background
from appliance.shim.drain import Drain
from appliance.shim.engine_client import EngineClient
from appliance.shim.exchange import Exchange
from appliance.shim.lifeline import Lifeline
from appliance.shim.metrics import Metrics
from appliance.shim.response_store import ResponseStore


@dataclass(frozen=True, slots=True)
class Services:
    """One of each for the whole process."""

    settings: ApiSettings
    engine: EngineClient
    keys: KeyStore
    accounting: Accounting
    metrics: Metrics
    drain: Drain
    responses: ResponseStore | None = None
    """None unless the operator lets callers store responses."""
    background: Background = field(default_factory=Background)

    @asynccontextmanager
    async def watched(self, exchange: Exchange, receive: Receive) -> AsyncIterator[None]:
        """Cancel work on `exchange` in the body when nobody waits for it any more, or nobody may.

        For calls with one answer; raises as `Lifeline.guard` does.
        """
        seconds = self.settings.request_timeout_seconds
        async with Lifeline(receive, self.drain, seconds) as lifeline, lifeline.guard():
            yield
