"""Every single edit of a log is found, and an unedited log is never accused."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.audit.cosignature import CosignerKey
from appliance.audit.cosigned import take_in
from appliance.audit.fsck import Report, verify
from appliance.audit.note import text_of
from appliance.config import AuditSettings
from tests.audit.mutations import mutations, parts
from tests.audit.sample import assert_verifies, check, exchange, open_log, pinned_key
from tests.conftest import BuildOnce

RecordProperty = Callable[[str, object], None]
COSIGNER = CosignerKey("auditor.example", bytes(32))

SHARES, FULL_SHARES = 2, 20
FAST, FULL = 100, 500
"""Mutations of each share."""


def build(base: Path) -> None:
    """A log with full and partial tiles on two levels, several segments and epochs, a cosigned
    head, all published; copies of it from before that lie beside it."""
    settings = AuditSettings(segment_bytes=65_536)
    with open_log(base, settings) as log:
        for i in range(30):
            log.append([event for j in range(11) for event in exchange(f"{i}-{j}")])
            if i % 6 == 5:
                log.checkpoint()
            if i in {4, 13}:
                shutil.copytree(base / "audit", base / f"earlier-{i}")
                log.roll()
            if i == 20:
                log.checkpoint()
                note = (base / "audit/checkpoint").read_bytes()
                note += COSIGNER.line(text_of(note), 1_790_000_000).encode()
                take_in(base / "audit", note, COSIGNER.verifier)
        log.checkpoint()


def examine(base: Path) -> Report:
    """As an auditor does who cosigned once."""
    kept = base / "kept"
    if not kept.exists():
        [head] = (base / "audit/cosigned").iterdir()
        kept.write_bytes(head.read_bytes())
    return verify(
        base / "audit", pinned_key(base), since=kept.read_bytes(), cosigner=COSIGNER.verifier
    )


@pytest.fixture
def base(build_once: BuildOnce) -> Path:
    return build_once("audit-log", build)


def undetected(base: Path, tmp_path: Path, *, seed: int, count: int) -> list[str]:
    """Names of the mutations that the auditor does not see: no finding, and the cosigned head
    still told."""
    original = base / "audit"
    copy = tmp_path / "copy"
    shutil.copytree(original, copy / "audit")
    shutil.copytree(base / "key", copy / "key")
    whole = examine(copy)
    assert (whole.findings, whole.epoch) == ([], 2)
    missed = []
    for mutation in mutations(original, random.Random(seed), count):
        shutil.rmtree(copy / "audit")
        shutil.copytree(original, copy / "audit")
        mutation.apply(copy / "audit")
        report = examine(copy)
        if report.ok and report.cosigned == whole.cosigned:
            missed.append(mutation.name)
        (copy / "moved").unlink(missing_ok=True)
    return missed


@pytest.mark.parametrize("share", range(SHARES))
def test_every_mutation_is_detected(
    base: Path, tmp_path: Path, share: int, record_property: RecordProperty
) -> None:
    assert undetected(base, tmp_path, seed=share, count=FAST) == []
    record_property("measured", f"{FAST} single edits of an audit log, all detected")


@pytest.mark.slow
@pytest.mark.parametrize("share", range(FULL_SHARES))
def test_ten_thousand_mutations_are_detected(
    base: Path, tmp_path: Path, share: int, record_property: RecordProperty
) -> None:
    assert undetected(base, tmp_path, seed=1000 + share, count=FULL) == []
    record_property("measured", f"{FULL} single edits of an audit log, all detected")


def test_every_byte_of_the_small_files_matters(tmp_path: Path) -> None:
    copy = tmp_path / "audit"
    with open_log(tmp_path) as log:
        log.append(exchange("a"))
        log.checkpoint()
    key = (copy / "audit.vkey").read_text()
    for name in ("checkpoint", "state.json", "audit.vkey"):
        data = (copy / name).read_bytes()
        for position in range(len(data)):
            (copy / name).write_bytes(
                data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
            )
            assert not verify(copy, key).ok, f"byte {position} of {name}"
        (copy / name).write_bytes(data)
    assert verify(copy, key).ok


def test_a_finding_says_where_and_what(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "copy")
    copy = tmp_path / "copy"
    path = copy / "audit/tile/entries/001"
    path.write_bytes(path.read_bytes().replace(b"req-17-5", b"req-17-6", 1))
    report = check(copy)
    first = report.findings[0]
    assert (first.code, first.path) == ("record_differs", "tile/entries/001")
    assert first.seq == (17 * 11 + 5) * 2 + 2, "two KEYROLLs lie before it"
    assert "root_differs" in {finding.code for finding in report.findings}


def test_a_rolled_back_log_contradicts_a_kept_checkpoint(tmp_path: Path) -> None:
    with open_log(tmp_path / "log") as log:
        log.append(exchange("a"))
        log.checkpoint()
        shutil.copytree(tmp_path / "log/audit", tmp_path / "earlier")
        log.append(exchange("b"))
        log.checkpoint()
    audit = tmp_path / "log/audit"
    kept = (audit / "checkpoint").read_bytes()
    assert check(tmp_path / "log", since=kept).ok
    assert check(tmp_path / "log", since=(tmp_path / "earlier/checkpoint").read_bytes()).ok

    shutil.rmtree(audit)
    shutil.copytree(tmp_path / "earlier", audit)
    assert check(tmp_path / "log").ok, "consistent in itself, so only the kept one tells"
    codes = [finding.code for finding in check(tmp_path / "log", since=kept).findings]
    assert codes == ["rolled_back"]

    with open_log(tmp_path / "log") as log:
        log.append([*exchange("c"), *exchange("d")])
        log.checkpoint()
    codes = [finding.code for finding in check(tmp_path / "log", since=kept).findings]
    assert codes == ["root_differs"]


def test_a_log_signed_by_another_key_is_refused(base: Path, tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        other = log.vkey
    codes = {finding.code for finding in verify(base / "audit", other).findings}
    assert {"key_differs", "checkpoint_invalid"} <= codes


def test_without_a_pinned_key_the_report_says_so(base: Path) -> None:
    report = verify(base / "audit")
    assert report.ok
    assert not report.key_pinned


def test_a_log_is_verified_while_it_is_written(tmp_path: Path) -> None:
    """Reports of a live log are right at every moment; here between any two steps."""
    settings = AuditSettings(segment_bytes=65_536)
    with open_log(tmp_path, settings) as log:
        for i in range(24):
            log.append([event for j in range(40) for event in exchange(f"{i}-{j}")])
            assert_verifies(tmp_path)
            log.checkpoint()
            assert_verifies(tmp_path)


def test_an_empty_log_verifies(tmp_path: Path) -> None:
    with open_log(tmp_path):
        pass
    assert assert_verifies(tmp_path).size == 0


def test_the_mutated_log_has_every_kind_of_file(base: Path) -> None:
    names = parts(base / "audit")
    for needed in ("checkpoint", "state.json", "audit.vkey", "tile/0/001", "tile/entries/001"):
        assert needed in names
    assert sum(name.startswith("segments/") for name in names) > 1
    assert any(name.startswith("tile/1/000.p/") for name in names)
