"""Usage rows on their way into the usage database.

Owns one thread and batches: rows that come while a transaction runs, or shortly after the first
of them, go into the next one, since a transaction costs more than several rows do. The audit record
is the truth and the table its projection, so no answer waits for it; a row that cannot be written
is made up for from the log at the next start.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from appliance.errors import StorageError
from appliance.metering import Meter, UsageRow

GATHER_SECONDS = 0.02
"""How long the first of some rows waits for others."""
_log = logging.getLogger(__name__)


class Settler:
    """Writes rows into `meter`, which is its own from now on."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="settler")
        self._waiting: list[UsageRow] = []
        self._writer: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        """Somebody waits for the rows."""

    def settle(self, row: UsageRow) -> None:
        """Write `row` soon; harmless if it was written before."""
        self._waiting.append(row)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def flush(self) -> None:
        """Return when every row that waits now is written, or has failed."""
        if self._writer is not None:
            self._hurry.set()
            await asyncio.shield(self._writer)

    async def close(self) -> None:
        """Write what waits, then close the meter."""
        await self.flush()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._meter.close)
        self._thread.shutdown()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_SECONDS):
                    await self._hurry.wait()
            batch, self._waiting = self._waiting, []
            try:
                await loop.run_in_executor(self._thread, self._meter.settle, *batch)
            except StorageError as error:
                _log.error("%d usage rows were not written: %s", len(batch), error.message)
        self._hurry.clear()
        self._writer = None
