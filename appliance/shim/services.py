"""What the handlers share."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.types import Receive

from appliance.access import KeyStore
from appliance.config import ApiSettings, Config
from appliance.shim.accounting import Accounting
from appliance.shim.admission import Admission, allowed
from appliance.shim.background import Background
from appliance.shim.batches.batches import Batches
from appliance.shim.drain import Drain
from appliance.shim.engine_client import EngineClient
from appliance.shim.exchange import Exchange
from appliance.shim.lifeline import Lifeline
from appliance.shim.metrics import Metrics
from appliance.shim.response_store import ResponseStore
from appliance.shim.revocation import Revocations
from appliance.shim.suspects import Suspects


@dataclass(frozen=True, slots=True)
class Services:
    """One of each for the whole process."""

    config: Config
    engine: EngineClient
    keys: KeyStore
    accounting: Accounting
    metrics: Metrics
    drain: Drain
    revocations: Revocations
    admission: Admission
    suspects: Suspects
    responses: ResponseStore | None = None
    """None unless the operator lets callers store responses."""
    batches: Batches | None = None
    """None unless the operator lets callers keep files."""
    background: Background = field(default_factory=Background)

    @property
    def settings(self) -> ApiSettings:
        """Those of the endpoint."""
        return self.config.api

    @asynccontextmanager
    async def lifeline(self, exchange: Exchange, receive: Receive) -> AsyncIterator[Lifeline]:
        """A lifeline for `exchange` that also ends when its key is revoked."""
        assert exchange.key is not None, "routes that compute need a key"
        # A line of a batch may wait for as long as others come first; its batch has a window.
        seconds = math.inf if exchange.line else self.settings.request_timeout_seconds
        async with Lifeline(receive, self.drain, seconds) as lifeline:
            with self.revocations.watching(exchange.key, lifeline.end):
                yield lifeline

    @asynccontextmanager
    async def watched(self, exchange: Exchange, receive: Receive) -> AsyncIterator[None]:
        """Cancel the body when nobody waits for it any more, or nobody may.

        For calls with one answer about a model; raises as `Lifeline.guard` and `allowed` do.
        """
        allowed(exchange)
        async with self.lifeline(exchange, receive) as lifeline, lifeline.guard():
            yield
