"""Files and batches of a node: opened as the operator allows, and brought to their ends.

Owns the database, the batches that have not ended and the broom. What an earlier end of the
endpoint cut off goes on from where the audit log says that it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from appliance.config import Config
from appliance.errors import ApplianceError, ConflictError
from appliance.shim.batches import schema
from appliance.shim.batches.batch_store import BatchStore, StoredBatch
from appliance.shim.batches.file_store import FileStore
from appliance.shim.batches.office import Office
from appliance.shim.batches.run import Run
from appliance.shim.content_database import ContentDatabase, delete_content

_SWEEP_SECONDS = 60.0
_log = logging.getLogger(__name__)


class Batches:
    """The batches of this process."""

    def __init__(self, config: Config) -> None:
        self._db = ContentDatabase(
            config.layout.files_db,
            schema.VERSION,
            schema.create,
            what="files and batches",
            hint="have the operator check the disk",
        )
        self.file_seconds = int(config.api.stored_file_hours * 3600)
        self.files = FileStore(self._db, config.api.max_stored_bytes)
        self.batches = BatchStore(self._db, self.file_seconds)
        self._runs: dict[str, tuple[Run, asyncio.Task[None]]] = {}
        self._office: Office | None = None
        self._broom: asyncio.Task[None] | None = None

    async def recover(self, ended_well: Callable[[str], bool]) -> None:
        """Put right what the last end cut off; `ended_well` says it of a request, by the log."""
        await self.files.discard_unfinished()
        removed = await self.batches.recover(ended_well)
        if removed:
            _log.warning("%d lines of batches were cut off and will run again", removed)

    async def open(self, office: Office) -> None:
        """Go on with every batch that has not ended."""
        self._office = office
        self._broom = asyncio.create_task(self._sweep())
        for batch in await self.batches.running():
            self.begin(batch)

    def begin(self, batch: StoredBatch) -> None:
        """Start to work on `batch`."""
        assert self._office is not None, "opened before anybody can ask"
        run = Run(self._office, batch)
        task = asyncio.create_task(self._live(batch.id, run))
        self._runs[batch.id] = run, task
        self._count()

    async def cancel(self, batch: StoredBatch) -> None:
        """Begin to cancel it. Raises ConflictError if it has ended."""
        if batch.id not in self._runs:
            raise ConflictError("the batch has ended")
        await self._runs[batch.id][0].cancel()

    async def close(self) -> None:
        """Let go of what has not ended."""
        tasks = [task for _, task in self._runs.values()]
        if self._broom is not None:
            tasks.append(self._broom)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def close_file(self) -> None:
        """Close the database; nothing may run any more."""
        await self._db.close()

    async def _live(self, batch_id: str, run: Run) -> None:
        try:
            await run.live()
        finally:
            del self._runs[batch_id]
            self._count()

    def _count(self) -> None:
        assert self._office is not None
        self._office.metrics.batches(len(self._runs))

    async def _sweep(self) -> None:
        while True:
            try:
                await self.files.sweep()
                await self.batches.sweep()
            except ApplianceError as error:
                _log.error("files were not swept: %s", error.message)
            await asyncio.sleep(_SWEEP_SECONDS)


@asynccontextmanager
async def kept_files(
    config: Config, outcome: Callable[[str], str]
) -> AsyncIterator[Batches | None]:
    """The files and batches; None if there are none to be, and then nothing is left either.

    `outcome` says how a request ended, by the audit log; it is asked before this yields.
    """
    if not config.api.store_files:
        delete_content(config.layout.files_db)
        yield None
        return
    kept = Batches(config)
    try:
        await kept.recover(lambda request_id: outcome(request_id) == "ok")
        yield kept
    finally:
        await kept.close_file()
