"""The endpoint over an engine that computes nothing: what a request costs, and what an event does.

The endpoint has one processor to itself, as far as the machine lets it; engine and callers share
the others. What counts is its own processor time, all threads included: answers over the seconds
that it was on a processor, whoever else was.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.config import Layout
from bench_overhead.caller import Callers, Counts, encoded
from bench_overhead.daemons import Daemon, daemon, prepare
from tests.fakes.engine import CHAT

ANSWER = "fine"
"""Four characters, so four tokens and the end."""
PIECES = 256
TOGETHER = (1, 16)
"""Events in one message of the engine: as of one sequence that runs alone, and as where more are
ready at once, because tokens were guessed, or the reader is slower than the engine."""


@dataclass(frozen=True)
class Work:
    """One kind of request, and what of its answers is counted."""

    name: str
    body: Mapping[str, object]
    unit: str
    callers: int

    def units(self, counts: Counts) -> int:
        return counts.answers if self.unit == "requests" else counts.events


@dataclass(frozen=True)
class Figures:
    """Of one measurement: a second of the clock, and a second of the endpoint's processor."""

    per_second: float
    per_processor_second: float
    share: float
    """Of the time in which the endpoint was on a processor."""


def works(callers: int) -> list[Work]:
    asked: dict[str, object] = {
        "model": CHAT,
        "messages": [{"role": "user", "content": ANSWER}],
        "reasoning_effort": "none",
    }
    stream = asked | {"stream": True, "ignore_eos": True, "max_tokens": PIECES}
    return [
        Work("short answers", asked, "requests", callers),
        Work(f"streams of {PIECES} events", stream, "events", callers),
    ]


@contextmanager
def node(
    root: Path, together: int, module: str = "appliance.shim"
) -> Iterator[tuple[Daemon, int, str]]:
    """The endpoint, its port and a key's secret; the engine sends so many events `together`."""
    port, secret = prepare(root)
    first, *others = sorted(os.sched_getaffinity(0))
    others = others or [first]
    os.sched_setaffinity(0, others)
    socket = Layout(root).engine_socket
    with (
        daemon(
            "bench_overhead.null_engine", socket, str(together),
            processors=others, errors=root / "engine.log",
        ),
        daemon(module, "--root", root, processors=[first], errors=root / "shim.log") as shim,
    ):  # fmt: skip
        yield shim, port, secret


async def measure(shim: Daemon, port: int, secret: str, work: Work, seconds: float) -> Figures:
    """`work` for so many seconds, after a short while to warm up."""
    async with Callers(port, encoded(port, secret, work.body), work.callers) as counts:
        await asyncio.sleep(min(1.0, seconds / 4))
        before, used, start = work.units(counts), shim.processor_seconds, time.perf_counter()
        await asyncio.sleep(seconds)
        done = work.units(counts) - before
        spent, passed = shim.processor_seconds - used, time.perf_counter() - start
    return Figures(done / passed, done / spent, spent / passed)


async def rounds(
    shim: Daemon, port: int, secret: str, callers: int, seconds: float, count: int
) -> dict[str, list[Figures]]:
    """Every work in turn, `count` times."""
    found: dict[str, list[Figures]] = {work.name: [] for work in works(callers)}
    for _ in range(count):
        for work in works(callers):
            found[work.name].append(await measure(shim, port, secret, work, seconds))
    return found


def show(found: Mapping[str, list[Figures]], callers: int, together: int) -> None:
    for work in works(callers):
        figures = found[work.name]
        rate = statistics.median(f.per_second for f in figures)
        able = statistics.median(f.per_processor_second for f in figures)
        share = statistics.median(f.share for f in figures)
        print(
            f"{work.name}, up to {together} in a message, {callers} callers: "
            f"{rate:,.0f} {work.unit}/s came while the endpoint was on its processor for "
            f"{share:.0%} of the time; "
            f"a whole one: {able:,.0f} {work.unit}/s, {1e6 / able:.1f} us each",
            flush=True,
        )
