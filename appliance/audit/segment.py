"""One segment of the journal: a file of checksummed frames, each holding one leaf.

Owns the frame format and reading it. A frame carries its number and the number of its batch's
first frame, so that a reader who finds damage can tell an unfinished last batch (which nobody
was told of) from a batch that had been acknowledged: a batch is written only after the one
before it is durable.

    file   = header frame*
    header = "AUDITSG1" | first seq u64 | crc32 u32            big-endian throughout
    frame  = f5 45 4e 54 | length u32 | seq u64 | batch u64 | crc32 u32 | leaf
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from appliance.audit.event import MAX_LEAF_BYTES
from appliance.errors import AuditError

SEGMENTS = "segments"
HEADER_BYTES: Final = 20

_MAGIC = b"AUDITSG1"
_HEADER = struct.Struct(">8sQI")
_MARK = b"\xf5ENT"
_FRAME = struct.Struct(">4sIQQI")
_CHECKED = struct.Struct(">IQQ")
_NAME = re.compile(r"[0-9]{20}\.seg")
_MAX_SEQ = 1 << 63
_SEARCH_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Frame:
    """One leaf in a segment. `end` is the file offset behind it."""

    seq: int
    batch: int
    leaf: bytes
    end: int


def segment_name(first_seq: int) -> str:
    """Path of the segment that begins with `first_seq`, relative to the log's directory."""
    return f"{SEGMENTS}/{first_seq:020d}.seg"


def parse_name(name: str) -> int | None:
    """The first number of the segment that the file `name` would be; None if it is none."""
    first = int(name[:20]) if _NAME.fullmatch(name) else _MAX_SEQ
    return first if first < _MAX_SEQ else None


def list_segments(directory: Path) -> list[int]:
    """First numbers of the segments in the log `directory`, ascending."""
    try:
        names = [path.name for path in (directory / SEGMENTS).iterdir()]
    except FileNotFoundError:
        return []
    return sorted(first for first in map(parse_name, names) if first is not None)


def encode_header(first_seq: int) -> bytes:
    return _HEADER.pack(_MAGIC, first_seq, zlib.crc32(_MAGIC + first_seq.to_bytes(8, "big")))


def encode_batch(first_seq: int, leaves: Sequence[bytes]) -> bytes:
    """The frames of one batch that begins with `first_seq`."""
    return b"".join(_encode_frame(first_seq + i, first_seq, leaf) for i, leaf in enumerate(leaves))


class FrameReader:
    """Frames of one open segment from its beginning, or from a known frame boundary.

    Iterating ends at the end of the file or at the first byte that is not a whole valid frame.
    Then `end` and `next_seq` say how far it is good, and `torn_bytes` how much follows.
    """

    def __init__(self, file: BinaryIO, first_seq: int, *, end: int = 0, next_seq: int = 0) -> None:
        """Raises AuditError if the header is not that of segment `first_seq`."""
        self._file = file
        self.end = end or HEADER_BYTES
        self.next_seq = next_seq if end else first_seq
        if file.read(HEADER_BYTES) != encode_header(first_seq):
            raise AuditError(
                f"{segment_name(first_seq)} has a damaged header", path=segment_name(first_seq)
            )
        file.seek(self.end)

    def __iter__(self) -> Iterator[Frame]:
        while True:
            header = self._file.read(_FRAME.size)
            frame = self._parse(header) if len(header) == _FRAME.size else None
            if frame is None:
                return
            self.end, self.next_seq = frame.end, frame.seq + 1
            yield frame

    @property
    def torn_bytes(self) -> int:
        return self._file.seek(0, 2) - self.end

    def damage_was_acknowledged(self) -> bool:
        """Whether what follows `end` proves that the frame missing there had been acknowledged:
        a whole frame of a later batch, and still no frame at `end`, where a writer may have been
        at work when it was first looked at."""
        return self._later_batch_follows() and self._at_end() is None

    def _at_end(self) -> Frame | None:
        """The frame at `end`, read anew."""
        self._file.seek(0, 2)  # what is buffered may be older
        self._file.seek(self.end)
        header = self._file.read(_FRAME.size)
        return self._parse(header) if len(header) == _FRAME.size else None

    def _later_batch_follows(self) -> bool:
        self._file.seek(self.end)
        rest = self._file.read(_SEARCH_BYTES)
        offset = rest.find(_MARK)
        while offset >= 0:
            header = rest[offset : offset + _FRAME.size]
            if len(header) == _FRAME.size:
                _, length, seq, batch, crc = _FRAME.unpack(header)
                leaf = rest[offset + _FRAME.size : offset + _FRAME.size + length]
                whole = len(leaf) == length and crc == _checksum(length, seq, batch, leaf)
                if whole and batch > self.next_seq:
                    return True
            offset = rest.find(_MARK, offset + 1)
        return False

    def _parse(self, header: bytes) -> Frame | None:
        mark, length, seq, batch, crc = _FRAME.unpack(header)
        if mark != _MARK or seq != self.next_seq or batch > seq or length > MAX_LEAF_BYTES:
            return None
        leaf = self._file.read(length)
        if len(leaf) != length or crc != _checksum(length, seq, batch, leaf):
            return None
        return Frame(seq, batch, leaf, self.end + _FRAME.size + length)


def _encode_frame(seq: int, batch: int, leaf: bytes) -> bytes:
    return _FRAME.pack(_MARK, len(leaf), seq, batch, _checksum(len(leaf), seq, batch, leaf)) + leaf


def _checksum(length: int, seq: int, batch: int, leaf: bytes) -> int:
    return zlib.crc32(leaf, zlib.crc32(_CHECKED.pack(length, seq, batch)))
