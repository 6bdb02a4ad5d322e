"""Reads a request's body whole, up to a size and within a time.

Uvicorn has no deadline for a body; a caller that sends it byte by byte would hold a handler for
ever. Below this layer the body is one message, and `receive` then waits for the disconnect.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.errors import RequestError
from appliance.shim.lifeline import DisconnectedError


class LimitBodyLayer:
    """Refuses a body above `limit` bytes, by its announced length before it is read."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._limit:
                raise self._too_large()
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(receive)
        except TimeoutError:
            raise RequestError(
                f"the body did not arrive within {self._seconds:g} seconds", code="body_timeout"
            ) from None
        whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            if whole is None:
                return await receive()
            message, whole = whole, None
            return message

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limit:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> RequestError:
        return RequestError(
            f"the body is larger than {self._limit} bytes",
            hint="send less, or have api.max_body_bytes raised",
            code="body_too_large",
        )
