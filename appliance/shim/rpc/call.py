"""One call: its request, the messages that come, and how it ends.

Owns the messages that wait for their reader. They are few: the other side may send as much as
`WINDOW` beyond what was taken, so a slow reader holds up its own call and no other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from appliance.shim.rpc.status import RpcError, Status

WINDOW = 256 * 1024
"""Bytes that may wait for a reader; one message may have more."""
MOST_BYTES = 64 * 1024 * 1024
"""Of one message."""
TOGETHER = 64
"""Messages that are taken at once, at most."""
_PREFIX = 5
"""Bytes before a message: whether it is compressed, and four of length (gRPC over HTTP2)."""
_HEAD = ((b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"localhost"))
_TYPE = ((b"te", b"trailers"), (b"content-type", b"application/grpc"))


def head_of(path: str, seconds: float | None = None) -> list[tuple[bytes, bytes]]:
    """The headers of a call of the method `path` that is to be over within so many seconds."""
    head = [*_HEAD, (b":path", path.encode("ascii")), *_TYPE]
    if seconds is not None:
        head.append((b"grpc-timeout", b"%dm" % max(1, int(seconds * 1000))))
    return head


class Carrier(Protocol):
    """What carries a call."""

    def taken(self, call: Call) -> None:
        """What had come of `call` was taken: more may come."""

    def abandon(self, call: Call) -> None:
        """Nobody waits for `call` any more."""


class Call:
    """Made by a channel. Whoever has one takes it to its end or calls `cancel`."""

    def __init__(self, path: str, request: bytes, seconds: float | None = None) -> None:
        self.head = head_of(path, seconds)
        self.unsent = memoryview(b"\0" + len(request).to_bytes(4, "big") + request)
        """Of the request."""
        self.carrier: Carrier | None = None
        self.stream = 0
        """Its number in the connection."""
        self.owed = 0
        """Bytes that came, and that the other side was not yet told to be taken."""
        self.ended = False
        """Nothing more comes."""
        self._error: RpcError | None = None
        self._partial = bytearray()
        self._messages: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    @property
    def waiting(self) -> bool:
        """Whether there are messages that nobody took yet."""
        return bool(self._messages)

    async def take(self) -> list[bytes]:
        """Wait for messages; those that are there, none at the end. Raises RpcError."""
        while not self._messages:
            if self.ended:
                if self._error is not None:
                    raise self._error
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        messages = [self._messages.popleft() for _ in range(min(len(self._messages), TOGETHER))]
        if self.carrier is not None and not self._messages:
            self.carrier.taken(self)
        return messages

    async def answer(self) -> bytes:
        """The only message. Raises RpcError. Being cancelled cancels the call."""
        try:
            messages: list[bytes] = []
            while more := await self.take():
                messages += more
        finally:
            self.cancel()
        if len(messages) != 1:
            raise RpcError(Status.INTERNAL, f"{len(messages)} messages where one was to come")
        return messages[0]

    def cancel(self) -> None:
        """Nobody wants it any more; harmless when it has ended."""
        self.fail(RpcError(Status.CANCELLED))

    def fail(self, error: RpcError) -> None:
        """End it here with `error`, behind the messages that have come; and there."""
        if self.ended:
            return
        self.end(error)
        if self.carrier is not None:
            self.carrier.abandon(self)

    def feed(self, data: bytes) -> None:
        """Bytes of messages have come. Raises RpcError for a message that is not to be had."""
        head = data[:_PREFIX]
        if not self._partial and int.from_bytes(head, "big") == len(data) - _PREFIX:
            self._messages.append(data[_PREFIX:])  # one message in a frame, as nearly all are
        else:
            self._partial += data
            self._split()
        if self._messages:
            self._wake()

    def _split(self) -> None:
        partial = self._partial
        while len(partial) >= _PREFIX:
            length = int.from_bytes(partial[1:_PREFIX], "big")
            if partial[0]:
                raise RpcError(Status.INTERNAL, "a message is compressed")
            if length > MOST_BYTES:
                raise RpcError(Status.RESOURCE_EXHAUSTED, "message larger than max")
            if len(partial) < _PREFIX + length:
                return
            self._messages.append(bytes(partial[_PREFIX : _PREFIX + length]))
            del partial[: _PREFIX + length]

    def end(self, error: RpcError | None) -> None:
        """Nothing more comes."""
        if self.ended:
            return
        if error is None and self._partial:
            error = RpcError(Status.INTERNAL, "the last message is cut off")
        self.ended, self._error = True, error
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _expire(self) -> None:
        self.fail(RpcError(Status.DEADLINE_EXCEEDED, "the call's time is up"))
