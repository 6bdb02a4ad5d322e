"""Pruning the audit log without losing a bill.

Owns the one condition that the log cannot know: what is pruned must be in the usage database. The
content that was sealed on the days before goes first.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from appliance.audit import AuditLog
from appliance.audit.content import erase_before
from appliance.audit.event import timestamp
from appliance.config import Layout
from appliance.errors import StorageError
from appliance.metering.fold import catch_up
from appliance.metering.meter import Meter


def prune_settled(log: AuditLog, layout: Layout, days: float, actor: str = "") -> int:
    """Prune what is older than `days` and settled; returns how many records.

    Raises AuditError, AuditUnavailableError, StorageError.
    """
    before = datetime.now(UTC) - timedelta(days=days)
    try:
        erase_before(layout.audit_content, before.date())
    except OSError as error:
        raise StorageError(f"sealed content cannot be erased: {error.strerror}") from error
    with Meter(layout.usage_db) as meter:
        catch_up(meter, log.directory)
        return log.prune(timestamp(before), floor=meter.settled_to, actor=actor)
