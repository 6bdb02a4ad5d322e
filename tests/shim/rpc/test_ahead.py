"""A call that is opened before anybody makes it: never in the way, and worth a head."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from appliance.shim.rpc import RpcError, Status
from tests.shim.rpc.wire import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    LAST_STREAM,
    MAX_CONCURRENT_STREAMS,
    METHOD,
    RST_STREAM,
    Talk,
    answer,
    frame,
    message,
    reset,
    setting,
    taken,
)


def run(body: Callable[[Talk], Coroutine[Any, Any, None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(120):
            await body(Talk(METHOD))

    asyncio.run(within())


async def opened(talk: Talk) -> int:
    """The stream that is opened behind the end of a first call."""
    call = talk.start()
    await talk.said()
    talk.hear(answer(call.stream, b"x"))
    assert await taken(call) == [b"x"]
    ((kind, flags, stream, _),) = await talk.said()
    assert (kind, flags) == (HEADERS, END_HEADERS)
    return stream


def test_the_next_call_sends_its_request_alone() -> None:
    async def body(talk: Talk) -> None:
        stream = await opened(talk)
        call = talk.start(b"two")
        assert call.stream == stream
        assert await talk.said() == [(DATA, END_STREAM, stream, message(b"two"))]
        talk.hear(answer(stream, b"2"))
        assert await taken(call) == [b"2"]

    run(body)


def test_only_one_is_opened_and_only_behind_a_call_that_ended() -> None:
    async def body(talk: Talk) -> None:
        calls = [talk.start() for _ in range(3)]
        assert [f[0] for f in await talk.said() if f[0] == HEADERS] == [HEADERS] * 3
        for call in calls:
            talk.hear(answer(call.stream, b"x"))
        assert [f[0] for f in await talk.said()].count(HEADERS) == 1

    run(body)


def test_a_call_of_another_method_has_a_stream_of_its_own() -> None:
    async def body(talk: Talk) -> None:
        stream = await opened(talk)
        other = talk.start(path="/t/other")
        assert other.stream == stream + 2
        assert talk.start().stream == stream

    run(body)


def test_one_that_the_server_ended_is_not_used() -> None:
    async def body(talk: Talk) -> None:
        stream = await opened(talk)
        talk.hear(reset(stream, 7))
        call = talk.start(b"three")
        assert call.stream == stream + 2
        assert [f[0] for f in await talk.said()] == [HEADERS, DATA]

    run(body)


def test_it_does_not_keep_a_connection_that_the_server_leaves() -> None:
    async def body(talk: Talk) -> None:
        stream = await opened(talk)
        talk.hear(frame(GOAWAY, 0, 0, (2**31 - 1).to_bytes(4, "big") + bytes(4)))
        assert [f[::2] for f in await talk.said()] == [(RST_STREAM, stream)]
        assert talk.wire.ended
        assert talk.retired == 1

    run(body)


def test_a_server_that_takes_one_call_at_a_time_takes_that_one() -> None:
    async def body(talk: Talk) -> None:
        stream = await opened(talk)
        talk.hear(setting(MAX_CONCURRENT_STREAMS, 1))
        assert (RST_STREAM, stream) in [f[::2] for f in await talk.said()]
        for number in (stream + 2, stream + 4):
            call = talk.start()
            assert call.stream == number
            talk.hear(answer(number, b"x"))
            assert await taken(call) == [b"x"]
        assert [f[0] for f in await talk.said()].count(HEADERS) == 2

    run(body)


def test_a_call_that_takes_it_when_the_server_has_just_ended_it_ends_alone() -> None:
    async def body(talk: Talk) -> None:
        talk.hear(setting(MAX_CONCURRENT_STREAMS, 2))
        stream = await opened(talk)
        before = talk.start(path="/t/other")
        late = talk.start(b"late")
        talk.hear(answer(before.stream, b"x") + reset(stream, 7))
        with pytest.raises(RpcError) as caught:
            await taken(late)
        assert caught.value.status is Status.UNAVAILABLE
        assert await taken(before) == [b"x"]
        assert talk.connection.usable
        assert not talk.wire.ended

    run(body)


def test_the_last_number_of_a_connection_is_a_calls() -> None:
    async def body(talk: Talk) -> None:
        first = talk.start()
        talk.connection._http.highest_outbound_stream_id = LAST_STREAM - 2
        talk.hear(answer(first.stream, b"x"))
        last = talk.start(path="/t/other")
        assert (last.stream, talk.retired) == (LAST_STREAM, 1)

    run(body)


def test_a_lost_connection_leaves_nothing_of_it() -> None:
    async def body(talk: Talk) -> None:
        await opened(talk)
        talk.connection.connection_lost(None)
        assert talk.retired == 1
        assert await talk.said() == []

    run(body)
