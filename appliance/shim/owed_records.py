"""RES of requests that ended while nothing could be recorded: written when the log works again.

Owns the tasks that wait for it. There are no more of them than requests were under way, since none
begins meanwhile. What is owed when the endpoint ends is closed by the next start, as after a crash.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from appliance.audit import AuditWriter
from appliance.audit.event import Response
from appliance.errors import ApplianceError

_log = logging.getLogger(__name__)


class OwedRecords:
    """Of one endpoint. `booked` gets the number of each RES that was written late."""

    def __init__(self, writer: AuditWriter, booked: Callable[[int, Response], None]) -> None:
        self._writer = writer
        self._booked = booked
        self._tasks: set[asyncio.Task[None]] = set()

    def write(self, response: Response) -> None:
        """Record `response` as soon as that can be."""
        task = asyncio.create_task(self._write(response))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is still owed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self, response: Response) -> None:
        try:
            seq = await self._writer.record_late(response)
        except ApplianceError as error:
            _log.error("the end of request %s is not recorded: %s", response.request_id, error)
            return
        if seq is not None:  # else it had been written, and the report catches up from the log
            self._booked(seq, response)
