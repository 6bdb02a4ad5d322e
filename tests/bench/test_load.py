"""The loops begin requests when they should, and end early when told."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from installer.bench.load import Load, arrivals
from installer.bench.recorder import Recorder
from installer.bench.workload import Level

Send = Callable[[int, Recorder], Awaitable[None]]


class Clock:
    """Moves by one second whenever a request is answered, and only then."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def load(send: Send, clock: Callable[[], float]) -> Load:
    return Load(send, clock, itertools.count(), lambda _: None, asyncio.Event())


@settings(deadline=None)
@given(concurrency=st.integers(1, 8), requests=st.integers(1, 30))
def test_the_closed_loop_keeps_its_streams_busy_and_no_more(
    concurrency: int, requests: int
) -> None:
    clock = Clock()
    indices: list[int] = []

    async def send(index: int, recorder: Recorder) -> None:
        indices.append(index)
        await asyncio.sleep(0)
        clock.now += 1
        recorder.feed(b"data: [DONE]\n\n", clock.now)
        recorder.close(clock.now)

    async def run() -> tuple[Load, float]:
        made = load(send, clock)
        return made, await made.run(Level(concurrency=concurrency), requests, seed=0)

    made, seconds = asyncio.run(run())
    assert sorted(indices) == list(range(requests))
    assert made.peak == min(concurrency, requests)
    assert made.running == 0
    assert seconds == requests
    assert min(recorder.sample.begin for recorder in made.recorders) == 0


def test_in_the_open_loop_time_runs_from_when_a_request_was_due() -> None:
    """The clock is far ahead at once, so every request begins late."""
    times = itertools.chain([0.0], itertools.repeat(1000.0))

    async def send(index: int, recorder: Recorder) -> None:
        recorder.fail("whatever", 1001.0)

    async def run() -> Load:
        made = load(send, lambda: next(times))
        await made.run(Level(rate=2.0), 5, seed=7)
        return made

    made = asyncio.run(run())
    due = list(islice(arrivals(2.0, 7), 5))
    assert [recorder.begin for recorder in made.recorders] == due
    assert [r.sample.seconds for r in made.recorders] == [1001.0 - time for time in due]


def test_the_open_loop_does_not_wait_for_answers() -> None:
    times = itertools.chain([0.0], itertools.repeat(1000.0))
    all_begun = asyncio.Event()

    async def run() -> Load:
        async def send(index: int, recorder: Recorder) -> None:
            if index == 9:
                all_begun.set()
            await all_begun.wait()
            recorder.fail("whatever", 1001.0)

        made = load(send, lambda: next(times))
        await made.run(Level(rate=1.0), 10, seed=0)
        return made

    assert asyncio.run(run()).peak == 10


def test_arrivals_are_seeded_ascending_and_have_the_rate_asked_for() -> None:
    due = list(islice(arrivals(4.0, 1), 4000))
    assert due == list(islice(arrivals(4.0, 1), 4000))
    assert due != list(islice(arrivals(4.0, 2), 4000))
    assert due[0] == 0
    assert due == sorted(due)
    assert due[-1] == pytest.approx(1000, rel=0.1)


def test_stopping_drops_what_is_on_its_way_and_keeps_what_was_answered() -> None:
    async def run() -> Load:
        async def send(index: int, recorder: Recorder) -> None:
            if index == 2:
                made.stop.set()
                await asyncio.Event().wait()
            recorder.fail("whatever", 1.0)

        made = load(send, lambda: 0.0)
        await made.run(Level(concurrency=1), 10, seed=0)
        return made

    made = asyncio.run(run())
    assert len(made.recorders) == 2
    assert made.running == 0


def test_a_bug_in_sending_is_not_swallowed() -> None:
    async def send(index: int, recorder: Recorder) -> None:
        raise ZeroDivisionError

    async def run() -> None:
        await load(send, lambda: 0.0).run(Level(concurrency=2), 4, seed=0)

    with pytest.raises(ExceptionGroup):
        asyncio.run(run())
