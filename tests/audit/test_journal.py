"""Recovery cuts off what nobody was told of, and nothing else, wherever the tear is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.audit.event import Recovery
from appliance.audit.journal import Journal, JournalReader
from appliance.audit.reader import read_events
from appliance.audit.segment import HEADER_BYTES, FrameReader, segment_name
from appliance.errors import AuditError
from tests.audit.sample import assert_verifies, check, exchange, open_log

BATCHES = ([b"leaf-0", b"leaf-1"], [b"leaf-2", b"leaf-3", b""], [b"leaf-5", b"leaf-6"])
LEAVES = [leaf for batch in BATCHES for leaf in batch]
SEGMENT = segment_name(0)


def leaves_of(batch: list[bytes]) -> Callable[[int], list[bytes]]:
    return lambda first: batch


def journal_in(directory: Path, floor: int) -> Journal:
    return Journal(directory, segment_bytes=65_536, floor=lambda: floor)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A journal of three batches."""
    directory = tmp_path / "written"
    directory.mkdir()
    Journal.create(directory)
    journal = journal_in(directory, 0)
    for batch in BATCHES:
        journal.append(leaves_of(batch))
    journal.close()
    return directory


@pytest.fixture
def ends(written: Path) -> list[int]:
    """File offset behind each record, the header's end first."""
    offsets = [HEADER_BYTES]
    for leaf in LEAVES:
        offsets.append(offsets[-1] + 28 + len(leaf))
    assert offsets[-1] == (written / SEGMENT).stat().st_size
    return offsets


def copy_of(written: Path, name: str) -> Path:
    copy = written.parent / name
    shutil.copytree(written, copy)
    return copy


def recovered(directory: Path, floor: int) -> tuple[int, int]:
    """(next number, bytes cut off) after recovery; checks that the rest reads back."""
    journal = journal_in(directory, floor)
    try:
        journal.refresh()
        assert [leaf for _, leaf in JournalReader(directory, 0).read_rest()] == LEAVES[
            : journal.next_seq
        ]
        return journal.next_seq, journal.take_torn_bytes()
    finally:
        journal.close()


def test_a_tail_torn_at_any_byte_keeps_every_whole_record(written: Path, ends: list[int]) -> None:
    data = (written / SEGMENT).read_bytes()
    for cut in range(HEADER_BYTES, len(data) + 1):
        directory = copy_of(written, f"cut-{cut}")
        (directory / SEGMENT).write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends) - 1
        assert recovered(directory, 0) == (whole, cut - ends[whole])
        assert recovered(directory, 0) == (whole, 0)


def test_a_tail_torn_below_the_published_tree_is_an_error(written: Path, ends: list[int]) -> None:
    data = (written / SEGMENT).read_bytes()
    for floor in (1, 3, len(LEAVES)):
        for cut in {ends[floor] - 1, ends[floor - 1], HEADER_BYTES}:
            directory = copy_of(written, f"floor-{floor}-{cut}")
            (directory / SEGMENT).write_bytes(data[:cut])
            with pytest.raises(AuditError):
                recovered(directory, floor)
            assert (directory / SEGMENT).read_bytes() == data[:cut], "evidence stays"


def test_damage_to_an_acknowledged_batch_is_an_error(written: Path, ends: list[int]) -> None:
    """A later batch proves that the one before it had been acknowledged."""
    data = (written / SEGMENT).read_bytes()
    for position in range(HEADER_BYTES, ends[5]):
        directory = copy_of(written, f"flip-{position}")
        damaged = bytearray(data)
        damaged[position] ^= 0x40
        (directory / SEGMENT).write_bytes(damaged)
        with pytest.raises(AuditError, match="acknowledged"):
            recovered(directory, 0)
        assert (directory / SEGMENT).read_bytes() == damaged, "evidence stays"


def test_damage_to_the_last_batch_is_taken_for_a_tear(written: Path, ends: list[int]) -> None:
    """Pages of the batch that was being written may reach the disk in any order."""
    data = (written / SEGMENT).read_bytes()
    for position in range(ends[5], ends[7]):
        directory = copy_of(written, f"last-{position}")
        damaged = bytearray(data)
        damaged[position] ^= 0x40
        (directory / SEGMENT).write_bytes(damaged)
        whole = 5 if position < ends[6] else 6
        assert recovered(directory, 0) == (whole, len(data) - ends[whole])


def test_zeros_behind_the_last_record_are_a_tear(written: Path, ends: list[int]) -> None:
    with (written / SEGMENT).open("ab") as file:
        file.write(bytes(4096))
    assert recovered(written, len(LEAVES)) == (len(LEAVES), 4096)


def test_a_missing_segment_is_noticed_when_reading(tmp_path: Path) -> None:
    Journal.create(tmp_path)
    journal = Journal(tmp_path, segment_bytes=256, floor=lambda: 0)
    for _ in range(9):
        journal.append(leaves_of([b"x" * 100]))
    journal.close()
    segments = sorted((tmp_path / "segments").iterdir())
    segments[2].unlink()
    with pytest.raises(AuditError, match="missing"):
        list(JournalReader(tmp_path, 0).read(9))
    segments[0].unlink()
    with pytest.raises(AuditError, match="does not reach back"):
        JournalReader(tmp_path, 0)


def test_a_torn_log_says_so_in_the_next_record(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(exchange("a"))
        log.checkpoint()
        log.append(exchange("b"))
    path = tmp_path / "audit" / SEGMENT
    path.write_bytes(path.read_bytes()[:-5])
    report = check(tmp_path)
    assert (report.findings, report.unpublished) == ([], 1)
    assert report.torn_bytes > 0
    with open_log(tmp_path) as log:
        assert log.size == 3
        assert log.append(exchange("c")) == [4, 5]
        assert log.append(exchange("d")) == [6, 7]
        log.checkpoint()
    events = [event for _, event in read_events(tmp_path / "audit")]
    notes = [event for event in events if isinstance(event, Recovery)]
    assert [(n.seq, n.reason, n.truncated_bytes) for n in notes] == [
        (3, "torn_tail", report.torn_bytes)
    ]
    # The response to b was cut off, so b is still open.
    assert assert_verifies(tmp_path).open_requests == 1


def test_a_frame_that_is_being_written_is_no_damage(written: Path, ends: list[int]) -> None:
    whole = (written / SEGMENT).read_bytes()
    for number in range(len(LEAVES) - len(BATCHES[-1])):
        for cut in (ends[number] + 1, ends[number + 1] - 1):
            (written / SEGMENT).write_bytes(whole[:cut])
            with (written / SEGMENT).open("rb") as file:
                reader = FrameReader(file, 0)
                assert [frame.seq for frame in reader] == list(range(number))
                (written / SEGMENT).write_bytes(whole)  # the writer comes to the end of it
                assert reader.torn_bytes
                assert not reader.damage_was_acknowledged()
                (written / SEGMENT).write_bytes(whole[:cut] + bytes(1) + whole[cut + 1 :])
                altered = (written / SEGMENT).read_bytes() != whole
                assert reader.damage_was_acknowledged() == altered
