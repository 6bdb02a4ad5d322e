"""Telling the supervisor that the daemon lives, as long as it does.

Owns the judgement: the event loop runs, because this does, and no model's step has lasted longer
than any step may. Loading a model may hold everything up for a while, and that is said before.
Refuses to end anything itself: who hears nothing for too long kills the daemon and starts it again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from appliance.service import PING_SECONDS, SILENCE_SECONDS, notify_alive

STEP_SECONDS = 600.0
"""Longer than the slowest step of a large model on a slow processor."""
LOADING_SECONDS = 1800.0
"""As long as loading a model may take; the unit's TimeoutStartSec says the same."""
_log = logging.getLogger(__name__)


class Work(Protocol):
    """What the daemon is doing."""

    @property
    def is_loading(self) -> bool: ...
    @property
    def step_seconds(self) -> float:
        """How long the longest step under way has lasted."""


def say(work: Work) -> None:
    """Say once that the daemon lives, if it does."""
    if work.step_seconds >= STEP_SECONDS:
        _log.error("a step has lasted %.0f s: the daemon hangs", work.step_seconds)
    else:
        notify_alive(LOADING_SECONDS if work.is_loading else SILENCE_SECONDS)


async def tell(work: Work) -> None:
    """Say it until cancelled."""
    while True:
        say(work)
        await asyncio.sleep(PING_SECONDS)
