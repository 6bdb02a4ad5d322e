"""HTTP/1.1 as a load generator needs it: many streams in one thread, bytes as they come.

Owns one exchange on a connection of its own: request out, head in, body unframed (RFC 9112).
Refuses redirects and proxies: what is measured is the address that was named. It is not a
general client; `http.client` would need a thread for each stream, and their switching would be
measured along.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from appliance.errors import UsageError

_READ_BYTES = 64 * 1024
_MAX_HEAD_LINES = 256


class ExchangeError(Exception):
    """The server cannot be reached, hung up, or does not speak HTTP. Says which."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where requests go. `path` is put before each request's own."""

    host: str
    port: int
    tls: bool
    path: str

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def address_of(base_url: str) -> Address:
    """The parts of `base_url`. Raises UsageError."""
    try:
        url: SplitResult = urlsplit(base_url)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    if url.scheme not in {"http", "https"} or not url.hostname or url.query or url.fragment:
        raise UsageError(
            f"--base-url {base_url!r} is not an address of an API",
            hint="for instance --base-url http://127.0.0.1:8080/v1",
        )
    tls = url.scheme == "https"
    return Address(url.hostname, port or (443 if tls else 80), tls, url.path.rstrip("/"))


class HttpAnswer:
    """A status and a body that is read once."""

    def __init__(
        self, status: int, headers: Mapping[str, str], reader: asyncio.StreamReader
    ) -> None:
        self.status = status
        self.headers = headers
        self._reader = reader

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, as it comes. Raises ExchangeError if it breaks off, TimeoutError."""
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            async for piece in self._chunks():
                yield piece
        elif "content-length" in self.headers:
            left = _integer(self.headers["content-length"], 10)
            while left:
                piece = await self._some(min(left, _READ_BYTES))
                left -= len(piece)
                yield piece
        else:
            while piece := await self._reader.read(_READ_BYTES):
                yield piece

    async def body(self) -> bytes:
        """All of it."""
        return b"".join([piece async for piece in self.pieces()])

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            line = await _line(self._reader)
            left = _integer(line.partition(b";")[0].decode("latin-1"), 16)
            if left == 0:
                while await _line(self._reader):
                    pass
                return
            while left:
                piece = await self._some(left)
                left -= len(piece)
                yield piece
            if await _line(self._reader):
                raise ExchangeError("the answer's chunks are not framed as they say")

    async def _some(self, most: int) -> bytes:
        piece = await self._reader.read(most)
        if not piece:
            raise ExchangeError("the connection was closed in the middle of the answer")
        return piece


@asynccontextmanager
async def exchange(
    address: Address,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: object = None,
    *,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[HttpAnswer]:
    """Send one request; the answer is read inside. Leaving closes the connection.

    `tls` says whom to trust, where the address is one of TLS; else the system does.
    Raises ExchangeError.
    """
    data = b"" if body is None else json.dumps(body).encode()
    context = (tls or ssl.create_default_context()) if address.tls else None
    try:
        reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    except (OSError, ssl.SSLError) as error:
        raise ExchangeError(f"no connection: {_words(error)}") from error
    try:
        writer.write(_head(address, method, path, headers, len(data)) + data)
        try:
            await writer.drain()
            yield await _answer(reader)
        except TimeoutError:
            raise
        except OSError as error:
            raise ExchangeError(_words(error)) from error
    finally:
        # Aborted and not shut down politely: what is left in the stream is of no interest.
        writer.transport.abort()


def _head(
    address: Address, method: str, path: str, headers: Mapping[str, str], length: int
) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {address.authority}",
        "Connection: close",
        "Accept-Encoding: identity",
        f"Content-Length: {length}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _answer(reader: asyncio.StreamReader) -> HttpAnswer:
    status = await _status(reader)
    while status // 100 == 1:
        await _headers(reader)
        status = await _status(reader)
    return HttpAnswer(status, await _headers(reader), reader)


async def _status(reader: asyncio.StreamReader) -> int:
    version, _, rest = (await _line(reader)).partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
        raise ExchangeError("the server does not speak HTTP/1.1")
    return int(rest[:3])


async def _headers(reader: asyncio.StreamReader) -> dict[str, str]:
    headers: dict[str, str] = {}
    for _ in range(_MAX_HEAD_LINES):
        line = await _line(reader)
        if not line:
            return headers
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    raise ExchangeError("the head of the answer does not end")


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        line = await reader.readline()
    except ValueError:
        raise ExchangeError("a line of the answer's head is too long") from None
    if not line.endswith(b"\n"):
        raise ExchangeError("the connection was closed before the answer was complete")
    return line.rstrip(b"\r\n")


def _integer(text: str, base: int) -> int:
    try:
        value = int(text.strip(), base)
    except ValueError:
        value = -1
    if value < 0:
        raise ExchangeError("the answer's length is not a number")
    return value


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
