"""A disk that remembers: a block device below which every write and every flush is noted.

    python -m tests.power.disk IMAGE NODE JOURNAL

Serves the bytes of IMAGE as the file NODE over /dev/fuse (linux/fuse.h, protocol 7.31), so that a
loop device on NODE is a disk whose orders arrive here. Each goes to JOURNAL with the monotonic time
at which it arrived. Owns the recording; what a power cut leaves of it is images.py's business.
Ends when NODE is unmounted. Needs root.

    order = kind u8 | time ns u64 | offset u64 | length u32 | data of a write

The offset of a flush is the number of writes that it covers: those answered before it was taken.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import sys
import time
from pathlib import Path
from typing import BinaryIO, Final

ORDER: Final = struct.Struct("<BQQI")
WRITE: Final = 1
FLUSH: Final = 2

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_IO = struct.Struct("<QQIIQII")
_ATTRIBUTES = struct.Struct("<6Q10I")
_GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS = 3, 4, 14, 15, 16, 17
_RELEASE, _FSYNC, _FLUSH, _INIT, _DESTROY = 18, 20, 25, 26, 38
_UNANSWERED = frozenset({2, 36, 42})
"""FORGET, INTERRUPT, BATCH_FORGET."""
_BIG_WRITES, _MAX_PAGES, _DIRECT_IO = 1 << 5, 1 << 22, 1
_MOST_BYTES = 1 << 20


class Disk:
    """The bytes of `image`, and the orders that changed them."""

    def __init__(self, image: Path, journal: BinaryIO) -> None:
        self._bytes = bytearray(image.read_bytes())
        self._journal = journal
        self._writes = 0
        self._covered = 0

    def serve(self, device: int) -> None:
        """Answer what comes from the kernel, until the file is unmounted.

        Orders that wait together are taken together: a flush among them covers none of them.
        """
        os.set_blocking(device, False)
        while True:
            select.select([device], [], [])
            try:
                waiting = self._waiting(device)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                raise
            self._covered = self._writes
            for order in waiting:
                self._take(device, order)

    def _waiting(self, device: int) -> list[bytes]:
        found: list[bytes] = []
        while True:
            try:
                found.append(os.read(device, _MOST_BYTES + 65_536))
            except BlockingIOError:
                return found
            except OSError:
                if found:
                    return found
                raise

    def _take(self, device: int, order: bytes) -> None:
        _, code, unique, *_ = _IN.unpack_from(order)
        if code in _UNANSWERED:
            return
        answer = self._answer(code, order[_IN.size :])
        error, data = (answer, b"") if isinstance(answer, int) else (0, answer)
        os.write(device, _OUT.pack(_OUT.size + len(data), -error, unique) + data)

    def _answer(self, code: int, body: bytes) -> bytes | int:
        """The body of the answer, or an errno."""
        if code == _INIT:
            flags = _BIG_WRITES | _MAX_PAGES
            return struct.pack(
                "<IIIIHHIIHHII6I",
                *(7, 31, 0, flags, 16, 12, _MOST_BYTES, 1, _MOST_BYTES // 4096, 0, 0, 0),
                *([0] * 6),
            )
        if code in {_GETATTR, _SETATTR}:
            return struct.pack("<QII", 3600, 0, 0) + self._attributes()
        if code == _OPEN:
            return struct.pack("<QIi", 1, _DIRECT_IO, 0)
        if code == _READ:
            _, offset, size, *_ = _IO.unpack_from(body)
            return bytes(self._bytes[offset : offset + size])
        if code == _WRITE:
            return self._write(body)
        if code == _FSYNC:
            self._note(FLUSH, self._covered, b"")
            return b""
        if code in {_FLUSH, _RELEASE, _DESTROY}:
            return b""
        return errno.ENOSYS

    def _write(self, body: bytes) -> bytes:
        _, offset, size, *_ = _IO.unpack_from(body)
        data = body[_IO.size : _IO.size + size]
        self._note(WRITE, offset, data)
        self._bytes[offset : offset + size] = data
        self._writes += 1
        return struct.pack("<II", size, 0)

    def _note(self, kind: int, offset: int, data: bytes) -> None:
        self._journal.write(ORDER.pack(kind, time.monotonic_ns(), offset, len(data)) + data)

    def _attributes(self) -> bytes:
        size = len(self._bytes)
        mode = 0o100600
        return _ATTRIBUTES.pack(1, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def main() -> None:
    image, node, journal = map(Path, sys.argv[1:])
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=100000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"disk", os.fsencode(node), b"fuse", 6, options.encode()):
        raise OSError(ctypes.get_errno(), "the disk cannot be mounted", str(node))
    with journal.open("wb") as file:
        Disk(image, file).serve(device)


if __name__ == "__main__":
    main()
