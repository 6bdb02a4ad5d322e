"""The parent's ledger of what a recording process sent and what was acknowledged."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from appliance.audit.event import Request
from appliance.audit.reader import read_events


@dataclass
class Ledger:
    """Feed it the lines of tests/audit/appender.py; the last may be cut short."""

    sent: set[str] = field(default_factory=set)
    acked: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    def take(self, output: bytes) -> None:
        for line in output.decode().split("\n")[:-1]:
            word, *rest = line.split()
            if word == "sent":
                self.sent.add(rest[0])
            elif word == "acked":
                self.acked[rest[0]] = int(rest[1])
            elif word == "refused":
                self.refused.add(rest[0])

    def assert_kept_by(self, audit: Path) -> None:
        """Acknowledged is a subset of the log, the log a subset of what was sent and not
        refused, nothing is there twice, everything acknowledged is in its place."""
        logged: dict[str, int] = {}
        for seq, event in read_events(audit):
            if isinstance(event, Request):
                assert event.request_id not in logged, f"{event.request_id} is there twice"
                logged[event.request_id] = seq
        lost = self.acked.items() - logged.items()
        assert not lost, f"acknowledged and not in the log: {sorted(lost)}"
        assert logged.keys() <= self.sent - self.refused
