"""One HTTP/2 connection to a gRPC server: many calls at once over one socket.

Owns the way from the socket to the calls and back; the protocol is the library's. What comes in one
read is worked through at once, whichever calls it is for. Every call that it has taken ends: with
what the server says, or with the connection. Of one method a call may be opened before anybody
makes it: then both sides have it ready, and its request alone is on the way when somebody does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import cast

from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error, StreamClosedError

from appliance.shim.rpc.call import WINDOW, Call, head_of
from appliance.shim.rpc.http2 import Http2
from appliance.shim.rpc.status import RpcError, Status, ended, lost, reset

_log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """Made by a channel, which is told by `retired` when it takes no more calls. Of the method
    `ahead` a call is opened ahead, from the end of the first call on."""

    def __init__(self, retired: Callable[[Connection], None], ahead: str = "") -> None:
        self._retired = retired
        self._http = Http2(WINDOW)
        self._calls: dict[int, Call] = {}
        self._sending: dict[int, Call] = {}
        """Those whose request did not fit into the windows."""
        self._queued: deque[Call] = deque()
        """Those beyond what the server takes at once."""
        self._ahead = head_of(ahead) if ahead else []
        self._opened = 0
        """The stream of the call that was opened ahead; 0 if there is none."""
        self._flushing = False
        self.usable = True
        """Whether it takes further calls."""

    # What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not one by class
        self._flush_soon()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._http.receive_data(data):
                self._deal(event)
        except H2Error as error:
            _log.error("the engine breaks HTTP/2: %s", error)
            self._transport.abort()
            self._end_all(lost())
        else:
            self._flush_soon()  # the library answers settings and pings by itself

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
        if self._full:
            self._queued.append(call)
            return
        first = not self._flushing
        call.stream = self._stream_for(call)
        self._calls[call.stream] = call
        self._send(call)
        if first:
            self._write()  # at once: who called may have much to do before the loop comes round
        if call.stream + 2 > self._http.HIGHEST_ALLOWED_STREAM_ID:
            self._retire()

    def taken(self, call: Call) -> None:
        if call.owed >= WINDOW // 2 and not call.ended:
            self._acknowledge(call)

    def abandon(self, call: Call) -> None:
        if self._calls.get(call.stream) is call:
            self._cancel(call.stream)
            self._forget(call)
        elif call in self._queued:
            self._queued.remove(call)

    def close(self) -> None:
        """End it, and every call with it."""
        self._end_all(RpcError(Status.CANCELLED, "the channel is closed"))
        self._hang_up()

    # Opening.

    @property
    def _full(self) -> bool:
        return len(self._calls) + bool(self._opened) >= self._most

    @property
    def _most(self) -> int:
        return self._http.remote_settings.max_concurrent_streams

    def _stream_for(self, call: Call) -> int:
        """One whose head is sent."""
        if self._opened and call.head == self._ahead:
            stream, self._opened = self._opened, 0
            return stream
        return self._open(call.head)

    def _open(self, head: list[tuple[bytes, bytes]]) -> int:
        stream = self._http.get_next_available_stream_id()
        self._http.send_headers(stream, head)
        return stream

    def _open_ahead(self) -> None:
        """Unless it would be in somebody's way."""
        last = self._http.highest_outbound_stream_id + 4 > self._http.HIGHEST_ALLOWED_STREAM_ID
        room = len(self._calls) + 1 < self._most and not last
        if self._ahead and not self._opened and self.usable and room:
            self._opened = self._open(self._ahead)
            self._flush_soon()

    def _drop_ahead(self) -> None:
        stream, self._opened = self._opened, 0
        if stream:
            self._cancel(stream)

    # Sending.

    def _flush_soon(self) -> None:
        """What is sent until the loop comes round goes in one write."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._write()

    def _write(self) -> None:
        data = self._http.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _hang_up(self) -> None:
        self._flush()
        self._transport.close()

    def _send(self, call: Call) -> None:
        """As much of the request as may be sent now."""
        http, stream = self._http, call.stream
        # What comes behind may have ended it there, and here only in a moment.
        with suppress(StreamClosedError):
            while call.unsent:
                room = min(http.local_flow_control_window(stream), http.max_outbound_frame_size)
                if room <= 0:
                    self._sending[stream] = call
                    break
                piece, call.unsent = call.unsent[:room], call.unsent[room:]
                http.send_data(stream, piece, end_stream=not call.unsent)
        self._flush_soon()

    def _go_on(self) -> None:
        """There may be room again."""
        waiting, self._sending = self._sending, {}
        for call in waiting.values():
            self._send(call)

    def _cancel(self, stream: int) -> None:
        with suppress(StreamClosedError):
            self._http.reset_stream(stream, ErrorCodes.CANCEL)
        self._flush_soon()

    def _acknowledge(self, call: Call) -> None:
        self._http.acknowledge_received_data(call.owed, call.stream)
        call.owed = 0
        self._flush_soon()

    # Reading.

    def _deal(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._data(event)
        elif isinstance(event, TrailersReceived):
            self._finish(event.stream_id, ended(_texts(event.headers)))
        elif isinstance(event, ResponseReceived):
            self._response(event)
        elif isinstance(event, StreamReset):
            self._finish(event.stream_id, reset(event.error_code))
        elif isinstance(event, WindowUpdated):
            self._go_on()
        elif isinstance(event, RemoteSettingsChanged):
            self._drop_ahead()  # there may be room for fewer
            self._go_on()
            self._start_queued()
        elif isinstance(event, ConnectionTerminated):
            self._go_away(event.last_stream_id or 0)

    def _data(self, event: DataReceived) -> None:
        call = self._calls.get(event.stream_id)
        if call is None:
            self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            return  # it was cancelled, and the server does not know yet
        call.owed += event.flow_controlled_length
        try:
            call.feed(event.data)
        except RpcError as error:
            call.fail(error)
            return
        if event.stream_ended is not None:
            self._finish(call.stream, RpcError(Status.INTERNAL, "the answer has no status"))
        elif not call.waiting:
            self.taken(call)  # a part of a message, which nobody can take yet

    def _response(self, event: ResponseReceived) -> None:
        headers, call = _texts(event.headers), self._calls.get(event.stream_id)
        if event.stream_ended is not None:
            self._finish(event.stream_id, ended(headers))
        elif call is not None and headers.get(":status", "200") != "200":
            call.fail(lost(f"HTTP status {headers[':status']}"))

    def _go_away(self, last: int) -> None:
        self._retire()
        for stream in [number for number in self._calls if number > last]:
            self._finish(stream, lost("the engine takes no more calls"))

    # Ends.

    def _finish(self, stream: int, error: RpcError | None) -> None:
        """The server has said how a call ended."""
        call = self._calls.get(stream)
        if stream == self._opened:
            self._opened = 0
        if call is None:
            return
        if call.unsent:
            self._cancel(call.stream)
        self._forget(call)
        call.end(error)

    def _forget(self, call: Call) -> None:
        del self._calls[call.stream]
        self._sending.pop(call.stream, None)
        self._acknowledge(call)
        self._start_queued()
        self._open_ahead()
        if not self.usable and not self._calls:
            self._hang_up()

    def _start_queued(self) -> None:
        while self._queued and not self._full:
            self.start(self._queued.popleft())

    def _retire(self) -> None:
        """Take no more calls; those under way go on."""
        if not self.usable:
            return
        self.usable = False
        self._drop_ahead()
        self._retired(self)
        queued, self._queued = self._queued, deque()
        for call in queued:
            call.end(lost("the engine takes no more calls"))
        if not self._calls:
            self._hang_up()

    def _end_all(self, error: RpcError) -> None:
        calls = [*self._calls.values(), *self._queued]
        self._calls.clear()
        self._opened = 0
        self._sending.clear()
        self._queued.clear()
        self._retire()
        for call in calls:
            call.end(error)


def _texts(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
