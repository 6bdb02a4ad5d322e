"""Pruning deletes old records and nothing else: what is left verifies, and says what is gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from appliance.audit.event import Event, Keyroll, Prune, timestamp
from appliance.audit.fsck import Report
from appliance.audit.log import AuditLog
from appliance.audit.merkle import inclusion_proof, leaf_hash, root_at, verify_inclusion
from appliance.audit.reader import first_record, read_events
from appliance.audit.tiles import Tile, TileReader
from appliance.config import AuditSettings
from tests.audit.sample import assert_verifies, check, exchange, open_log, request, response

OLD, MIDDLE, NEW = (f"2026-0{month}-01T00:00:00.000000Z" for month in (1, 5, 9))
EVERYTHING = 1 << 40


def at(t_utc: str, events: list[Event]) -> list[Event]:
    return [
        type(e)(**{n: getattr(e, n) for n in e.__struct_fields__} | {"t_utc": t_utc})
        for e in events
    ]


def fill(log: AuditLog, t_utc: str, count: int, name: str = "r") -> None:
    """`count` exchanges of that time, published."""
    for start in range(0, count, 100):
        numbers = range(start, min(count, start + 100))
        log.append([e for i in numbers for e in at(t_utc, exchange(f"{name}-{t_utc}-{i}"))])
    log.checkpoint()


def codes(base: Path) -> set[str]:
    return {finding.code for finding in check(base).findings}


def pruned(base: Path) -> Report:
    """A log of 400 old, 400 new exchanges, of which whole bundles of old records were pruned."""
    with open_log(base, AuditSettings(segment_bytes=65_536)) as log:
        fill(log, OLD, 400)
        fill(log, NEW, 400)
        assert log.prune(MIDDLE, floor=EVERYTHING) == 768
    return assert_verifies(base)


def test_what_is_older_is_deleted_by_whole_bundles_and_its_proofs_stay(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        fill(log, OLD, 400)
        fill(log, NEW, 400)
        reader = TileReader(tmp_path / "audit", 1600)
        kept_by_somebody = reader.leaves(0)[7]
        assert log.prune(MIDDLE, floor=EVERYTHING) == 768
        head = log.published
    report = assert_verifies(tmp_path)
    assert (report.pruned, report.records["PRUNE"]) == (768, 1)
    assert first_record(tmp_path / "audit") == 768
    node = TileReader(tmp_path / "audit", head.size)
    assert root_at(head.size, node) == head.root
    proof = inclusion_proof(7, head.size, node)
    verify_inclusion(leaf_hash(kept_by_somebody), 7, head.size, proof, head.root)


def test_nothing_of_a_deleted_record_is_left_on_the_disk(tmp_path: Path) -> None:
    pruned(tmp_path)
    kept = b"".join(p.read_bytes() for p in (tmp_path / "audit").rglob("*") if p.is_file())
    assert f'r-{OLD}-3"'.encode() not in kept
    assert f'r-{NEW}-3"'.encode() in kept


def test_reading_begins_with_the_first_record_kept(tmp_path: Path) -> None:
    pruned(tmp_path)
    events = list(read_events(tmp_path / "audit"))
    assert [seq for seq, _ in events] == list(range(768, 1601))
    last = events[-1][1]
    assert isinstance(last, Prune)
    assert (last.v, last.first_kept, last.before) == (2, 768, MIDDLE)


def test_a_second_pruning_goes_on_and_the_first_one_s_record_may_go_too(tmp_path: Path) -> None:
    pruned(tmp_path)
    with open_log(tmp_path) as log:
        assert log.prune(MIDDLE, floor=EVERYTHING) == 0
        fill(log, timestamp(), 400, "later")
        assert log.prune(timestamp(), floor=EVERYTHING) == 1536
    assert assert_verifies(tmp_path).pruned == 2304


def test_an_open_request_and_what_follows_it_are_kept(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        fill(log, OLD, 150)
        log.append(at(OLD, [request("open")]))
        fill(log, OLD, 400, "more")
        assert log.prune(NEW, floor=EVERYTHING) == 256
        log.append([response("open")])
        log.checkpoint()
    assert assert_verifies(tmp_path).open_requests == 0


def test_a_request_may_be_gone_whose_end_is_there(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(at(OLD, [request("long")]))
        fill(log, OLD, 200)
        log.append(at(OLD, [response("long")]))
        fill(log, NEW, 200)
        assert log.prune(MIDDLE, floor=EVERYTHING) == 256
    assert_verifies(tmp_path)


def test_what_somebody_still_needs_is_kept(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        fill(log, OLD, 400)
        assert log.prune(NEW, floor=700) == 512
    assert_verifies(tmp_path)


def test_epochs_lead_through_what_was_pruned(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        fill(log, OLD, 100)
        log.roll()
        fill(log, OLD, 100, "more")
        log.roll()
        fill(log, OLD, 100, "most")
        rolls = [s for s, e in read_events(tmp_path / "audit") if isinstance(e, Keyroll)]
        assert log.prune(timestamp(), floor=EVERYTHING) == 512
    assert max(rolls) < 512
    assert assert_verifies(tmp_path).epoch == 2
    end = tmp_path / "audit/epochs/00000001"
    end.write_bytes(end.read_bytes().replace(b'"boot_id":"', b'"boot_id":"0', 1))
    assert not check(tmp_path).ok


@pytest.mark.parametrize("index", [0, 1, 4])
def test_a_bundle_that_no_prune_names_is_missed(tmp_path: Path, index: int) -> None:
    pruned(tmp_path / "a")
    with open_log(tmp_path / "b") as log:
        fill(log, OLD, 400)
        fill(log, NEW, 400)
    for base, bundle in ((tmp_path / "a", 3), (tmp_path / "b", index)):
        (base / "audit" / Tile(-1, bundle).path).unlink()
        assert codes(base) & {"record_missing", "tile_missing"}


def test_a_pruning_that_was_cut_short_verifies_and_is_finished(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        fill(log, OLD, 400)
        fill(log, NEW, 400)
        shutil.copytree(tmp_path / "audit/tile/entries", tmp_path / "entries")
        log.prune(MIDDLE, floor=EVERYTHING)
    for name in ("001", "002"):
        shutil.copyfile(tmp_path / "entries" / name, tmp_path / "audit/tile/entries" / name)
    assert assert_verifies(tmp_path).pruned == 256
    with open_log(tmp_path) as log:
        assert log.prune(MIDDLE, floor=EVERYTHING) == 512
    assert assert_verifies(tmp_path).pruned == 768


def test_a_hash_of_a_pruned_record_cannot_be_changed(tmp_path: Path) -> None:
    pruned(tmp_path)
    path = tmp_path / "audit/tile/0/001"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert "root_differs" in codes(tmp_path)


def test_a_pruned_log_goes_on_after_a_restart(tmp_path: Path) -> None:
    pruned(tmp_path)
    with open_log(tmp_path) as log:
        assert log.recover() == 0
        fill(log, NEW, 10, "again")
    assert assert_verifies(tmp_path).pruned == 768
