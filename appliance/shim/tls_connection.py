"""One connection that has to speak TLS: between the socket and the HTTP protocol.

Owns the handshake, its deadline and its clear end (the alert is sent, and read before the
connection is reset), then the passing on of bytes in both directions. The event loop's own TLS does
not send the alert of a handshake that fails, so a caller without a certificate would not learn why.
What is no TLS at all but HTTP is told so in plain text. Refuses to hold anything back: what is
written is encrypted at once, and the socket's own flow control is the caller's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from appliance.errors import RequestError
from appliance.shim.caller_certificate import SCOPE_NAME, CallerCertificate, caller_certificate
from appliance.shim.http_protocol import BoundedHttpProtocol, closing_answer
from appliance.tls.contexts import ServerContexts

HANDSHAKE_SECONDS = 10.0
LINGER_SECONDS = 2.0
"""How long a caller that was refused may take to read why."""
_READ_BYTES = 256 * 1024
_HANDSHAKE_RECORD = 0x16
"""ContentType of a TLSPlaintext, RFC 8446 section 5.1: the first byte of every ClientHello."""
_MISSING = "PEER_DID_NOT_RETURN_A_CERTIFICATE"
_UNVERIFIED = "CERTIFICATE_VERIFY_FAILED"
_CODES = {
    _MISSING: "client_certificate_missing",
    _UNVERIFIED: "client_certificate_refused",
    "UNSUPPORTED_PROTOCOL": "tls_version",
}


class Front(Protocol):
    """Where connections arrive: what each of them asks, and tells."""

    @property
    def contexts(self) -> ServerContexts:
        """The certificate that new connections are shown, and whom they believe."""

    def arrived(self, connection: TlsConnection, peer: str, here: str, established: int) -> bool:
        """A connection begins its handshake, beside so many that are HTTP's; false: it may not."""

    def greeted(self, connection: TlsConnection) -> None:
        """It is HTTP's now, or gone. May be said more than once."""

    def failed(self, peer: str, code: str) -> None:
        """Its handshake was refused."""


class TlsConnection(asyncio.Protocol):
    """The socket's side."""

    def __init__(self, front: Front, http: BoundedHttpProtocol) -> None:
        self._front = front
        self._http = http
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._loop = asyncio.get_running_loop()
        self._feed: Callable[[bytes], None] = self._begin
        self._timer: asyncio.TimerHandle | None = None
        self._open = False
        self._peer = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a handshake."""
        self._raw = transport
        self._peer, here = _address(transport, "peername"), _address(transport, "sockname")
        if not self._front.arrived(self, self._peer, here, len(self._http.connections)):
            transport.abort()
            return
        context = self._front.contexts.in_force()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._timer = self._loop.call_later(HANDSHAKE_SECONDS, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """However it ended."""
        self._greeted()
        self._feed = _discard
        if self._open:
            self._open = False
            self._http.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes from the socket."""
        self._feed(data)

    def eof_received(self) -> None:
        """The caller sends nothing more: the transport is closed, as None asks."""

    def pause_writing(self) -> None:
        """The caller does not take what was sent."""
        if self._open:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        if self._open:
            self._http.resume_writing()

    def write(self, data: bytes) -> None:
        """Encrypt and send; nothing after the connection was closed."""
        if self._open and not self._raw.is_closing():
            view = memoryview(data)
            while view:
                view = view[self._tls.write(view) :]
            self._flush()

    def close(self) -> None:
        """Say that it ends (close_notify, RFC 8446 section 6.1), send what waits, and close."""
        if self._open and not self._raw.is_closing():
            self._feed = _discard
            # The caller has not said the same yet, and need not.
            with suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush()
            self._raw.close()

    def abort(self) -> None:
        """End it at once."""
        self._raw.abort()

    def _begin(self, data: bytes) -> None:
        """The first bytes: is it TLS?"""
        if data[0] == _HANDSHAKE_RECORD:
            self._feed = self._shake_hands
            self._shake_hands(data)
        else:
            self._fail("tls_required" if data[:1].isupper() else "tls_garbage")

    def _shake_hands(self, data: bytes) -> None:
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError as error:
            self._flush()  # the alert
            self._fail(_CODES.get(error.reason or "", "tls_handshake"))
        else:
            self._greeted()
            self._flush()
            self._connect()

    def _connect(self) -> None:
        der = self._tls.getpeercert(binary_form=True)
        self._feed = self._pass_on
        self._open = True
        caller = caller_certificate(der) if der else None
        self._http.connection_made(TlsTransport(self, self._raw, self._tls, caller))
        self._read()

    def _pass_on(self, data: bytes) -> None:
        self._incoming.write(data)
        self._read()

    def _read(self) -> None:
        """Hand on what is complete; TLS may have an answer of its own (a key update)."""
        try:
            while self._open and not self._raw.is_closing():
                piece = self._tls.read(_READ_BYTES)
                if not piece:
                    self.close()
                    return
                self._http.data_received(piece)
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLZeroReturnError:
            self.close()
        except ssl.SSLError:
            self._flush()
            self._raw.close()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._raw.write(self._outgoing.read())

    def _fail(self, code: str) -> None:
        """The handshake will not be complete: say why, and leave time to read it."""
        self._front.failed(self._peer, code)
        if code == "tls_required":
            self._raw.write(closing_answer(_in_clear()))
        self._feed = _discard
        self._on_time()
        if self._raw.can_write_eof():
            self._raw.write_eof()
        self._timer = self._loop.call_later(LINGER_SECONDS, self._raw.abort)

    def _too_slow(self) -> None:
        self._front.failed(self._peer, "tls_timeout")
        self._raw.abort()

    def _greeted(self) -> None:
        self._front.greeted(self)
        self._on_time()

    def _on_time(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class TlsTransport(asyncio.Transport):
    """The HTTP protocol's side: what it writes is encrypted."""

    def __init__(
        self,
        connection: TlsConnection,
        raw: asyncio.Transport,
        tls: ssl.SSLObject,
        caller: CallerCertificate | None,
    ) -> None:
        super().__init__({"ssl_object": tls, "sslcontext": tls.context, SCOPE_NAME: caller})
        self._connection = connection
        self._raw = raw

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """TLS's own, else the socket's."""
        own = super().get_extra_info(name)
        return self._raw.get_extra_info(name, default) if own is None else own

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, encrypted."""
        self._connection.write(bytes(data))

    def close(self) -> None:
        """End it after what was written."""
        self._connection.close()

    def abort(self) -> None:
        """End it at once."""
        self._raw.abort()

    def is_closing(self) -> bool:
        """Whether it ends."""
        return self._raw.is_closing()

    def is_reading(self) -> bool:
        """Whether bytes are taken from the socket."""
        return self._raw.is_reading()

    def pause_reading(self) -> None:
        """Let the caller wait."""
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Take more."""
        self._raw.resume_reading()

    def get_write_buffer_size(self) -> int:
        """Bytes that the caller has not taken."""
        return self._raw.get_write_buffer_size()


def _in_clear() -> RequestError:
    return RequestError(
        "this endpoint speaks TLS, and the request came in clear",
        hint="begin the address with https://",
        code="tls_required",
    )


def _discard(_data: bytes) -> None:
    pass


def _address(transport: asyncio.Transport, name: str) -> str:
    found = transport.get_extra_info(name)
    return str(found[0]) if found else ""
