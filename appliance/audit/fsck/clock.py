"""Whether the node's clock was set while the log was written.

Owns comparing each record's two times. Within a boot the wall clock and the monotonic clock, which
nobody can set, go on together; across boots the wall clock must not go back. Refuses to call it a
finding: operators set clocks, and a machine that slept looks as if its clock had been set forward.
"""

from __future__ import annotations

from appliance.audit.event import Event, unix_seconds
from appliance.audit.fsck.report import Report
from appliance.errors import AuditError

SLACK_SECONDS = 60


class ClockCheck:
    """Tell it every record, in order."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._before: tuple[str, int, float] | None = None
        """Boot, wall clock, and wall clock less monotonic clock of the record before; seconds."""

    def check(self, seq: int, record: Event) -> None:
        try:
            wall = unix_seconds(record.t_utc)
        except AuditError:
            return
        before, offset = self._before, wall - record.t_mono_ns / 1e9
        self._before = record.boot_id, wall, offset
        if before is None:
            return
        same_boot = before[0] == record.boot_id
        step = offset - before[2] if same_boot else min(0, wall - before[1])
        if abs(step) > SLACK_SECONDS:
            self._note(seq, round(step))

    def _note(self, seq: int, step: int) -> None:
        report = self._report
        report.clock_set += 1
        if abs(step) > abs(report.clock_step):
            report.clock_step, report.clock_record = step, seq
