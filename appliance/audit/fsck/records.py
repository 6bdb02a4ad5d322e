"""Checks on single records and on how they belong together.

Owns three rules: a leaf is canonical, it carries its own place, and every RES answers exactly
one earlier REQ. Where the beginning was pruned, a REQ may be gone whose RES is there: up to the
PRUNE, which was written when all of those had ended. Memory grows with the requests in flight, up
to a limit.
"""

from __future__ import annotations

from appliance.audit.event import AnyEvent, Prune, Request, Response, decode_leaf
from appliance.audit.fsck.clock import ClockCheck
from appliance.audit.fsck.report import Report
from appliance.errors import AuditError

MAX_OPEN = 1_000_000


class RecordCheck:
    """Feed it every leaf in order."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._open: dict[str, int] = {}
        self._clock = ClockCheck(report)
        self._unpaired = 0
        self._first_unpaired: tuple[int, str] | None = None
        self.pruned_to = 0
        """What the newest PRUNE says: records below may be gone."""

    def check(self, seq: int, leaf: bytes, path: str, *, published: bool) -> AnyEvent | None:
        """The record, if it is one."""
        try:
            record = decode_leaf(leaf)
        except AuditError as error:
            self._report.add("record_invalid", error.message, path=path, seq=seq)
            return None
        if record.seq != seq:
            self._report.add("record_misplaced", _misplaced(record.seq - seq), path=path, seq=seq)
        self._clock.check(seq, record)
        if isinstance(record, Request):
            self._opened(seq, record, path)
        elif isinstance(record, Response):
            self._ended(seq, record, path)
        elif isinstance(record, Prune):
            self._pruned(record)
        if published:
            self._count(str(record.__struct_config__.tag), record.t_utc)
        return record

    def check_pruned(self) -> None:
        """At the end: what is gone must have been pruned, and every RES had its REQ."""
        if self._report.pruned > self.pruned_to:
            self._report.add(
                "record_missing",
                f"records {self.pruned_to} to {self._report.pruned - 1} are gone, and no PRUNE "
                "that is left says so",
                path="tile/entries",
                seq=self.pruned_to,
            )
        if self._first_unpaired is not None:
            seq, path = self._first_unpaired
            self._report.add(
                "response_unpaired",
                f"{self._unpaired} requests ended that were not open",
                path=path,
                seq=seq,
            )

    def _pruned(self, record: Prune) -> None:
        self.pruned_to = max(self.pruned_to, record.first_kept)
        if record.first_kept >= self._report.pruned:
            self._unpaired, self._first_unpaired = 0, None

    def oldest_open(self, size: int) -> int:
        """Number of the oldest REQ that has no RES yet; `size` if there is none."""
        return min(self._open.values(), default=size)

    @property
    def open_count(self) -> int:
        return len(self._open)

    def _opened(self, seq: int, record: Request, path: str) -> None:
        if record.request_id in self._open:
            self._report.add(
                "request_twice", f"{record.request_id} was already open", path=path, seq=seq
            )
        if len(self._open) < MAX_OPEN:
            self._open[record.request_id] = seq
        else:
            self._report.add("requests_open", f"more than {MAX_OPEN} are open", path=path, seq=seq)

    def _ended(self, seq: int, record: Response, path: str) -> None:
        if self._open.pop(record.request_id, None) is not None:
            return
        if self.pruned_to < self._report.pruned:
            self._unpaired += 1
            self._first_unpaired = self._first_unpaired or (seq, path)
        else:
            self._report.add(
                "response_unpaired",
                f"{record.request_id} ended, but was not open",
                path=path,
                seq=seq,
            )

    def _count(self, kind: str, t_utc: str) -> None:
        self._report.records[kind] = self._report.records.get(kind, 0) + 1
        self._report.first_time = self._report.first_time or t_utc
        self._report.last_time = t_utc


def _misplaced(by: int) -> str:
    return f"its own number is {abs(by)} {'higher' if by > 0 else 'lower'} than its place"
