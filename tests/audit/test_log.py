"""The log keeps what it acknowledged, in order, and begins again where it stopped."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from appliance.audit.event import Heartbeat, Recovery, Request, Response
from appliance.audit.log import AuditLog
from appliance.audit.reader import read_events
from appliance.audit.segment import list_segments, segment_name
from appliance.audit.signer import SECRET_NAME, create_signer, load_signer
from appliance.config import AuditSettings
from appliance.errors import AuditError, NotFoundError, SignatureError, VerificationError
from tests.audit.sample import ORIGIN, assert_verifies, check, exchange, open_log, request, response

SMALL = AuditSettings(segment_bytes=65_536)


def test_records_are_numbered_from_zero_and_read_back_in_order(tmp_path: Path) -> None:
    events = [event for i in range(40) for event in exchange(i)]
    with open_log(tmp_path) as log:
        assert log.append(events[:3]) == [0, 1, 2]
        assert log.append(events[3:]) == list(range(3, 80))
        assert log.size == 80
        assert log.published.size == 0
        assert log.checkpoint().size == 80
    read = list(read_events(tmp_path / "audit"))
    assert [seq for seq, _ in read] == list(range(80))
    assert [event.t_utc for _, event in read] == [event.t_utc for event in events]
    assert [seq for seq, _ in read_events(tmp_path / "audit", 77)] == [77, 78, 79]
    assert_verifies(tmp_path)


def test_what_was_acknowledged_but_not_published_is_there_after_reopening(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(exchange("a"))
        log.checkpoint()
        log.append(exchange("b"))
    assert assert_verifies(tmp_path).unpublished == 2
    with open_log(tmp_path) as log:
        assert log.size == 4
        assert log.append([Heartbeat()]) == [4]
        assert log.checkpoint().size == 5
    assert assert_verifies(tmp_path).unpublished == 0


def test_a_log_that_cannot_be_opened_leaves_no_file_open(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(exchange("a"))
        log.checkpoint()
    (segment,) = (tmp_path / "audit/segments").iterdir()
    segment.write_bytes(b"nonsense")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(AuditError):
            AuditLog.open(tmp_path / "audit", tmp_path / "key", SMALL)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_every_size_around_a_tile_s_edge_can_be_reopened(tmp_path: Path) -> None:
    for size in (1, 254, 255, 256, 257, 511, 512, 513):
        with open_log(tmp_path) as log:
            log.append([Heartbeat() for _ in range(size - log.size)])
            assert log.checkpoint().size == size
        assert_verifies(tmp_path)


def test_segments_are_released_once_the_tree_has_their_records(tmp_path: Path) -> None:
    with open_log(tmp_path, SMALL) as log:
        for i in range(40):
            log.append([event for j in range(20) for event in exchange(f"{i}-{j}")])
            if i % 10 == 9:
                log.checkpoint()
                assert_verifies(tmp_path)
        log.checkpoint()
    kept = list_segments(tmp_path / "audit")
    assert kept[0] > 0
    assert len(list(read_events(tmp_path / "audit"))) == 1600


def test_partial_tiles_go_when_the_full_one_is_there(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for _ in range(30):
            log.append([Heartbeat() for _ in range(10)])
            log.checkpoint()
    tiles = tmp_path / "audit/tile"
    assert not (tiles / "0/000.p").exists()
    assert not (tiles / "entries/000.p").exists()
    assert {path.name for path in (tiles / "0/001.p").iterdir()} == {"4", "14", "24", "34", "44"}
    assert_verifies(tmp_path)


def test_requests_left_open_are_closed_once_at_start(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append([request("open-1"), *exchange("done"), request("open-2")])
    with open_log(tmp_path) as log:
        assert log.recover() == 2
        assert log.recover() == 0
    *_, first, second, note = [event for _, event in read_events(tmp_path / "audit")]
    assert isinstance(first, Response)
    assert isinstance(second, Response)
    assert {first.request_id, second.request_id} == {"req-open-1", "req-open-2"}
    assert first.outcome == "aborted"
    assert first.aborted_boot == first.boot_id
    assert isinstance(note, Recovery)
    assert note.closed_requests == 2
    assert assert_verifies(tmp_path).open_requests == 0


def test_a_request_that_stays_open_for_long_is_still_found(tmp_path: Path) -> None:
    with open_log(tmp_path, SMALL) as log:
        log.append([request("slow")])
        for i in range(60):
            log.append([event for j in range(20) for event in exchange(f"{i}-{j}")])
            log.checkpoint()
    with open_log(tmp_path, SMALL) as log:
        assert log.recover() == 1
    last = [event for _, event in read_events(tmp_path / "audit")][-2]
    assert isinstance(last, Response)
    assert last.request_id == "req-slow"
    assert_verifies(tmp_path)


def test_a_response_takes_its_fields_from_the_request_that_it_closes(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append([request("x")])
        log.recover()
    events = {type(event): event for _, event in read_events(tmp_path / "audit")}
    opened, closed = events[Request], events[Response]
    assert isinstance(opened, Request)
    assert isinstance(closed, Response)
    assert (closed.key_id, closed.model, closed.route) == (
        opened.key_id,
        opened.model,
        opened.route,
    )


def test_two_logs_open_in_one_process_take_turns(tmp_path: Path) -> None:
    with open_log(tmp_path, SMALL) as one, open_log(tmp_path, SMALL) as two:
        for i in range(200):
            log = (one, two)[i % 2]
            assert log.append(exchange(i)) == [2 * i, 2 * i + 1]
            if i % 7 == 0:
                (two, one)[i % 2].checkpoint()
        one.append([Heartbeat()])
        assert two.append([Heartbeat()]) == [401]
        assert two.checkpoint().size == 402
        assert one.checkpoint() == two.published
    assert_verifies(tmp_path)


def test_a_log_needs_its_key(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        AuditLog.open(tmp_path / "audit", tmp_path / "key", AuditSettings())


def test_a_key_is_created_once(tmp_path: Path) -> None:
    vkey = create_signer(tmp_path / "key", ORIGIN)
    assert create_signer(tmp_path / "key", ORIGIN) == vkey
    assert (tmp_path / "key/audit.vkey").read_text() == f"{vkey}\n"
    assert (tmp_path / "key" / SECRET_NAME).stat().st_mode & 0o777 == 0o600
    with open_log(tmp_path) as log:
        assert log.vkey == vkey
    assert (tmp_path / "audit/audit.vkey").read_text() == f"{vkey}\n"


def test_a_log_is_not_continued_with_another_key(tmp_path: Path) -> None:
    with open_log(tmp_path):
        pass
    shutil.rmtree(tmp_path / "key")
    with pytest.raises(SignatureError), open_log(tmp_path):
        pass


def test_a_damaged_key_is_refused(tmp_path: Path) -> None:
    create_signer(tmp_path / "key", ORIGIN)
    path = tmp_path / "key" / SECRET_NAME
    path.write_text(path.read_text().replace("+A", "+B"))
    with pytest.raises(SignatureError):
        load_signer(tmp_path / "key")


@pytest.mark.parametrize(
    "name", ["checkpoint", "state.json", "tile/0/000.p/2", "tile/entries/000.p/2", "segments"]
)
def test_a_log_that_lost_a_part_is_not_continued(tmp_path: Path, name: str) -> None:
    with open_log(tmp_path) as log:
        log.append(exchange("a"))
        log.checkpoint()
    path = tmp_path / "audit" / name
    path.rename(tmp_path / "lost")
    with pytest.raises(AuditError), open_log(tmp_path):
        pass


def test_a_log_whose_tree_was_altered_is_not_continued(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(exchange("a"))
        log.checkpoint()
    path = tmp_path / "audit/tile/0/000.p/2"
    path.write_bytes(bytes(64))
    with pytest.raises(VerificationError), open_log(tmp_path):
        pass


def test_a_creation_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    with open_log(tmp_path):
        pass
    for lost in (["checkpoint"], ["checkpoint", "state.json"], ["checkpoint", "audit.vkey"]):
        for name in lost:
            (tmp_path / "audit" / name).unlink()
        with open_log(tmp_path) as log:
            assert log.size == 0
        assert_verifies(tmp_path)


def test_a_publication_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    """The state may be ahead of the checkpoint, tiles may be ahead of the state."""
    with open_log(tmp_path) as log:
        log.append(exchange("a"))
        log.checkpoint()
        names = ("checkpoint", "state.json")
        earlier = {name: (tmp_path / "audit" / name).read_bytes() for name in names}
        log.append([Heartbeat() for _ in range(300)])
        log.checkpoint()
    for name in names:
        (tmp_path / "audit" / name).write_bytes(earlier[name])
        report = assert_verifies(tmp_path)
        assert (report.size, report.unpublished) == (2, 300)
    with open_log(tmp_path) as log:
        assert log.checkpoint().size == 302
    assert_verifies(tmp_path)


def test_files_and_directories_are_the_owner_s_alone(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(exchange("a"))
        log.checkpoint()
    for path in (tmp_path / "audit").rglob("*"):
        mode = path.stat().st_mode & 0o777
        assert mode == (0o700 if path.is_dir() else 0o644 if path.suffix == ".vkey" else 0o600)


def test_an_altered_segment_header_is_refused(tmp_path: Path) -> None:
    with open_log(tmp_path):
        pass
    path = tmp_path / "audit" / segment_name(0)
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"\x01", 9)
    os.close(fd)
    with pytest.raises(AuditError, match="header"), open_log(tmp_path):
        pass


def test_an_unpaired_response_is_found(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append([*exchange("a"), response("a"), request("b"), request("b")])
        log.checkpoint()
    codes = [finding.code for finding in check(tmp_path).findings]
    assert codes == ["response_unpaired", "request_twice"]
