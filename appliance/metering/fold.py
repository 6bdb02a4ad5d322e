"""Billing is fold(log): the usage database as a function of the audit log.

Owns catching up after a crash and building the database anew. Refuses to interpret: what a
record means as a row is `usage_row`, the same function that serves while requests run.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from appliance.audit.reader import first_record, read_events
from appliance.metering.meter import Meter
from appliance.metering.row import UsageRow, usage_row

_CHUNK = 1000


def catch_up(meter: Meter, audit: Path) -> int:
    """Settle every RES of the log in `audit` that may not be settled; returns rows looked at.

    Harmless while requests run. Raises AuditError, StorageError.
    """
    fold = _Fold(audit, meter.settled_to)
    count = 0
    while rows := list(islice(fold, _CHUNK)):
        meter.settle(*rows)
        count += len(rows)
    meter.mark_settled(fold.end)
    return count


def rebuild(meter: Meter, audit: Path) -> int:
    """Replace the database by what the log in `audit` says; returns its rows.

    Rows of records that were pruned from the log stay as they are: nothing else tells of them.
    Raises AuditError or StorageError; then the old content stands.
    """
    fold = _Fold(audit, 0)
    first = first_record(audit)
    return meter.replace_all(fold, settled_to=lambda: fold.end, first=first)


def unbilled(meter: Meter, audit: Path) -> int:
    """How many records were pruned of the log in `audit`, if the database has no request of any.

    Pruning waits until everything is settled, so then the database was lost since, unless there was
    no request among them. 0 if nothing was pruned.
    """
    first = first_record(audit)
    return 0 if meter.reaches_below(first) else first


class _Fold(Iterator[UsageRow]):
    """The rows of a log from one record on; `end` is behind the last record read."""

    def __init__(self, audit: Path, start: int) -> None:
        self._events = read_events(audit, start)
        self.end = start

    def __next__(self) -> UsageRow:
        for seq, event in self._events:
            self.end = seq + 1
            row = usage_row(seq, event)
            if row is not None:
                return row
        raise StopIteration
