"""Frames of HTTP/2 as they go over the wire (RFC 9113 sections 4 and 6)."""

from __future__ import annotations

import struct
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
LEAST_MAX_FRAME = 16384
"""Bytes of payload that everybody takes; we take no more."""
DEFAULT_WINDOW = 65535
MOST_WINDOW = 2**31 - 1
LAST_STREAM = 2**31 - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION = 8, 9

ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 4, 5

CANCEL = 0x8

_SETTING = struct.Struct(">HI")
_NUMBER = struct.Struct(">I")


class BrokenFrameError(Exception):
    """The other side does not speak HTTP/2, or not as it may: the connection has to end."""


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """One frame."""
    head = (len(payload) << 48 | kind << 40 | flags << 32 | stream).to_bytes(HEAD_BYTES, "big")
    return head + payload


def settings(pairs: Iterable[tuple[int, int]]) -> bytes:
    """A frame that says how we want to be spoken to."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in pairs))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Raises BrokenFrameError."""
    if len(payload) % _SETTING.size:
        raise BrokenFrameError("settings of a length that they cannot have")
    return list(_SETTING.iter_unpack(payload))


def reset(stream: int, code: int) -> bytes:
    """A frame that ends a stream."""
    return frame(RST_STREAM, 0, stream, _NUMBER.pack(code))


def window_update(stream: int, more: int) -> bytes:
    """A frame that lets `more` bytes come; for all streams together if `stream` is 0."""
    return frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(more))


def read_number(payload: bytes, at: int = 0) -> int:
    """Four bytes as a number. Raises BrokenFrameError."""
    if len(payload) < at + _NUMBER.size:
        raise BrokenFrameError("a frame is too short")
    number: int = _NUMBER.unpack_from(payload, at)[0]
    return number


def content(flags: int, payload: bytes) -> bytes:
    """What a DATA or HEADERS frame carries, without padding and priority. Raises
    BrokenFrameError."""
    if not flags & (PADDED | HAS_PRIORITY):
        return payload
    start, end = 0, len(payload)
    if flags & PADDED:
        start, end = 1, end - (payload[0] if payload else 1)
    if flags & HAS_PRIORITY:
        start += 5
    if start > end:
        raise BrokenFrameError("more padding than frame")
    return payload[start:end]
