"""One HTTP/2 connection to a gRPC server: many calls at once over one socket.

Owns the frames of both directions, the numbers of streams, and flow control. What comes in one read
is worked through at once, whichever calls it is for. Every call that it has taken ends: with what
the server says, or with the connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import cast

from appliance.shim.rpc import frames
from appliance.shim.rpc.call import WINDOW, Call
from appliance.shim.rpc.frames import BrokenFrameError, frame
from appliance.shim.rpc.hpack import decode
from appliance.shim.rpc.status import RpcError, Status, ended, lost, reset

_CREDIT = 1024 * 1024
"""Bytes of all calls together after which the server is told that it may send as many more."""
_MOST_HEADERS = 64 * 1024
"""Bytes of one block of headers."""
_log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """Made by a channel, which is told by `retired` when it takes no more calls."""

    def __init__(self, retired: Callable[[Connection], None]) -> None:
        self._retired = retired
        self._calls: dict[int, Call] = {}
        self._sending: dict[int, Call] = {}
        """Those whose request did not fit into the windows."""
        self._queued: deque[Call] = deque()
        """Those beyond what the server takes at once."""
        self._next_stream = 1
        self._most_calls = frames.LAST_STREAM
        self._most_frame = frames.LEAST_MAX_FRAME
        self._window = frames.DEFAULT_WINDOW
        """Of each new stream, for what we send."""
        self._room = frames.DEFAULT_WINDOW
        """For what we send on all streams together."""
        self._received = 0
        """Bytes of all streams since the server was last given credit."""
        self._rest = b""
        self._block = b""
        self._block_of: tuple[int, int] | None = None
        """Stream and flags of headers that go on in the next frame."""
        self._out: list[bytes] = []
        self.usable = True
        """Whether it takes further calls."""

    # What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not one by class
        wanted = [
            (frames.HEADER_TABLE_SIZE, 0),
            (frames.ENABLE_PUSH, 0),
            (frames.INITIAL_WINDOW_SIZE, WINDOW),
        ]
        # Calls bound what may wait each by itself: together they are not to hold each other up.
        more = frames.MOST_WINDOW - frames.DEFAULT_WINDOW
        self._send(frames.PREFACE + frames.settings(wanted) + frames.window_update(0, more))

    def data_received(self, data: bytes) -> None:
        try:
            self._read(self._rest + data if self._rest else data)
        except BrokenFrameError as error:
            _log.error("the engine breaks HTTP/2: %s", error)
            self._transport.abort()
            self._end_all(lost())

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_all(lost())

    # What the channel and the calls ask for.

    def start(self, call: Call) -> None:
        """Send its request, unless it has ended meanwhile."""
        if call.ended:
            return
        if not self.usable:
            call.end(lost())
            return
        call.carrier = self
        if len(self._calls) >= self._most_calls:
            self._queued.append(call)
            return
        call.stream, call.room = self._next_stream, self._window
        self._calls[call.stream] = call
        self._next_stream += 2
        if self._next_stream > frames.LAST_STREAM:
            self._retire()
        head = frame(frames.HEADERS, frames.END_HEADERS, call.stream, call.head)
        self._send(head + self._fitting(call))

    def taken(self, call: Call) -> None:
        if call.owed >= WINDOW // 2 and not call.ended:
            self._send(frames.window_update(call.stream, call.owed))
            call.owed = 0

    def abandon(self, call: Call) -> None:
        if self._calls.get(call.stream) is call:
            self._send(frames.reset(call.stream, frames.CANCEL))
            self._forget(call)
        elif call in self._queued:
            self._queued.remove(call)

    def close(self) -> None:
        """End it, and every call with it."""
        self._end_all(RpcError(Status.CANCELLED, "the channel is closed"))

    # Sending.

    def _send(self, data: bytes) -> None:
        """Soon: what many calls send at once goes in one write."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _hang_up(self) -> None:
        self._flush()
        self._transport.close()

    def _fitting(self, call: Call) -> bytes:
        """As much of the request as may be sent now."""
        parts = []
        while call.unsent:
            size = min(len(call.unsent), self._most_frame, self._room, call.room)
            if size <= 0:
                self._sending[call.stream] = call
                break
            piece, call.unsent = call.unsent[:size], call.unsent[size:]
            flags = 0 if call.unsent else frames.END_STREAM
            parts.append(frame(frames.DATA, flags, call.stream, piece))
            self._room -= size
            call.room -= size
        return b"".join(parts)

    def _go_on(self) -> None:
        """There is room again."""
        waiting, self._sending = self._sending, {}
        for call in waiting.values():
            self._send(self._fitting(call))

    # Reading.

    def _read(self, data: bytes) -> None:
        at, size = 0, len(data)
        while size - at >= frames.HEAD_BYTES:
            head = int.from_bytes(data[at : at + frames.HEAD_BYTES], "big")
            length = head >> 48
            if length > frames.LEAST_MAX_FRAME:
                raise BrokenFrameError(f"a frame of {length} bytes")
            start = at + frames.HEAD_BYTES
            if size < start + length:
                break
            at = start + length
            kind, flags = head >> 40 & 0xFF, head >> 32 & 0xFF
            self._frame(kind, flags, head & frames.LAST_STREAM, data[start:at])
        self._rest = data[at:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if (kind == frames.CONTINUATION) != (self._block_of is not None):
            raise BrokenFrameError("headers are interrupted")
        if kind == frames.DATA:
            self._data(flags, stream, payload)
        elif kind == frames.HEADERS:
            self._headers(flags, stream, frames.content(flags, payload))
        elif kind == frames.CONTINUATION:
            self._continuation(flags, stream, payload)
        elif kind == frames.RST_STREAM:
            self._finish(stream, reset(frames.read_number(payload)))
        elif kind == frames.SETTINGS:
            self._settings(flags, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._window_update(stream, frames.read_number(payload) & frames.LAST_STREAM)
        elif kind == frames.PING and not flags & frames.ACK:
            self._send(frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.GOAWAY:
            self._go_away(frames.read_number(payload) & frames.LAST_STREAM)
        elif kind == frames.PUSH_PROMISE:
            raise BrokenFrameError("a push, which was not allowed")

    def _data(self, flags: int, stream: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received >= _CREDIT:
            self._send(frames.window_update(0, self._received))
            self._received = 0
        call = self._calls.get(stream)
        if call is None:
            return  # it was cancelled, and the server does not know yet
        call.owed += len(payload)
        try:
            call.feed(frames.content(flags & frames.PADDED, payload))
        except RpcError as error:
            call.fail(error)
            return
        if flags & frames.END_STREAM:
            self._finish(stream, RpcError(Status.INTERNAL, "the answer has no status"))
        elif not call.waiting:
            self.taken(call)  # a part of a message, which nobody can take yet

    def _headers(self, flags: int, stream: int, block: bytes) -> None:
        if not flags & frames.END_HEADERS:
            self._block, self._block_of = block, (stream, flags)
            return
        headers = dict(decode(block))
        if flags & frames.END_STREAM:
            self._finish(stream, ended(headers))
        elif headers.get(":status", "200") != "200":
            self._finish(stream, lost(f"HTTP status {headers[':status']}"))

    def _continuation(self, flags: int, stream: int, payload: bytes) -> None:
        assert self._block_of is not None
        self._block += payload
        if stream != self._block_of[0] or len(self._block) > _MOST_HEADERS:
            raise BrokenFrameError("headers go on in another stream, or without end")
        if flags & frames.END_HEADERS:
            flags |= self._block_of[1]
            self._block_of = None
            self._headers(flags, stream, self._block)

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            return
        for name, value in frames.read_settings(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                for call in self._calls.values():
                    call.room += value - self._window
                self._window = value
            elif name == frames.MAX_FRAME_SIZE:
                self._most_frame = value
            elif name == frames.MAX_CONCURRENT_STREAMS:
                self._most_calls = value
        self._send(frame(frames.SETTINGS, frames.ACK, 0))
        self._go_on()
        self._start_queued()

    def _window_update(self, stream: int, more: int) -> None:
        if not stream:
            self._room += more
        elif stream in self._calls:
            self._calls[stream].room += more
        if self._sending:
            self._go_on()

    def _go_away(self, last: int) -> None:
        self._retire()
        for stream in [number for number in self._calls if number > last]:
            self._finish(stream, lost("the engine takes no more calls"))

    # Ends.

    def _finish(self, stream: int, error: RpcError | None) -> None:
        """The server has ended a stream."""
        call = self._calls.get(stream)
        if call is None:
            return
        if call.unsent:
            self._send(frames.reset(stream, frames.CANCEL))
        self._forget(call)
        call.end(error)

    def _forget(self, call: Call) -> None:
        del self._calls[call.stream]
        self._sending.pop(call.stream, None)
        self._start_queued()
        if not self.usable and not self._calls:
            self._hang_up()

    def _start_queued(self) -> None:
        while self._queued and len(self._calls) < self._most_calls:
            self.start(self._queued.popleft())

    def _retire(self) -> None:
        """Take no more calls; those under way go on."""
        if not self.usable:
            return
        self.usable = False
        self._retired(self)
        queued, self._queued = self._queued, deque()
        for call in queued:
            call.end(lost("the engine takes no more calls"))
        if not self._calls:
            self._hang_up()

    def _end_all(self, error: RpcError) -> None:
        calls = [*self._calls.values(), *self._queued]
        self._calls.clear()
        self._sending.clear()
        self._queued.clear()
        self._retire()
        for call in calls:
            call.end(error)
