"""When to stop working on a request: nobody waits for it any more, or nobody may.

Owns the reasons: the caller hung up, the time is over, the shim is closing, the key was revoked
(revocation.py). Uvicorn does
not cancel a handler when its client goes away, so without this a lost request would compute to
its end. Work runs inside `guard()`; what must happen in any case (the audit record) runs outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

from starlette.types import Receive

from appliance.errors import UnavailableError
from appliance.shim.drain import Drain


class DisconnectedError(Exception):
    """The caller hung up. Never answered: there is nobody to answer."""


class Lifeline:
    """Watches one request from entering to leaving the context."""

    def __init__(self, receive: Receive, drain: Drain, seconds: float) -> None:
        self._receive = receive
        self._drain = drain
        self._seconds = seconds
        self._reason: Exception | None = None
        self._scope: asyncio.Timeout | None = None

    async def __aenter__(self) -> Lifeline:
        self._deadline = asyncio.get_running_loop().time() + self._seconds
        self._watch = asyncio.create_task(self._await_disconnect())
        self._drain.add(self._closing)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._drain.discard(self._closing)
        self._watch.cancel()

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Cancel the body as soon as there is a reason to, and raise that reason.

        Raises DisconnectedError, or UnavailableError with code `timeout` or `shutting_down`.
        """
        if self._reason is not None:
            raise self._reason
        try:
            async with asyncio.timeout_at(self._deadline) as self._scope:
                yield
        except TimeoutError:
            raise self._reason or UnavailableError(
                f"the request took longer than {self._seconds:g} seconds",
                hint="ask for fewer tokens, or have api.request_timeout_seconds raised",
                code="timeout",
            ) from None
        finally:
            self._scope = None

    async def _await_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.end(DisconnectedError())

    def _closing(self) -> None:
        self.end(
            UnavailableError(
                "the endpoint is being stopped", hint="try again shortly", code="shutting_down"
            )
        )

    def end(self, reason: Exception) -> None:
        """Give `reason` to stop, unless there is one already."""
        if self._reason is not None:
            return
        self._reason = reason
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())
