"""Several engine streams as one, in the order in which events come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.engine_client import GenerateStream

_Item = list[pb.GenerateEvent] | Exception | None


async def merged(
    streams: Sequence[GenerateStream],
) -> AsyncGenerator[tuple[int, list[pb.GenerateEvent]], None]:
    """Events with the number of their stream. The first error of any ends all."""
    if len(streams) == 1:
        async for events in streams[0].events():
            yield 0, events
        return
    queue: asyncio.Queue[tuple[int, _Item]] = asyncio.Queue(maxsize=len(streams))
    pumps = [asyncio.create_task(_pump(n, stream, queue)) for n, stream in enumerate(streams)]
    try:
        running = len(streams)
        while running:
            number, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield number, item
    finally:
        for pump in pumps:
            pump.cancel()
        for pump in pumps:
            with suppress(asyncio.CancelledError):
                await pump


async def _pump(
    number: int, stream: GenerateStream, queue: asyncio.Queue[tuple[int, _Item]]
) -> None:
    end: Exception | None = None
    try:
        async for events in stream.events():
            await queue.put((number, events))
    except Exception as error:
        end = error
    await queue.put((number, end))
