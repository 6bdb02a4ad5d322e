"""Server-sent events as the OpenAI SDKs read them.

Owns the frames: `data:` and a blank line, comment lines when it has been quiet, `[DONE]` at the
end. Refuses frames with an empty `data:` or only a name: they break both official SDKs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
from starlette.types import Send

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_PING = b": ping\n\n"
_DONE = b"data: [DONE]\n\n"
_FAREWELL_SECONDS = 5.0
"""Longest wait for a caller that does not read to take the last frame."""


class EventStream:
    """The answer of one request, frame by frame."""

    def __init__(self, send: Send, keepalive_seconds: float) -> None:
        self._send = send
        self._keepalive_seconds = keepalive_seconds
        self._last = 0.0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Send the head; while inside, silence is broken by comment lines."""
        await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        self._last = asyncio.get_running_loop().time()
        pings = asyncio.create_task(self._ping())
        try:
            yield
        finally:
            pings.cancel()

    async def data(self, *documents: msgspec.Struct) -> None:
        """Send `documents`, a frame each, in one write."""
        frames = [b"data: " + msgspec.json.encode(document) + b"\n\n" for document in documents]
        await self._write(b"".join(frames))

    async def done(self) -> None:
        """Say that nothing follows, and end."""
        await self._end(_DONE)

    async def fail(self, error: msgspec.Struct) -> None:
        """Send `error` and end without `[DONE]`: the answer is not complete."""
        await self._end(b"data: " + msgspec.json.encode(error) + b"\n\n")

    async def _write(self, frame: bytes) -> None:
        await self._send({"type": "http.response.body", "body": frame, "more_body": True})
        self._last = asyncio.get_running_loop().time()

    async def _end(self, frame: bytes) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._send({"type": "http.response.body", "body": frame, "more_body": False})

    async def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            quiet = loop.time() - self._last
            if quiet >= self._keepalive_seconds:
                await self._write(_PING)
                quiet = 0.0
            await asyncio.sleep(self._keepalive_seconds - quiet)
