"""Calls over a channel to a server of gRPC's own."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from appliance.shim.rpc import Call, Channel, RpcError, Status
from appliance.shim.rpc.call import MOST_BYTES, WINDOW
from tests.shim.rpc.server import Server, serving

T = TypeVar("T")


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:  # shorter than what pytest gives
        yield Path(directory) / "s"


@pytest.fixture
def server(socket: Path) -> Iterator[Server]:
    with serving(socket) as methods:
        yield methods


def run(socket: Path, body: Callable[[Channel], Awaitable[T]]) -> T:
    async def within() -> T:
        channel = Channel(socket)
        try:
            async with asyncio.timeout(120):
                return await body(channel)
        finally:
            await channel.close()

    return asyncio.run(within())


def there(channel: Channel) -> bool:
    return channel.connected


async def taken(call: Call) -> list[bytes]:
    messages: list[bytes] = []
    while more := await call.take():
        messages += more
    return messages


async def failure(call: Call) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await taken(call)
    return caught.value


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - it happens in another thread
        await asyncio.sleep(0.01)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 5 * 1024 * 1024])
def test_a_message_of_any_size_comes_and_goes(socket: Path, size: int) -> None:
    async def body(channel: Channel) -> None:
        assert await channel.call("/t/echo", b"x" * size).answer() == b"x" * size

    run(socket, body)


@pytest.mark.usefixtures("server")
def test_every_message_of_many_calls_comes_in_order(socket: Path) -> None:
    async def body(channel: Channel) -> list[list[bytes]]:
        calls = [channel.call("/t/count", b"%d" % (10 * n)) for n in range(40)]
        return list(await asyncio.gather(*map(taken, calls)))

    wanted = [[b"%d" % number for number in range(10 * n)] for n in range(40)]
    assert run(socket, body) == wanted


@pytest.mark.usefixtures("server")
def test_a_refusal_comes_with_its_words_and_its_metadata(socket: Path) -> None:
    async def body(channel: Channel) -> RpcError:
        return await failure(channel.call("/t/refuse", "nö: 100 %".encode()))

    error = run(socket, body)
    assert (error.status, error.message) == (Status.FAILED_PRECONDITION, "nö: 100 %")
    assert error.metadata["appliance-code"] == "because"


@pytest.mark.usefixtures("server")
def test_an_unknown_method_and_an_answer_too_many_are_errors(socket: Path) -> None:
    async def body(channel: Channel) -> None:
        assert (await failure(channel.call("/t/none", b""))).status is Status.UNIMPLEMENTED
        with pytest.raises(RpcError) as caught:
            await channel.call("/t/wrong", b"").answer()
        assert caught.value.status is Status.INTERNAL

    run(socket, body)


def test_a_call_ends_at_its_deadline_on_both_sides(socket: Path, server: Server) -> None:
    async def body(channel: Channel) -> RpcError:
        error = await failure(channel.call("/t/hang", b"", seconds=0.2))
        await until(server.gone.is_set)
        return error

    assert run(socket, body).status is Status.DEADLINE_EXCEEDED


def test_cancelling_reaches_the_server_and_later_calls_go_on(socket: Path, server: Server) -> None:
    async def body(channel: Channel) -> None:
        call = channel.call("/t/hang", b"")
        assert await call.take() == [b"first"]
        call.cancel()
        await until(server.gone.is_set)
        assert (await failure(call)).status is Status.CANCELLED
        assert await channel.call("/t/echo", b"on").answer() == b"on"

    run(socket, body)


def test_a_waiter_that_is_cancelled_cancels_its_call(socket: Path, server: Server) -> None:
    async def body(channel: Channel) -> None:
        waiting = asyncio.create_task(channel.call("/t/hang", b"").answer())
        await until(server.begun.is_set)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(server.gone.is_set)

    run(socket, body)


def test_who_does_not_read_is_sent_a_bounded_part_and_holds_nobody_up(
    socket: Path, server: Server
) -> None:
    async def body(channel: Channel) -> None:
        slow = channel.call("/t/flood", b"1000")
        await until(lambda: server.sent > 0)
        for _ in range(50):
            assert await channel.call("/t/echo", b"quick").answer() == b"quick"
        await asyncio.sleep(0.2)
        # What gRPC itself holds for the call comes on top of our window.
        assert server.sent <= 8 * WINDOW
        assert sum(map(len, await taken(slow))) == 1000 * 65536

    run(socket, body)


def test_calls_fail_while_nobody_is_there_and_work_when_somebody_is(socket: Path) -> None:
    async def body(channel: Channel) -> None:
        assert (await failure(channel.call("/t/echo", b""))).status is Status.UNAVAILABLE
        assert not there(channel)
        for _ in range(2):
            with serving(socket):
                assert await channel.call("/t/echo", b"here").answer() == b"here"
                assert there(channel)
                under_way = channel.call("/t/hang", b"")
                assert await under_way.take() == [b"first"]
            assert (await failure(under_way)).status is Status.UNAVAILABLE
            await until(lambda: not there(channel))
            assert (await failure(channel.call("/t/echo", b""))).status is Status.UNAVAILABLE

    run(socket, body)


def test_a_server_that_goes_away_ends_what_it_has_taken_on(socket: Path, server: Server) -> None:
    async def body(channel: Channel) -> None:
        call = channel.call("/t/hang", b"")
        assert await call.take() == [b"first"]
        server.go_away()
        await until(lambda: not there(channel))
        assert not call.ended
        server.release.set()
        assert await taken(call) == []

    run(socket, body)


@pytest.mark.usefixtures("server")
def test_calls_made_before_there_is_a_connection_share_one(socket: Path) -> None:
    async def body(channel: Channel) -> None:
        calls = [channel.call("/t/echo", b"%d" % n) for n in range(5)]
        calls[3].cancel()
        answers = [await call.answer() for call in calls if call is not calls[3]]
        assert answers == [b"0", b"1", b"2", b"4"]

    run(socket, body)


@pytest.mark.usefixtures("server")
def test_what_is_too_large_is_refused_here(socket: Path) -> None:
    async def body(channel: Channel) -> RpcError:
        return await failure(channel.call("/t/echo", bytes(MOST_BYTES + 1)))

    assert run(socket, body).status is Status.RESOURCE_EXHAUSTED


def test_closing_the_channel_cancels_what_runs(socket: Path, server: Server) -> None:
    async def body(channel: Channel) -> RpcError:
        call = channel.call("/t/hang", b"")
        assert await call.take() == [b"first"]
        await channel.close()
        await until(server.gone.is_set)
        return await failure(call)

    assert run(socket, body).status is Status.CANCELLED
