"""The tamper-evident audit log: events in, signed checkpoints out, and an independent checker.

The way of a record: event -> journal (durable, acknowledged) -> tree (tiles) -> checkpoint.
"""

from appliance.audit.admin import acting_as_owner, admin_event
from appliance.audit.event import MAX_TEXT
from appliance.audit.log import AuditLog
from appliance.audit.reader import read_events
from appliance.audit.signer import create_signer
from appliance.audit.writer import AuditWriter

__all__ = [
    "MAX_TEXT",
    "AuditLog",
    "AuditWriter",
    "acting_as_owner",
    "admin_event",
    "create_signer",
    "read_events",
]
