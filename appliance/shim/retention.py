"""Prunes the audit log while the endpoint runs, if the operator set how long records are kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from appliance.audit import AuditLog
from appliance.config import Config
from appliance.errors import ApplianceError
from appliance.metering import prune_settled

_EVERY_SECONDS = 3600.0
_log = logging.getLogger(__name__)


@asynccontextmanager
async def retention(config: Config, log: AuditLog) -> AsyncIterator[None]:
    """While in it, records older than `audit.retention_days` are pruned, at once and hourly."""
    if not config.audit.retention_days:
        yield
        return
    task = asyncio.create_task(_prune_forever(config, log))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _prune_forever(config: Config, log: AuditLog) -> None:
    while True:
        pruning = asyncio.create_task(asyncio.to_thread(_prune, config, log))
        try:
            await asyncio.shield(pruning)
        finally:
            await pruning  # a thread cannot be cancelled, and the log stays open for it
        await asyncio.sleep(_EVERY_SECONDS)


def _prune(config: Config, log: AuditLog) -> None:
    try:
        count = prune_settled(log, config.layout, config.audit.retention_days)
    except ApplianceError as error:
        _log.error("the audit log was not pruned: %s", error.message)
    else:
        if count:
            _log.info("%d audit records were pruned", count)
