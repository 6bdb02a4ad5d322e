"""The other end of a connection, byte by byte: what a server says, and what was said to it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping

from hpack import Encoder, NeverIndexedHeaderTuple

from appliance.shim.rpc import Call
from appliance.shim.rpc.connection import Connection

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LAST_STREAM = 2**31 - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION = 8, 9

ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 3, 4, 5


def block(headers: Mapping[str, str]) -> bytes:
    """Headers that mean the same whenever they come."""
    data: bytes = Encoder().encode([NeverIndexedHeaderTuple(*pair) for pair in headers.items()])
    return data


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113 section 4.1."""
    head = (len(payload) << 48 | kind << 40 | flags << 32 | stream).to_bytes(9, "big")
    return head + payload


def setting(name: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", name, value))


def reset(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def window_update(stream: int, more: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", more))


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


def head(stream: int) -> bytes:
    said = {":status": "200", "content-type": "application/grpc"}
    return frame(HEADERS, END_HEADERS, stream, block(said))


def tail(stream: int, status: str = "0") -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, block({"grpc-status": status}))


def answer(stream: int, *messages: bytes, status: str = "0") -> bytes:
    said = [frame(DATA, 0, stream, message(data)) for data in messages]
    return b"".join([head(stream), *said, tail(stream, status)])


class Wire(asyncio.Transport):
    """As far as a connection sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = b""
        self.writes = 0
        self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended
        self.writes += 1
        self.bytes += data

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended


async def taken(call: Call) -> list[bytes]:
    """All messages until the end. Raises RpcError."""
    messages: list[bytes] = []
    while more := await call.take():
        messages += more
    return messages


METHOD = "/t/method"


class Talk:
    """A connection and what was said on it."""

    def __init__(self, ahead: str = "") -> None:
        self.wire = Wire()
        self.retired = 0
        self.connection = Connection(self._retire, ahead)
        self.connection.connection_made(self.wire)

    def _retire(self, _: Connection) -> None:
        self.retired += 1

    def start(self, request: bytes = b"", path: str = METHOD) -> Call:
        call = Call(path, request)
        self.connection.start(call)
        return call

    def hear(self, *said: bytes) -> None:
        self.connection.data_received(b"".join(said))

    async def said(self) -> list[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of what was sent since the last time."""
        await asyncio.sleep(0)
        data, self.wire.bytes = self.wire.bytes.removeprefix(PREFACE), b""
        found = []
        while data:
            length = int.from_bytes(data[:3], "big")
            stream = int.from_bytes(data[5:9], "big")
            found.append((data[3], data[4], stream, data[9 : 9 + length]))
            data = data[9 + length :]
        return found
