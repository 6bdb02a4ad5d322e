"""What the handlers share."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.access import KeyStore
from appliance.config import ApiSettings
from appliance.shim.accounting import Accounting
from appliance.shim.drain import Drain
from appliance.shim.engine_client import EngineClient
from appliance.shim.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Services:
    """One of each for the whole process."""

    settings: ApiSettings
    engine: EngineClient
    keys: KeyStore
    accounting: Accounting
    metrics: Metrics
    drain: Drain
