"""What the handlers share."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.access import KeyStore
from appliance.config import ApiSettings
from appliance.shim.accounting import Accounting
from appliance.shim.background import Background
from appliance.shim.drain import Drain
from appliance.shim.engine_client import EngineClient
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
