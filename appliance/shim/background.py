"""Work that goes on after its request was answered.

Owns the running tasks and how one is told to stop. A task counts as a request inside, so that a
graceful stop waits for it; its lifeline hangs on an event instead of a connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from starlette.types import Message, Receive

from appliance.shim.drain import Drain

T = TypeVar("T")
_log = logging.getLogger(__name__)


class _HangUp:
    """A caller that stays on the line until it is told to hang up."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def receive(self) -> Message:
        await self.event.wait()
        return {"type": "http.disconnect"}


@dataclass(frozen=True, slots=True)
class _Running:
    task: asyncio.Task[None]
    hang_up: asyncio.Event


class Background:
    """The tasks of this process, by the id of what they make."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}

    async def start(
        self,
        drain: Drain,
        name: str,
        work: Callable[[Receive, asyncio.Future[T]], Awaitable[None]],
    ) -> T:
        """Begin `work`; returns what it puts into the future, or raises what it raises before."""
        drain.enter()
        hang_up = _HangUp()
        begun: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run(drain, name, work(hang_up.receive, begun), begun))
        self._running[name] = _Running(task, hang_up.event)
        # Shielded: the caller may hang up while it waits, the work goes on.
        return await asyncio.shield(begun)

    async def cancel(self, name: str) -> None:
        """Stop the work called `name`, if it runs, and wait until it has ended."""
        running = self._running.get(name)
        if running is not None:
            running.hang_up.set()
            await asyncio.wait([running.task])

    async def _run(
        self, drain: Drain, name: str, work: Awaitable[None], begun: asyncio.Future[T]
    ) -> None:
        try:
            await work
        except Exception as error:
            if not begun.done():
                begun.set_exception(error)
            else:
                _log.error("%s: %s", name, type(error).__name__)
        finally:
            del self._running[name]
            drain.leave()
