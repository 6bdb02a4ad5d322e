"""What all batches of a process share."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.shim.batches.batch_store import BatchStore
from appliance.shim.batches.file_store import FileStore
from appliance.shim.batches.gate import Gate
from appliance.shim.batches.line_caller import LineCaller
from appliance.shim.engine_client import EngineClient
from appliance.shim.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Office:
    """One of each."""

    files: FileStore
    batches: BatchStore
    gate: Gate
    caller: LineCaller
    engine: EngineClient
    metrics: Metrics
    max_body_bytes: int
    file_seconds: int
    """How long a result is kept, if its batch does not say otherwise."""
