"""Usage rows on their way into the usage database.

Owns one thread and batches: rows that come while a transaction runs, or shortly after the first
of them, go into the next one, since a transaction costs more than several rows do. The audit
record is the truth and the table its projection, so no answer waits for it. Rows that cannot be
written, on a full disk for instance, are kept and tried again; what is not written when the
endpoint ends, or is too much to keep, is made up for from the log at the next start.
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
RETRY_SECONDS = 1.0
MOST = 10_000
"""Rows that are kept while none can be written."""
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
        self._retry: asyncio.TimerHandle | None = None

    def settle(self, row: UsageRow) -> None:
        """Write `row` soon; harmless if it was written before."""
        self._waiting.append(row)
        if self._retry is None:
            self._begin()

    async def flush(self) -> None:
        """Return when every row that waits now is written, or has failed."""
        if self._writer is not None:
            self._hurry.set()
            await asyncio.shield(self._writer)

    async def close(self) -> None:
        """Write what waits, then close the meter."""
        await self.flush()
        self._begin()
        await self.flush()
        self._forget_retry()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._meter.close)
        self._thread.shutdown()

    def _begin(self) -> None:
        self._forget_retry()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    def _forget_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and self._retry is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_SECONDS):
                    await self._hurry.wait()
            batch, self._waiting = self._waiting, []
            try:
                await loop.run_in_executor(self._thread, self._meter.settle, *batch)
            except StorageError as error:
                _log.error("%d usage rows were not written: %s", len(batch), error.message)
                self._waiting = [*batch, *self._waiting][-MOST:]
                self._retry = loop.call_later(RETRY_SECONDS, self._begin)
        self._hurry.clear()
        self._writer = None
