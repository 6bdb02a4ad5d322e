"""Calls to the engine can be broken off at any time, and leave nothing in memory."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import UnavailableError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.engine_client import EngineClient, GenerateStream
from appliance.shim.rpc import Call
from tests.fakes.engine import CHAT, EMBEDDING, FakeEngine

TEXT = "one by one, " * 5


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


async def reads(stream: GenerateStream) -> None:
    async for _ in stream.events():
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
def test_nothing_stays_of_calls_that_were_left(
    socket: Path, engine: FakeEngine, after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.behaviour.seconds_per_step = 0.002
    made: list[weakref.ref[Call]] = []
    create = Call.__init__

    def noted(call: Call, *given: Any) -> None:
        made.append(weakref.ref(call))
        create(call, *given)

    async def break_off() -> None:
        async with connected(socket) as client:
            for number in range(10):
                stream = generating(client, number)
                async with left(reads(stream), after):
                    stream.cancel()
                embed = pb.EmbedRequest(model=EMBEDDING, request_id=f"e{number}")
                for call in (client.embed(embed), client.stats(), client.serving()):
                    async with left(call, after):
                        continue
            assert await client.models(), "the connection goes on"
            del stream, call
            await asyncio.sleep(0)
            gc.collect()
            assert sum(one() is not None for one in made) == 0

    monkeypatch.setattr(Call, "__init__", noted)
    asyncio.run(break_off())
    # Who was cancelled before it began has not called.
    assert len(made) >= (42 if after else 12)


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


@pytest.mark.usefixtures("engine")
def test_a_reader_that_comes_late_gets_every_message(socket: Path) -> None:
    async def come_late() -> str:
        async with connected(socket) as client:
            stream = generating(client)
            await stream.accepted()
            await asyncio.sleep(0.1)
            events = [event async for together in stream.events() for event in together]
            stream.cancel()
        return "".join(event.delta.text for event in events if event.HasField("delta"))

    assert asyncio.run(come_late()) == TEXT
