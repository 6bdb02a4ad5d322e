"""Uvicorn's HTTP parser with the limits it lacks: a time and a size for a request's head.

Without them a caller that sends its head byte by byte, or without end, would hold a connection
and memory for ever. What is not HTTP at all is answered in the API's shape too.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from appliance.errors import RequestError
from appliance.shim.refusals import refusal

HEAD_SECONDS = 15.0
HEAD_BYTES = 64 * 1024


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. The clock runs from a head's first byte to its end."""

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_timer is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.send_400_response(f"the head of the request exceeds {HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._head_done()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        answer = refusal(RequestError(msg, code="invalid_http"))
        head = [
            STATUS_LINE[answer.status],
            b"content-type: application/json\r\n",
            b"content-length: %d\r\n" % len(answer.body),
            b"connection: close\r\n\r\n",
        ]
        self.transport.write(b"".join([*head, answer.body]))
        self.transport.close()

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_late)

    def _head_done(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()
