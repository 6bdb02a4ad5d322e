"""The way into the engine for lines of batches: when others leave room.

Owns how many lines run at once over all batches. A line counts as a request inside; one begins
while the engine has a slot for it and another one for whoever comes next, and one line may always
run, so that a batch gets on beside a constant load. What goes first is decided by the engine, where
lines have the lowest priority.
"""

from __future__ import annotations

import asyncio

from appliance.shim.drain import Drain

PRIORITY = -100
"""Of a line in the engine."""


class Gate:
    """Batches take turns: each asks for one line at a time."""

    def __init__(self, drain: Drain) -> None:
        self._drain = drain
        self._turn = asyncio.Lock()
        self._lines = 0

    @property
    def lines(self) -> int:
        """Lines that run."""
        return self._lines

    async def enter(self, slots: int) -> None:
        """Wait until a line may begin for a model that runs so many sequences at once.

        Raises UnavailableError with code `shutting_down`.
        """
        async with self._turn:
            while self._lines and self._drain.inside >= slots - 1:
                await self._drain.left()
            self._drain.enter()
            self._lines += 1

    def leave(self) -> None:
        """A line has ended."""
        self._lines -= 1
        self._drain.leave()
