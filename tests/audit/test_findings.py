"""What an auditor reads when something is wrong: few findings, each about what was done."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.audit.cosignature import CosignerKey
from appliance.audit.cosigned import COSIGNED, take_in
from appliance.audit.epochs import epoch_name
from appliance.audit.fsck import Finding, Report, verify
from appliance.audit.log import AuditLog
from appliance.audit.note import text_of
from appliance.audit.signer import create_signer
from appliance.audit.tiles import decode_bundle, encode_bundle
from appliance.config import AuditSettings
from appliance.errors import ApplianceError, AuditError, NotFoundError, SignatureError
from tests.audit.sample import ORIGIN, assert_verifies, check, exchange, open_log, pinned_key

COSIGNER = CosignerKey("auditor.example", bytes(range(32)))
ENTRIES = "tile/entries/000.p"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A log of 200 records."""
    with open_log(tmp_path) as log:
        log.append([event for i in range(100) for event in exchange(i)])
        log.checkpoint()
    return tmp_path


def found(base: Path, since: bytes | None = None) -> list[tuple[str, str]]:
    return [(finding.code, finding.path) for finding in check(base, since=since).findings]


def test_records_that_moved_are_one_finding_and_hide_no_other(base: Path) -> None:
    path = base / "audit" / ENTRIES / "200"
    leaves = decode_bundle(path.read_bytes(), 200)
    path.write_bytes(encode_bundle([*leaves[:20], *leaves[21:], leaves[199]]))
    findings = {finding.code: finding for finding in check(base).findings}
    assert {"record_differs", "record_misplaced", "root_differs", "tile_wrong"} <= findings.keys()
    moved = findings["record_misplaced"]
    assert (moved.seq, moved.last, moved.records) == (20, 198, "20-198")
    assert moved.message == "its own number is 1 higher than its place"
    assert findings["record_differs"].records == "20-198"


def test_only_what_holds_of_the_next_record_goes_on() -> None:
    report = Report()
    for seq in (3, 4, 6, 7):
        report.add("epoch_wrong", "it says another", path="a", seq=seq)
        report.add("record_invalid", f"in its own way {seq}", path="a", seq=seq)
    shown = [finding.records for finding in report.findings if finding.code == "epoch_wrong"]
    assert shown == ["3-4", "6-7"]
    assert (report.finding_count, len(report.findings)) == (6, 6)
    assert Finding("code", "message").records == ""


@pytest.mark.parametrize("name", ["checkpoint", "audit.vkey", "state.json"])
def test_a_file_that_is_gone_is_one_finding(base: Path, name: str) -> None:
    kept = (base / "audit/checkpoint").read_bytes()
    (base / "audit" / name).unlink()
    assert found(base, since=kept) == [("file_unreadable", name)]


def test_a_log_without_a_head_of_its_own_must_still_reach_to_the_kept_one(base: Path) -> None:
    shutil.copytree(base / "audit", base / "earlier")
    with open_log(base) as log:
        log.append(exchange("later"))
        log.checkpoint()
    kept = (base / "audit/checkpoint").read_bytes()
    shutil.rmtree(base / "audit")
    (base / "earlier").rename(base / "audit")
    (base / "audit/checkpoint").unlink()
    assert ("rolled_back", "the kept checkpoint") in found(base, since=kept)


def test_the_end_of_an_epoch_whose_records_were_pruned_is_missed_by_name(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for i in range(3):
            log.append([event for j in range(100) for event in exchange(f"{i}-{j}")])
            log.roll()
        log.append(exchange("last"))
        assert log.prune("9999", floor=1 << 40) == 512
    assert_verifies(tmp_path)
    (tmp_path / "audit" / epoch_name(0)).unlink()
    findings = found(tmp_path)
    assert ("epoch_unsigned", epoch_name(0)) in findings
    assert "rolled_back" not in {code for code, _ in findings}
    assert len(findings) < 10


def test_older_versions_of_a_tile_that_is_gone_are_not_accused(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for i in range(4):
            log.append(exchange(i))
            log.checkpoint()
    (tmp_path / "audit" / ENTRIES / "8").unlink()
    assert (tmp_path / "audit" / ENTRIES / "6").exists()
    assert ("tile_missing", f"{ENTRIES}/8") in found(tmp_path)
    assert "file_unexpected" not in {code for code, _ in found(tmp_path)}


def test_a_log_on_a_disk_of_its_own_is_not_accused_of_what_the_disk_has(base: Path) -> None:
    lost = base / "audit/lost+found"
    lost.mkdir(mode=0o700)
    assert found(base) == []
    (lost / "#12").write_bytes(b"what a check of the disk put there")
    assert found(base) == [("file_unexpected", "lost+found")]
    shutil.rmtree(lost)
    lost.write_bytes(b"a file of this name")
    assert found(base) == [("file_unexpected", "lost+found")]


def test_a_cosigner_whose_heads_are_all_gone_is_missed(base: Path) -> None:
    def ask() -> list[str]:
        report = verify(base / "audit", pinned_key(base), cosigner=COSIGNER.verifier)
        return [finding.code for finding in report.findings]

    note = (base / "audit/checkpoint").read_bytes()
    note += COSIGNER.line(text_of(note), 1_790_000_000).encode()
    assert ask() == ["cosignature_missing"]
    take_in(base / "audit", note, COSIGNER.verifier)
    assert ask() == []
    shutil.rmtree(base / "audit" / COSIGNED)
    assert ask() == ["cosignature_missing"]
    assert_verifies(base)


def test_a_lost_signing_key_is_not_replaced_by_a_new_one(base: Path) -> None:
    remove_key(base)
    with pytest.raises(NotFoundError) as caught:
        create_signer(base / "key", ORIGIN)
    assert "restore audit-key" in caught.value.hint
    assert not (base / "key/audit.key").exists()


def remove_checkpoint(base: Path) -> None:
    (base / "audit/checkpoint").unlink()


def remove_key(base: Path) -> None:
    (base / "key/audit.key").unlink()


def replace_key(base: Path) -> None:
    shutil.rmtree(base / "key")
    create_signer(base / "key", ORIGIN)


def alter_records(base: Path) -> None:
    path = base / "audit" / ENTRIES / "203"
    path.write_bytes(path.read_bytes().replace(b"req-7", b"req-8"))


@pytest.mark.parametrize(
    ("damage", "error", "message", "hint"),
    [
        (remove_checkpoint, AuditError, "records but no checkpoint", "call the auditor"),
        (remove_key, NotFoundError, "no audit signing key", "restore audit-key"),
        (replace_key, SignatureError, "checkpoint is not signed by", "of the same backup"),
        (alter_records, AuditError, "disagree", "run `appliance audit verify`"),
    ],
)
def test_a_log_that_stays_closed_says_what_to_do(
    base: Path, damage: Callable[[Path], None], error: type[ApplianceError], message: str, hint: str
) -> None:
    with open_log(base) as log:
        log.roll()
        log.append(exchange("after"))
        log.checkpoint()
    damage(base)
    with pytest.raises(error, match=message) as caught:
        AuditLog.open(base / "audit", base / "key", AuditSettings())
    assert hint in caught.value.hint
