"""Reads a request's body whole, up to a size and within a time.

Uvicorn has no deadline for a body; a caller that sends it byte by byte would hold a handler for
ever. Below this layer the body is one message, and `receive` then waits for the disconnect. An
upload is handed down as it comes instead, up to a size of its own and within times of its own.
A body that is still coming when the endpoint stops is waited for as long as any running request.
"""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.errors import RequestError
from appliance.shim.batches.upload import too_large
from appliance.shim.drain import Drain
from appliance.shim.exchange import exchange_of
from appliance.shim.lifeline import DisconnectedError

_FORM_BYTES = 64 * 1024
"""Of an upload, around its file."""
_UPLOAD_SECONDS = 600.0


class LimitBodyLayer:
    """Refuses a body above `limit` bytes, by its announced length before it is read.

    `uploads` are routes whose bodies have a file of up to `file_limit` bytes; silence may last
    `seconds` in these.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        seconds: float,
        drain: Drain,
        *,
        uploads: frozenset[str] = frozenset(),
        file_limit: int = 0,
    ) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds
        self._drain = drain
        self._uploads = uploads
        self._file_limit = file_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST" and exchange_of(scope).route in self._uploads:
            await self._app(scope, self._bounded(scope, receive), send)
            return
        if announced(scope) > self._limit:
            raise self._too_large()
        try:
            end = asyncio.get_running_loop().time() + self._seconds
            body = await self._drain.bounded(partial(self._read, receive), end)
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

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` for an upload. Raises RequestError where it is too much or too slow."""
        most = self._file_limit + _FORM_BYTES
        if announced(scope) > most:
            raise too_large(self._file_limit)
        loop = asyncio.get_running_loop()
        end, size = loop.time() + _UPLOAD_SECONDS, 0

        async def bounded() -> Message:
            nonlocal size
            try:
                until = min(end, loop.time() + self._seconds)
                message = await self._drain.bounded(receive, until)
            except TimeoutError:
                raise RequestError("the file did not arrive in time", code="body_timeout") from None
            size += len(message.get("body", b""))
            if size > most:
                raise too_large(self._file_limit)
            return message

        return bounded

    def _too_large(self) -> RequestError:
        return RequestError(
            f"the body is larger than {self._limit} bytes",
            hint="send less, or have api.max_body_bytes raised",
            code="body_too_large",
        )


def announced(scope: Scope) -> int:
    """The length of the body that the head names; 0 if it names none."""
    values = [int(value) for name, value in scope["headers"] if name == b"content-length"]
    return max(values, default=0)
