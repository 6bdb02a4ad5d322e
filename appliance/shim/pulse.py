"""Noticing an engine that hangs while calls wait for it.

A killed engine closes its socket and every call fails at once; a stopped or stuck one keeps it open
and says nothing more. Owns asking it, while any call waits, whether it is still there, and giving
those calls up when it was not several times in a row, and calls that came later at each further
time, until it is heard again. Refuses to restart anything: that is the
supervisor's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

EVERY_SECONDS = 5.0
MISSES = 3
"""Answers in a row that did not come in time."""
_log = logging.getLogger(__name__)


class Waiting(Protocol):
    """A call that waits for the engine."""

    def give_up(self) -> None:
        """The engine hangs: end the wait with an error."""


class Pulse:
    """`answers()` is awaited to ask; False means that no answer came in time."""

    def __init__(
        self, answers: Callable[[], Awaitable[bool]], *, every_seconds: float = EVERY_SECONDS
    ) -> None:
        self._answers = answers
        self._every_seconds = every_seconds
        self._waiting: set[Waiting] = set()
        self._task: asyncio.Task[None] | None = None
        self.hangs = False
        """Calls were given up, and nothing was heard since."""

    def add(self, call: Waiting) -> None:
        """`call` waits from now on, until `discard`."""
        self._waiting.add(call)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())

    def discard(self, call: Waiting) -> None:
        """`call` does not wait any more; harmless if it did not."""
        self._waiting.discard(call)

    def close(self) -> None:
        """Stop asking."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        missed = 0
        while self._waiting or self.hangs:
            await asyncio.sleep(self._every_seconds)
            missed = 0 if await self._answers() else missed + 1
            self.hangs = missed >= MISSES
            if self.hangs and self._waiting:
                _log.error("the engine hangs: %d calls are given up", len(self._waiting))
                for call in list(self._waiting):
                    call.give_up()
                self._waiting.clear()
