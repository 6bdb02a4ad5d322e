"""The two loops: closed, where each stream waits for its answer, and open, where none does.

Owns when requests begin and how a level ends early. Refuses to hide a late start: in the open
loop a request's time runs from when it was due, so a client or server that falls behind shows.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from installer.bench.recorder import Recorder
from installer.bench.server import Clock
from installer.bench.workload import Level

Send = Callable[[int, Recorder], Awaitable[None]]
"""Send the prompt of that index and note the answer."""
Finished = Callable[[Recorder], None]


@dataclass(slots=True)
class Load:
    """One level on its way. `indices` numbers the prompts of the whole run."""

    send: Send
    clock: Clock
    indices: Iterator[int]
    finished: Finished
    stop: asyncio.Event
    """Set to end early: nothing new begins, and what is on its way is dropped."""
    recorders: list[Recorder] = field(default_factory=list)
    running: int = 0
    peak: int = 0

    async def run(self, level: Level, requests: int, *, seed: int) -> float:
        """Make `requests`; returns the seconds from the first one's begin to the last one's end."""
        begin = self.clock()
        if level.rate:
            work = self._open(level.rate, requests, seed, begin)
        else:
            work = self._closed(level.concurrency, requests)
        await self._unless_stopped(work)
        end = max((r.begin + r.sample.seconds for r in self.recorders), default=begin)
        for recorder in self.recorders:
            recorder.sample.begin = recorder.begin - begin
        return end - begin

    async def _unless_stopped(self, work: Awaitable[None]) -> None:
        running = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not running.done():
                running.cancel()
                await asyncio.wait((running,))
        if not running.cancelled():
            running.result()

    async def _closed(self, concurrency: int, requests: int) -> None:
        left = iter(range(requests))

        async def stream() -> None:
            for _ in left:
                await self._request(self.clock())

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(stream())

    async def _open(self, rate: float, requests: int, seed: int, begin: float) -> None:
        async with asyncio.TaskGroup() as group:
            for offset in itertools.islice(arrivals(rate, seed), requests):
                await asyncio.sleep(max(0.0, begin + offset - self.clock()))
                group.create_task(self._request(begin + offset))

    async def _request(self, due: float) -> None:
        recorder = Recorder(due)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await self.send(next(self.indices), recorder)
        finally:
            self.running -= 1
        self.recorders.append(recorder)
        self.finished(recorder)


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Seconds at which requests are due: a Poisson process of `rate` a second, from 0 on."""
    draw = random.Random(f"{seed}/arrivals/{rate}")  # noqa: S311
    due = 0.0
    while True:
        yield due
        due += draw.expovariate(rate)
