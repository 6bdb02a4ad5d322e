"""Calls to the engine can be broken off at any time, and leave nothing in memory."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import UnavailableError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.engine_client import EngineClient, GenerateStream
from tests.fakes.engine import CHAT, EMBEDDING, FakeEngine

TEXT = "one by one, " * 5
Futures = list[asyncio.Future[Any]]


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


@pytest.fixture
def engine(socket: Path) -> Iterator[FakeEngine]:
    with FakeEngine(socket) as made:
        yield made


@asynccontextmanager
async def connected(socket: Path) -> AsyncIterator[EngineClient]:
    client = EngineClient(socket)
    try:
        assert await client.models()
        yield client
    finally:
        await client.close()


def generating(client: EngineClient, number: int = 0) -> GenerateStream:
    request = pb.GenerateRequest(model=CHAT, request_id=f"r{number}", n=1, text=TEXT)
    request.sampling.max_tokens = len(TEXT)
    return client.generate(request)


def noting(loop: asyncio.AbstractEventLoop, found: Futures) -> Callable[[], asyncio.Future[Any]]:
    """`create_future` that notes what gRPC waits for: an operation in its core each."""
    create = loop.create_future

    def created() -> asyncio.Future[Any]:
        future = create()
        if "/grpc/" in sys._getframe(1).f_code.co_filename:
            found.append(future)
        return future

    return created


async def ended(found: Futures) -> None:
    """Returns when all operations have ended, and none follows."""
    seen = 0
    while seen != len(found):
        seen = len(found)
        await asyncio.wait(found)
        await asyncio.sleep(0.05)


async def reads(stream: GenerateStream) -> None:
    async for _ in stream.events:
        pass


@asynccontextmanager
async def left(work: Coroutine[Any, Any, object], after: float) -> AsyncIterator[None]:
    """`work`, cancelled `after` so many seconds."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(after)
    task.cancel()
    yield
    await asyncio.wait([task])


@pytest.mark.parametrize("after", [0.0, 0.02])
def test_no_operation_of_grpc_is_cancelled(socket: Path, engine: FakeEngine, after: float) -> None:
    """One that is is never freed, nor the message that it waited for."""
    engine.behaviour.seconds_per_step = 0.002

    async def break_off() -> Futures:
        loop = asyncio.get_running_loop()
        found: Futures = []
        async with connected(socket) as client:
            setattr(loop, "create_future", noting(loop, found))  # noqa: B010
            for number in range(10):
                stream = generating(client, number)
                async with left(reads(stream), after):
                    stream.cancel()
                embed = pb.EmbedRequest(model=EMBEDDING, request_id=f"e{number}")
                for call in (client.embed(embed), client.stats(), client.serving()):
                    async with left(call, after):
                        continue
            await ended(found)
        return found

    found = asyncio.run(break_off())
    assert len(found) >= 40
    assert not sum(future.cancelled() for future in found)


def test_who_reads_is_told_when_the_call_is_given_up(socket: Path, engine: FakeEngine) -> None:
    engine.behaviour.pause_after = 2

    async def give_up() -> None:
        async with connected(socket) as client:
            stream = generating(client)
            await stream.accepted()
            asyncio.get_running_loop().call_later(0.05, stream.give_up)
            with pytest.raises(UnavailableError) as refused:
                await reads(stream)
            assert refused.value.code == "engine_unavailable"
            stream.cancel()

    asyncio.run(give_up())


def test_a_reader_that_comes_late_gets_every_message(socket: Path, engine: FakeEngine) -> None:
    async def come_late() -> str:
        async with connected(socket) as client:
            stream = generating(client)
            await stream.accepted()
            await asyncio.sleep(0.1)
            parts = [event async for event in stream.events]
            stream.cancel()
        events = (each for part in parts for each in (part, *part.further))
        return "".join(event.delta.text for event in events if event.HasField("delta"))

    assert asyncio.run(come_late()) == TEXT
