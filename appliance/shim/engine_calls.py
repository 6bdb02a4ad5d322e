"""Calls of gRPC that may be broken off without leaving anything behind.

grpc.aio frees what an operation of its core holds in the coroutine that waits for it, and only if
that gets to its end: one that is cancelled leaves the operation, and the message that came
meanwhile, in memory for good, half a kilobyte and more. So nobody's cancellation reaches such a
coroutine: it waits in a task of its own, and a call that is not wanted any more is ended in the
core, upon which the task ends by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

import grpc

A = TypeVar("A")


class EndedError(Exception):
    """The call was ended here."""


def end(call: grpc.aio.Call) -> None:
    """End `call` in the core; harmless when it is over."""
    # The public `cancel` cancels the coroutines that wait in it besides.
    call._cancel("it is not wanted any more")  # type: ignore[attr-defined]


async def answer_of(call: grpc.aio.UnaryUnaryCall[Any, A]) -> A:
    """The one answer to `call`. Being cancelled ends it.

    Raises AioRpcError, or EndedError after `end`.
    """
    waiting = asyncio.ensure_future(_answered(call))
    try:
        await asyncio.wait([waiting])
    except asyncio.CancelledError:
        end(call)
        waiting.add_done_callback(_forget)
        raise
    return waiting.result()


async def _answered(call: grpc.aio.UnaryUnaryCall[Any, A]) -> A:
    try:
        return await call
    except asyncio.CancelledError:
        raise EndedError from None


def _forget(waiting: asyncio.Task[Any]) -> None:
    if not waiting.cancelled():
        waiting.exception()  # else asyncio says that nobody looked


class Messages(Generic[A]):
    """The messages of `call`, read one ahead of who iterates, once.

    Whoever has them calls `close` in any case. The iteration raises AioRpcError, or EndedError
    after `end`; being cancelled does nothing to the call.
    """

    def __init__(self, call: grpc.aio.UnaryStreamCall[Any, A]) -> None:
        self._call = call
        self._read_ahead: asyncio.Queue[A | Exception | None] = asyncio.Queue(1)
        self._closed = False
        self._reader = asyncio.create_task(self._read())

    async def __aiter__(self) -> AsyncIterator[A]:
        while (item := await self._read_ahead.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def end(self) -> None:
        """End the call; whoever iterates is told."""
        end(self._call)

    def close(self) -> None:
        """Nobody iterates any more. Ends the call if it runs."""
        self._closed = True
        self.end()
        while not self._read_ahead.empty():  # the reader may wait for the room
            self._read_ahead.get_nowait()

    async def _read(self) -> None:
        last: Exception | None = None
        try:
            async for message in self._call:
                if not self._closed:
                    await self._read_ahead.put(message)
        except grpc.aio.AioRpcError as error:
            last = error
        except asyncio.CancelledError:
            last = EndedError()
        if not self._closed:
            await self._read_ahead.put(last)
