"""Uvicorn's HTTP parser with the limits it lacks.

A time and a size for a request's head, or a caller that sends it byte by byte, or without end,
would hold a connection and memory for ever; a time for taking what was sent, or one that does not
read would; a number of connections, or callers that only connect would use up the descriptors.
What is not HTTP at all is answered in the API's shape too. A protocol that a caller would rather
speak, such as HTTP/2 in clear, is not spoken; its request is answered as any other.
"""

from __future__ import annotations

import asyncio

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from appliance.errors import ApplianceError, RequestError, UnavailableError
from appliance.shim.caller_certificate import SCOPE_NAME, CallerCertificate
from appliance.shim.refusals import refusal

HEAD_SECONDS = 15.0
HEAD_BYTES = 64 * 1024
TAKE_SECONDS = 60.0
"""A caller that has not taken the waiting part of an answer after this is cut off."""
_UPGRADING = frozenset({b"upgrade", b"http2-settings"})
CONNECTIONS = 512
"""At once; half of the descriptors that a process has by default."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. The clock runs from a head's first byte to its end, and while the caller does
    not take what waits for it."""

    _head_timer: asyncio.TimerHandle | None = None
    _take_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _caller: CallerCertificate | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._caller = transport.get_extra_info(SCOPE_NAME)
        if len(self.connections) > CONNECTIONS:
            self._refuse(
                UnavailableError(
                    "too many connections are open",
                    hint="use fewer, or close those that are idle",
                    code="too_many_connections",
                )
            )
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        self._taken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._take_timer = self.loop.call_later(TAKE_SECONDS, self._not_taken)

    def resume_writing(self) -> None:
        self._taken()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            if not self.transport.is_closing():
                self.send_400_response("Invalid HTTP request received.")
            return
        if self._head_timer is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            self._bound_head(self._head_bytes)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._caller is not None:
            self.scope[SCOPE_NAME] = self._caller  # type: ignore[literal-required]
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._head_done()
        self._bound_head(sum(len(name) + len(value) + 4 for name, value in self.headers))
        if not (self._upgrade_asked or self.transport.is_closing()):
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not (self._upgrade_asked or self.transport.is_closing()):
            super().on_message_complete()

    @property
    def _upgrade_asked(self) -> bool:
        """Whether the parser takes what follows this head for another protocol's."""
        upgrades = self.parser.should_upgrade() and self._get_upgrade() is not None
        return upgrades and self.parser.get_method() != b"CONNECT"

    def _feed(self, data: bytes) -> None:
        """Parse; where another protocol is asked for, once more without that (RFC 9110, 7.8)."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._upgrade_asked and not self.transport.is_closing():
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self._feed(head + data[upgrade.args[0] :])

    def _head_without_upgrade(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode("ascii")
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() not in _UPGRADING)
            if name not in _UPGRADING:
                lines.append(b"%s: %s" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    def _bound_head(self, size: int) -> None:
        if size > HEAD_BYTES:
            self.send_400_response(f"the head of the request exceeds {HEAD_BYTES} bytes")

    def send_400_response(self, msg: str) -> None:
        self._refuse(RequestError(msg, code="invalid_http"))

    def _refuse(self, error: ApplianceError) -> None:
        self.transport.write(closing_answer(error))
        self.transport.close()

    def _taken(self) -> None:
        if self._take_timer is not None:
            self._take_timer.cancel()
            self._take_timer = None

    def _not_taken(self) -> None:
        self._take_timer = None
        self.transport.abort()

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


def closing_answer(error: ApplianceError) -> bytes:
    """All bytes of an answer that says `error` and that the connection ends."""
    answer = refusal(error)
    head = [
        STATUS_LINE[answer.status],
        b"content-type: application/json\r\n",
        b"content-length: %d\r\n" % len(answer.body),
        b"connection: close\r\n\r\n",
    ]
    return b"".join([*head, answer.body])
