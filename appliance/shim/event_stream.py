"""Server-sent events as the official SDKs read them.

Owns the frames: `data:` and a blank line, `event:` before it where an API names its events,
comment lines when it has been quiet, and the mark at the end. Refuses frames with an empty `data:`
or only a name: they break the OpenAI SDKs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import msgspec
from starlette.types import Send

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_ENCODER = msgspec.json.Encoder()
_PING = b": ping\n\n"
_FAREWELL_SECONDS = 5.0
"""Longest wait for a caller that does not read to take the last frame."""


@dataclass(frozen=True, slots=True)
class Framing:
    """How one API writes its frames. A named event's name is the tag of its struct."""

    named: bool
    done: bytes
    """What follows the last event of a complete answer."""

    def frame(self, document: msgspec.Struct) -> bytes:
        """The frame of `document`."""
        data = b"data: " + _ENCODER.encode(document) + b"\n\n"
        if not self.named:
            return data
        return f"event: {document.__struct_config__.tag}\n".encode("ascii") + data


CHUNKS = Framing(named=False, done=b"data: [DONE]\n\n")
"""Chat and completions."""
RESPONSE_EVENTS = Framing(named=True, done=b"data: [DONE]\n\n")
"""Responses; the mark is Open Responses', OpenAI's own SDKs take it as the end too."""
MESSAGE_EVENTS = Framing(named=True, done=b"")
"""Anthropic's messages."""


class EventStream:
    """The answer of one request, frame by frame."""

    def __init__(self, send: Send, keepalive_seconds: float, framing: Framing) -> None:
        self._send = send
        self._framing = framing
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
        """Send `documents`, a frame each, in one write; nothing if there are none."""
        if not documents:
            return
        await self._write(b"".join(map(self._framing.frame, documents)))

    async def done(self, *documents: msgspec.Struct) -> None:
        """Send the last `documents`, say that nothing follows, and end."""
        await self._end(b"".join(map(self._framing.frame, documents)) + self._framing.done)

    async def fail(self, *documents: msgspec.Struct) -> None:
        """Send `documents`, which say why, and end without the mark: the answer is not complete."""
        await self._end(b"".join(map(self._framing.frame, documents)))

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
