"""The journal: where a record becomes durable, before it is part of the tree.

Owns the segments, their lock and their recovery. Several processes may append; an flock(2) on
`journal.lock` makes them take turns, and the mark in that file tells each whether another wrote
or died in between. Refuses to cut off anything that was acknowledged: damage below the
published tree, or before a later batch, is an AuditError and stays as evidence.

After a failed write or fsync nothing is appended to that file any more, because the kernel
marks pages clean that never reached the disk: what it holds is read again from the disk, its
unacknowledged end is cut off, and a new segment is begun.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from appliance.audit.segment import (
    HEADER_BYTES,
    SEGMENTS,
    FrameReader,
    encode_batch,
    encode_header,
    list_segments,
    segment_name,
)
from appliance.audit.storage import replace_files, write_at
from appliance.errors import AuditError
from appliance.fsops import fsync_dir

LOCK_NAME = "journal.lock"

_TOKEN_BYTES = 16
_CLEAN = b"\x00"
_WRITING = b"\x01"


class Journal:
    """The writing end. One thread at a time; `next_seq` may be read from any."""

    def __init__(self, directory: Path, *, segment_bytes: int, floor: Callable[[], int]) -> None:
        """`floor()` is the size of the tree on disk: the journal must not end below it."""
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._floor = floor
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._fd = -1
        self._segment = -1
        self._end = 0
        self._next_seq = 0
        self._torn_bytes = 0

    @staticmethod
    def create(directory: Path) -> None:
        """Make the first segment of a new log. Raises OSError."""
        replace_files(directory, {segment_name(0): encode_header(0)})

    @property
    def next_seq(self) -> int:
        """Number of the next record; every lower one is durable."""
        return self._next_seq

    def take_torn_bytes(self) -> int:
        """How many unacknowledged bytes recovery cut off since this was last asked."""
        torn, self._torn_bytes = self._torn_bytes, 0
        return torn

    def append(self, leaves_from: Callable[[int], Sequence[bytes]]) -> int:
        """Append the leaves that `leaves_from(first number)` returns; durable on return.

        Returns the first number. Raises OSError (nothing is acknowledged) or AuditError.
        """
        with self.held():
            return self.append_held(leaves_from)

    def append_held(self, leaves_from: Callable[[int], Sequence[bytes]]) -> int:
        """`append` for a caller inside `held`."""
        first = self._next_seq
        leaves = leaves_from(first)
        data = encode_batch(first, leaves)
        if self._end + len(data) > self._segment_bytes and self._end > HEADER_BYTES:
            self._begin_segment()
        self._write(data)
        self._next_seq = first + len(leaves)
        return first

    def begin_segment(self) -> None:
        """Append to a new segment from now on. Raises OSError or AuditError."""
        with self.held():
            if self._end > HEADER_BYTES:
                self._begin_segment()

    def refresh(self) -> None:
        """Take in what other processes appended; recover if one of them, or this one, failed.

        Raises OSError or AuditError.
        """
        with self.held():
            pass

    def close(self) -> None:
        self._close_segment()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other writers out, and know all they wrote. Raises OSError or AuditError."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            mark = os.pread(self._lock, _TOKEN_BYTES + 1, 0)
            unfinished = mark[_TOKEN_BYTES:] == _WRITING
            if self._fd < 0 or unfinished or mark[:_TOKEN_BYTES] != self._token:
                self._recover(suspect=unfinished)
                self._mark(_CLEAN)
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _mark(self, state: bytes) -> None:
        write_at(self._lock, self._token + state, 0)

    def _write(self, data: bytes) -> None:
        try:
            self._mark(_WRITING)
            write_at(self._fd, data, self._end)
            os.fdatasync(self._fd)
            self._mark(_CLEAN)
        except OSError:
            self._abandon_segment()
            raise
        self._end += len(data)

    def _abandon_segment(self) -> None:
        """Cut off what was not acknowledged, if the disk lets us; the mark stays `writing`, so
        that whoever comes next recovers from what is really there."""
        try:
            os.ftruncate(self._fd, self._end)
        except OSError:
            pass  # recovery reads the file again and decides
        finally:
            self._close_segment()

    def _recover(self, *, suspect: bool) -> None:
        """Find the durable end of the journal. `suspect`: the last writer did not finish."""
        self._close_segment()
        segments = list_segments(self._directory)
        if not segments:
            raise AuditError("the journal has no segments", path=segment_name(0))
        self._open_last(segments[-1], from_disk=suspect)
        if self._next_seq < self._floor():
            number = self._next_seq
            self._close_segment()
            raise AuditError(
                f"the journal ends at {number}, below the published tree",
                path=segment_name(segments[-1]),
                hint="the log was cut: keep it as it is and call the auditor",
            )
        os.fsync(self._fd)
        fsync_dir(self._directory / SEGMENTS)  # its name may be newer than the last flush
        if suspect:
            self._begin_segment()

    def _open_last(self, first_seq: int, *, from_disk: bool) -> None:
        path = self._directory / segment_name(first_seq)
        known = (self._end, self._next_seq) if first_seq == self._segment else (0, 0)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if from_disk:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                known = (0, 0)
            with path.open("rb") as file:
                reader = FrameReader(file, first_seq, end=known[0], next_seq=known[1])
                for _ in reader:
                    pass
                self._cut(fd, reader, first_seq)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._segment = fd, first_seq
        self._end, self._next_seq = reader.end, reader.next_seq

    def _cut(self, fd: int, reader: FrameReader, first_seq: int) -> None:
        """Cut off a torn tail, which must be one that nobody was told of."""
        torn = reader.torn_bytes
        if torn == 0:
            return
        if reader.next_seq < self._floor() or reader.damage_was_acknowledged():
            raise AuditError(
                f"record {reader.next_seq} was acknowledged and is damaged",
                path=segment_name(first_seq),
                hint="the disk lost data: keep the log as it is and call the auditor",
            )
        os.ftruncate(fd, reader.end)
        self._torn_bytes += torn

    def _begin_segment(self) -> None:
        """Go on in a new segment. If this fails half-way the file may be there or not: with no
        segment open, whoever appends next looks at the disk first."""
        first = self._next_seq
        self._close_segment()
        replace_files(self._directory, {segment_name(first): encode_header(first)})
        self._fd = os.open(self._directory / segment_name(first), os.O_RDWR | os.O_CLOEXEC)
        self._segment, self._end = first, HEADER_BYTES

    def _close_segment(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class JournalReader:
    """The reading end: leaves in order, remembering where it stopped."""

    def __init__(self, directory: Path, seq: int) -> None:
        """Start with record `seq`. Raises AuditError if no segment reaches back to it."""
        starts = [first for first in list_segments(directory) if first <= seq]
        if not starts:
            raise AuditError(f"the journal does not reach back to record {seq}")
        self._directory = directory
        self._segment = starts[-1]
        self._end = 0
        self._next_seq = starts[-1]
        self._wanted = seq

    def read(self, upto: int) -> Iterator[tuple[int, bytes]]:
        """(number, leaf) of the records below `upto` that were not read before.

        Raises AuditError if one of them is missing or damaged, OSError.
        """
        while self._wanted < upto:
            before = self._next_seq, self._segment
            self._enter_next_segment()
            yield from self._read_segment(upto)
            if before == (self._next_seq, self._segment):
                raise AuditError(
                    f"record {self._wanted} is missing from the journal",
                    path=segment_name(self._segment),
                    hint="keep the log as it is and call the auditor",
                )

    def read_rest(self) -> Iterator[tuple[int, bytes]]:
        """(number, leaf) of all the whole records that were not read before."""
        before = None
        while before != (self._next_seq, self._segment):
            before = self._next_seq, self._segment
            self._enter_next_segment()
            yield from self._read_segment(sys.maxsize)

    def _read_segment(self, upto: int) -> Iterator[tuple[int, bytes]]:
        with (self._directory / segment_name(self._segment)).open("rb") as file:
            reader = FrameReader(file, self._segment, end=self._end, next_seq=self._next_seq)
            for frame in reader:
                self._end, self._next_seq = frame.end, frame.seq + 1
                if frame.seq >= self._wanted:
                    self._wanted = frame.seq + 1
                    yield frame.seq, frame.leaf
                if self._next_seq >= upto:
                    return

    def _enter_next_segment(self) -> None:
        """Go on with the segment that begins where this one ended, if there is one."""
        following = self._next_seq
        if following != self._segment and (self._directory / segment_name(following)).exists():
            self._segment, self._end = following, 0
