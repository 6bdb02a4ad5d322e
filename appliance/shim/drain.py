"""Stopping without losing anybody: new requests are turned away, running ones may finish.

Owns the count of requests inside and the moment they are told to end. Refuses to stop the server;
server.py does that when `close` returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import UnavailableError

T = TypeVar("T")


class Drain:
    """The gate of one shim."""

    def __init__(self) -> None:
        self._closing = False
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._on_end: set[Callable[[], None]] = set()
        self._left: asyncio.Future[None] | None = None
        self._ended = False

    @property
    def inside(self) -> int:
        """Requests that are being worked on."""
        return self._inside

    def add(self, end: Callable[[], None]) -> None:
        """Call `end` when running requests must come to their end."""
        self._on_end.add(end)

    def discard(self, end: Callable[[], None]) -> None:
        """Forget `end`."""
        self._on_end.discard(end)

    def enter(self) -> None:
        """A request comes in. Raises UnavailableError with code `shutting_down`."""
        if self._closing:
            raise _stopping()
        self._inside += 1
        self._empty.clear()

    def leave(self) -> None:
        """A request that came in is done."""
        self._inside -= 1
        if not self._inside:
            self._empty.set()
        if self._left is not None and not self._left.done():
            self._left.set_result(None)

    async def left(self) -> None:
        """Return when a request has left."""
        if self._left is None or self._left.done():
            self._left = asyncio.get_running_loop().create_future()
        # Shielded: many may wait for the same one.
        await asyncio.shield(self._left)

    async def bounded(self, work: Callable[[], Awaitable[T]], when: float) -> T:
        """What `work` returns, if it does so before `when` of the loop's clock.

        Raises TimeoutError, or UnavailableError as soon as running requests must come to their end.
        """
        if self._ended:
            raise _stopping()
        try:
            async with asyncio.timeout_at(when) as scope:
                end = partial(_cut, scope)
                self._on_end.add(end)
                try:
                    return await work()
                finally:
                    self._on_end.discard(end)
        except TimeoutError:
            if self._ended:
                raise _stopping() from None
            raise

    async def close(self, seconds: float) -> None:
        """Turn new requests away; return when the last one has left.

        After `seconds` the running ones are told to end, which they do after their audit record.
        """
        self._closing = True
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            self._ended = True
            for end in list(self._on_end):
                end()
            await self._empty.wait()


def _cut(scope: asyncio.Timeout) -> None:
    if not scope.expired():
        scope.reschedule(asyncio.get_running_loop().time())


def _stopping() -> UnavailableError:
    return UnavailableError(
        "the endpoint is being stopped", hint="try again shortly", code="shutting_down"
    )


class DrainLayer:
    """Counts the requests that are inside."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._drain.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._drain.leave()
