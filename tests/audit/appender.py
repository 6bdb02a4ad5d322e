"""A process that records and tells its parent, for the tests that kill it or break its disk.

    python -m tests.audit.appender BASE NAME COUNT [threadless] [rolling]

It writes lines to standard output, each in one unbuffered write: `sent ID` before a record is
handed over, `acked ID SEQ` after it was acknowledged, `refused ID` after it was refused. The
parent, outside the fault's reach, keeps them as the ledger. COUNT acknowledged records later it
closes the log and writes `closed`. `threadless` appends and publishes in the main thread only, so
that the n-th system call is the same one at each run. `rolling` takes a new key after few records.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from appliance.audit.log import AuditLog
from appliance.audit.signer import create_signer
from appliance.audit.writer import AuditWriter
from appliance.config import AuditSettings
from appliance.errors import AuditUnavailableError
from tests.audit.sample import ORIGIN, request

SETTINGS = AuditSettings(checkpoint_seconds=0.02, segment_bytes=65_536)
CLIENTS = 8


def tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def client(writer: AuditWriter, names: itertools.count[int], name: str, count: int) -> None:
    """Record until `count` records were acknowledged; a refused one is not repeated."""
    while count:
        event = request(f"{name}-{next(names)}")
        tell(f"sent {event.request_id}")
        try:
            seq = await writer.record(event)
        except AuditUnavailableError:
            tell(f"refused {event.request_id}")
            await asyncio.sleep(0.02)
        else:
            tell(f"acked {event.request_id} {seq}")
            count -= 1


async def record(log: AuditLog, settings: AuditSettings, name: str, count: int) -> None:
    names = itertools.count()
    async with AuditWriter(log, settings) as writer:
        await asyncio.gather(
            *(client(writer, names, name, count // CLIENTS) for _ in range(CLIENTS))
        )


def record_threadless(log: AuditLog, name: str, count: int) -> None:
    names = itertools.count()
    batch = CLIENTS
    while count > 0:
        events = [request(f"{name}-{next(names)}") for _ in range(batch)]
        for event in events:
            tell(f"sent {event.request_id}")
        try:
            seqs = log.append(events)
        except AuditUnavailableError:
            for event in events:
                tell(f"refused {event.request_id}")
            batch = 1  # a smaller one may fit where the refused one did not
            continue
        batch = CLIENTS
        for event, seq in zip(events, seqs, strict=True):
            tell(f"acked {event.request_id} {seq}")
        count -= len(events)
        if log.roll_is_due():
            with suppress(AuditUnavailableError):
                log.roll()
        if log.size - log.published.size >= 64 * CLIENTS:
            with suppress(AuditUnavailableError):
                log.checkpoint()


def main() -> None:
    base, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    create_signer(base / "key", ORIGIN)
    rolling = "rolling" in sys.argv[4:]
    settings = replace(SETTINGS, epoch_records=8) if rolling else SETTINGS
    with AuditLog.open(base / "audit", base / "key", settings) as log:
        tell("open")
        if "threadless" in sys.argv[4:]:
            record_threadless(log, name, count)
        else:
            asyncio.run(record(log, settings, name, count))
    tell("closed")


if __name__ == "__main__":
    main()
