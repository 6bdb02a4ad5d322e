"""Header blocks without a table that changes (RFC 7541).

We write every header out, and tell the other side to keep no table for us: so a block means the
same whenever it comes, and those that came before need no reading.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from appliance.shim.rpc import huffman
from appliance.shim.rpc.frames import BrokenFrameError

_STATIC = (
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"),
    (":path", "/index.html"), (":scheme", "http"), (":scheme", "https"), (":status", "200"),
    (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"),
    (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""),
    ("accept", ""), ("access-control-allow-origin", ""), ("age", ""), ("allow", ""),
    ("authorization", ""), ("cache-control", ""), ("content-disposition", ""),
    ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""),
    ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""),
    ("if-match", ""), ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""),
    ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""),
    ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""),
    ("vary", ""), ("via", ""), ("www-authenticate", ""),
)  # fmt: skip
"""Appendix A; the first has number 1."""
_MOST_DIGITS = 5


def encode(headers: Iterable[tuple[str, str]]) -> bytes:
    """Literals that are not indexed, names and values written out."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in headers)


def _string(text: str) -> bytes:
    data = text.encode("ascii")
    return _integer(len(data), 7) + data


def _integer(number: int, bits: int) -> bytes:
    """Section 5.1; the bits before it are zero."""
    most = (1 << bits) - 1
    if number < most:
        return bytes([number])
    digits = [most]
    number -= most
    while number >= 128:
        digits.append(number % 128 | 128)
        number //= 128
    return bytes([*digits, number])


@functools.lru_cache(maxsize=256)
def decode(block: bytes) -> tuple[tuple[str, str], ...]:
    """The headers of a block, in order. Raises BrokenFrameError."""
    reader, headers = _Reader(block), []
    while not reader.ended:
        first = reader.peek()
        if first & 0x80:
            headers.append(_static(reader.integer(7)))
        elif first & 0xE0 == 0x20:
            if reader.integer(5):
                raise BrokenFrameError("a table of headers that was not allowed")
        else:
            # Kept in the table (01) or not: there is none to keep it in.
            number = reader.integer(6 if first & 0x40 else 4)
            name = _static(number)[0] if number else reader.string()
            headers.append((name, reader.string()))
    return tuple(headers)


def _static(number: int) -> tuple[str, str]:
    if not 1 <= number <= len(_STATIC):
        raise BrokenFrameError(f"there is no header {number}")
    return _STATIC[number - 1]


class _Reader:
    def __init__(self, block: bytes) -> None:
        self._block = block
        self._at = 0

    @property
    def ended(self) -> bool:
        return self._at >= len(self._block)

    def peek(self) -> int:
        if self.ended:
            raise BrokenFrameError("a block of headers ends too early")
        return self._block[self._at]

    def _byte(self) -> int:
        byte = self.peek()
        self._at += 1
        return byte

    def integer(self, bits: int) -> int:
        most = (1 << bits) - 1
        number = self._byte() & most
        if number < most:
            return number
        for digit in range(_MOST_DIGITS):
            byte = self._byte()
            number += (byte & 127) << 7 * digit
            if byte < 128:
                return number
        raise BrokenFrameError("a number is too long")

    def string(self) -> str:
        coded = self.peek() & 0x80
        length = self.integer(7)
        data = self._block[self._at : self._at + length]
        self._at += length
        if len(data) < length:
            raise BrokenFrameError("a header is cut off")
        if coded:
            return huffman.decode(data)
        return data.decode("latin-1")
