"""The independent checker: a log's directory and a key in, a report out."""

from appliance.audit.fsck.report import Finding, Report
from appliance.audit.fsck.verify import verify

__all__ = ["Finding", "Report", "verify"]
