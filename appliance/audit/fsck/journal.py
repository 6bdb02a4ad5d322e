"""Checks on the journal: whole segments, without gaps, saying what the tree says.

Owns reading it beside the tree, in one pass. A log that is being written may delete a segment
meanwhile; that is told apart from a missing one by the state file.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

from appliance.audit.fsck.report import Report
from appliance.audit.regular import open_regular
from appliance.audit.segment import SEGMENTS, FrameReader, list_segments, parse_name, segment_name
from appliance.audit.state import read_state
from appliance.errors import AuditError


class JournalCheck:
    """Frames of all segments in order, looked up by number in ascending order."""

    def __init__(self, directory: Path, report: Report) -> None:
        self._directory = directory
        self._report = report
        self._frames = self._read_all()
        self.end = 0
        """Behind the last whole record, once everything was read."""
        self.moved = False
        """Whether the writer released a segment before it could be read."""
        self._next = next(self._frames, None)

    def compare(self, seq: int, leaf: bytes) -> None:
        """Check that the journal, if it still has record `seq`, has it as `leaf`."""
        while self._next is not None and self._next[0] < seq:
            self._advance()
        if self._next is not None and self._next[0] == seq:
            if self._next[1] != leaf:
                self._report.add(
                    "journal_differs",
                    "the journal and the entry bundle hold different records",
                    path=self._next[2],
                    seq=seq,
                )
            self._advance()

    def rest(self) -> Iterator[tuple[int, bytes, str]]:
        """(number, leaf, path) of the records that were not compared."""
        while self._next is not None:
            yield self._next
            self._advance()

    def _advance(self) -> None:
        self._next = next(self._frames, None)

    def _read_all(self) -> Iterator[tuple[int, bytes, str]]:
        segments = list_segments(self._directory)
        if not segments:
            self._report.add("journal_missing", "there is no segment", path=SEGMENTS)
        expected: int | None = None
        for i, first in enumerate(segments):
            last = i == len(segments) - 1
            if expected not in (None, first):
                self._report.add(
                    "journal_gap",
                    f"the segment before it ends at record {expected}",
                    path=segment_name(first),
                    seq=expected,
                )
            expected = yield from self._read(first, last=last)

    def _read(
        self, first: int, *, last: bool
    ) -> Generator[tuple[int, bytes, str], None, int | None]:
        """Frames of one segment. The generator's value is the number behind its last one;
        None if the writer deleted the segment meanwhile."""
        path = segment_name(first)
        try:
            with open_regular(self._directory / path) as file:
                reader = FrameReader(file, first)
                self.end = first
                for frame in reader:
                    self.end = frame.seq + 1
                    yield frame.seq, frame.leaf, path
                self._check_end(reader, path, last=last)
                return reader.next_seq
        except AuditError as error:
            self._report.add("journal_damaged", error.message, path=path, seq=first)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self._was_released(first):
                self.moved = True
            else:
                self._report.add("journal_unreadable", str(error.strerror), path=path)
        return None

    def _check_end(self, reader: FrameReader, path: str, *, last: bool) -> None:
        torn = reader.torn_bytes
        if not torn:
            return
        if last and not reader.damage_was_acknowledged():
            self._report.torn_bytes = torn
            return
        self._report.add(
            "journal_damaged",
            f"from byte {reader.end} on it is not a record",
            path=path,
            seq=reader.next_seq,
        )

    def _was_released(self, first: int) -> bool:
        try:
            return read_state(self._directory).journal > first
        except (AuditError, OSError):
            return False


def unexpected_segment_files(directory: Path) -> Iterator[str]:
    """Names in the segments' directory that are not segments."""
    if (directory / SEGMENTS).is_dir():
        for path in (directory / SEGMENTS).iterdir():
            expected = parse_name(path.name) is not None and not path.is_symlink()
            if not (expected and path.is_file()) and os.path.lexists(path):
                yield f"{SEGMENTS}/{path.name}"
