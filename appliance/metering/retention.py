"""Pruning the audit log without losing a bill.

Owns the one condition that the log cannot know: what is pruned must be in the usage database.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from appliance.audit import AuditLog
from appliance.audit.event import timestamp
from appliance.metering.fold import catch_up
from appliance.metering.meter import Meter


def prune_settled(log: AuditLog, usage_db: Path, days: float, actor: str = "") -> int:
    """Prune what is older than `days` and settled in `usage_db`; returns how many records.

    Raises AuditError, AuditUnavailableError, StorageError.
    """
    with Meter(usage_db) as meter:
        catch_up(meter, log.directory)
        before = timestamp(datetime.now(UTC) - timedelta(days=days))
        return log.prune(before, floor=meter.settled_to, actor=actor)
