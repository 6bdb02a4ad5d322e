"""A caller that costs little: connections that are kept, answers that are counted, not read.

One connection asks again as soon as it was answered. Of an answer only its status, where it ends,
when its first event came and how many events it had are looked at.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

_EVENT = b"data: {"
_LAST = b"0\r\n\r\n"


@dataclass
class Counts:
    """Of all connections."""

    answers: int = 0
    events: int = 0
    firsts: list[float] = field(default_factory=list)
    """Seconds from a request to the first bytes behind the opening event."""


class _Connection(asyncio.Protocol):
    """One caller, who asks when told to and then again and again, until `ending`."""

    def __init__(self, request: bytes, counts: Counts) -> None:
        self._request = request
        self._counts = counts
        self._seen = b""
        self._length = 0
        self._streamed = False
        self._events = 0
        self._began = 0.0
        self.ending = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not one by class

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_exception(exc or ConnectionError("the endpoint hung up"))

    def data_received(self, data: bytes) -> None:
        if not self._length and not self._streamed:
            data = self._head(self._seen + data)
        if self._streamed:
            self._take(data)
            ended = data.endswith(_LAST)
        else:
            self._length -= len(data)
            ended = self._length == 0 and not self._seen
        if ended:
            self._counts.answers += 1
            self._go_on()

    def _head(self, data: bytes) -> bytes:
        """Take the head, if it is there; the rest."""
        head, end, rest = data.partition(b"\r\n\r\n")
        self._seen = b"" if end else data
        if not end:
            return b""
        assert head.startswith(b"HTTP/1.1 200 "), data.decode("latin-1")
        lines = head.lower().split(b"\r\n")
        self._streamed = b"transfer-encoding: chunked" in lines
        if not self._streamed:
            self._length = next(int(x[15:]) for x in lines if x.startswith(b"content-length:"))
        return rest

    def _take(self, data: bytes) -> None:
        before, self._events = self._events, self._events + data.count(_EVENT)
        self._counts.events += self._events - before
        # The opening event says only whose turn it is.
        if before <= 1 < self._events:
            self._counts.firsts.append(time.perf_counter() - self._began)

    def _go_on(self) -> None:
        if self.ending:
            self.closed.set_result(None)
            self._transport.close()
        else:
            self.ask()

    def ask(self) -> None:
        """Send the request."""
        self._streamed, self._length, self._events = False, 0, 0
        self._began = time.perf_counter()
        self._transport.write(self._request)


def encoded(port: int, secret: str, body: object) -> bytes:
    """A chat request as it goes over the wire."""
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Bearer {secret}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode("ascii") + data


class Callers:
    """`async with Callers(port, request, number) as counts:` they ask until the end."""

    def __init__(self, port: int, request: bytes, number: int) -> None:
        self._port = port
        self._request = request
        self._number = number
        self._connections: list[_Connection] = []

    async def __aenter__(self) -> Counts:
        counts = Counts()
        loop = asyncio.get_running_loop()
        for _ in range(self._number):
            _, connection = await loop.create_connection(
                lambda: _Connection(self._request, counts), "127.0.0.1", self._port
            )
            self._connections.append(connection)
            connection.ask()
        return counts

    async def __aexit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.ending = True
        await asyncio.gather(*(connection.closed for connection in self._connections))


async def ask_once(port: int, requests: Sequence[bytes]) -> tuple[float, list[float]]:
    """Send `requests` at once; seconds until the last answer's end, and to each one's first token.

    The connections are there before.
    """
    counts = Counts()
    loop = asyncio.get_running_loop()
    connections = []
    for request in requests:
        _, connection = await loop.create_connection(
            lambda request=request: _Connection(request, counts),  # type: ignore[misc]
            "127.0.0.1",
            port,
        )
        connections.append(connection)
    start = time.perf_counter()
    for connection in connections:
        connection.ending = True
        connection.ask()
    await asyncio.gather(*(connection.closed for connection in connections))
    return time.perf_counter() - start, counts.firsts
