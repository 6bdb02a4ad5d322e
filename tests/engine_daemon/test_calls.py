"""The way of events to the call that waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.output import Delta, Finished, FinishReason
from appliance.engine_daemon.calls import MOST_TOGETHER, Call, CallLedger, EmbedCall
from appliance.errors import NotFoundError


def end(index: int) -> Finished:
    return Finished(index, FinishReason.STOP, 1, 1, 0)


async def handed_on(call: Call, steps: list[list[Delta | Finished]]) -> list[list[object]]:
    """What a reader is given at a time, while the steps' events come one step after the other."""

    async def read() -> list[list[object]]:
        return [list(events) async for events in call.events()]

    reading = asyncio.create_task(read())
    for step in steps:
        for event in step:
            call.deliver(event)
        await asyncio.sleep(0)
    return await asyncio.wait_for(reading, 120)


@given(st.lists(st.integers(0, 2 * MOST_TOGETHER), max_size=6), st.integers(1, 3))
def test_every_event_is_handed_on_once_and_in_order(counts: list[int], sequences: int) -> None:
    numbers = iter(range(sum(counts)))
    steps: list[list[Delta | Finished]] = [
        [Delta(0, str(next(numbers)), tokens=1) for _ in range(count)] for count in counts
    ]
    steps.append([end(index) for index in range(sequences)])
    taken = asyncio.run(handed_on(Call("", sequences), steps))
    assert [event for events in taken for event in events] == [e for step in steps for e in step]
    assert all(1 <= len(events) <= MOST_TOGETHER for events in taken)


def test_what_came_while_nobody_read_is_handed_on_together() -> None:
    call = Call("", 1)
    steps: list[list[Delta | Finished]] = [
        [Delta(0, "a", tokens=1), Delta(0, "b", tokens=1), end(0)]
    ]
    assert asyncio.run(handed_on(call, steps)) == steps


def test_whoever_waits_for_the_counts_of_a_call_that_is_refused_hears_that_there_is_none() -> None:
    async def scenario(open_call: Callable[[CallLedger], Call | EmbedCall]) -> None:
        ledger = CallLedger()
        call = open_call(ledger)
        waiting = asyncio.create_task(call.settled())
        await asyncio.sleep(0)
        ledger.forget(call)
        with pytest.raises(NotFoundError):
            await asyncio.wait_for(waiting, 120)
        with pytest.raises(NotFoundError):
            ledger.get("a")

    asyncio.run(scenario(lambda ledger: ledger.open("a", 2)))
    asyncio.run(scenario(lambda ledger: ledger.open_whole("a")))
