"""What leaves the node as evidence: exports, proofs and cosigned heads, and what they refuse."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from appliance.audit.checkpoint import CHECKPOINT_NAME, parse_checkpoint
from appliance.audit.cosignature import CosignerKey, CosignerVerifier
from appliance.audit.cosigned import cosigned_name, take_in
from appliance.audit.cosigner import Cosigner
from appliance.audit.event import decode_leaf
from appliance.audit.export import export
from appliance.audit.fsck import verify
from appliance.audit.note import Ed25519Verifier, join_notes, text_of
from appliance.audit.proof import parse_proof, prove
from appliance.audit.signer import load_signer
from appliance.errors import (
    AuditError,
    ConflictError,
    NotFoundError,
    SignatureError,
    StorageError,
    VerificationError,
)
from tests.audit.sample import assert_verifies, exchange, open_log, pinned_key
from tests.fakes.disk import make_read_only, small_disk

BOX = CosignerKey("auditor.example", bytes(range(32)))


def grow(base: Path, count: int = 300, *, roll: bool = False) -> None:
    with open_log(base) as log:
        if roll:
            log.roll()
        log.append([event for i in range(count) for event in exchange(f"{log.size}-{i}")])
        log.checkpoint()


def cosigned(base: Path, memory: Path) -> bytes:
    result = Cosigner(memory, "auditor.example").cosign(base / "audit", pinned_key(base))
    assert result.report.findings == []
    return result.note


def test_an_export_of_a_log_in_use_verifies_alone(tmp_path: Path) -> None:
    grow(tmp_path)
    with open_log(tmp_path) as log:
        log.append(exchange("after"))
        log.roll()
        log.append(exchange("not published"))
        count = export(tmp_path / "audit", tmp_path / "out")
    report = verify(tmp_path / "out", pinned_key(tmp_path))
    assert report.findings == []
    assert (report.size, report.unpublished) == (603, 2)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == count
    assert not [path for path in files if path.suffix in {".lock", ".tmp", ".key"}]


def test_an_export_overwrites_nothing_and_needs_a_log(tmp_path: Path) -> None:
    grow(tmp_path, 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").touch()
    with pytest.raises(ConflictError):
        export(tmp_path / "audit", tmp_path / "out")
    with pytest.raises(NotFoundError):
        export(tmp_path / "nowhere", tmp_path / "new")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
def test_an_export_to_a_stick_that_is_mounted_read_only_says_so(tmp_path: Path) -> None:
    """As the installation has it mounted."""
    grow(tmp_path, 1)
    with small_disk(tmp_path / "stick", 1 << 20):
        make_read_only(tmp_path / "stick")
        with pytest.raises(StorageError, match="Read-only") as caught:
            export(tmp_path / "audit", tmp_path / "stick/audit-2026-11")
    assert "remount,rw" in caught.value.hint


@pytest.mark.parametrize("index", [0, 255, 256, 599])
def test_a_proof_needs_the_record_and_the_key_only(tmp_path: Path, index: int) -> None:
    grow(tmp_path)
    proof, leaf = prove(tmp_path / "audit", index)
    assert leaf is not None
    assert decode_leaf(leaf).seq == index
    key = Ed25519Verifier.parse(pinned_key(tmp_path))
    sent = parse_proof(proof.encoded())
    assert sent == proof
    assert sent.check(leaf, [key]).size == 600
    with pytest.raises(AuditError):
        sent.check(leaf.replace(b"req-", b"req_", 1), [key])
    with pytest.raises(SignatureError):
        sent.check(leaf, [CosignerVerifierAsLog])


CosignerVerifierAsLog = Ed25519Verifier("someone.else", bytes(32))


def test_every_byte_of_a_proof_matters(tmp_path: Path) -> None:
    grow(tmp_path, 20)
    proof, leaf = prove(tmp_path / "audit", 17)
    assert leaf is not None
    key = Ed25519Verifier.parse(pinned_key(tmp_path))
    data = proof.encoded()
    for position in range(len(data)):
        changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        with pytest.raises(VerificationError):
            parse_proof(changed).check(leaf, [key])


def test_a_pruned_record_is_proven_to_whoever_kept_it(tmp_path: Path) -> None:
    grow(tmp_path)
    _, kept = prove(tmp_path / "audit", 3)
    assert kept is not None
    with open_log(tmp_path) as log:
        log.prune("9999", floor=1 << 40)
    proof, leaf = prove(tmp_path / "audit", 3)
    assert leaf is None
    proof.check(kept, [Ed25519Verifier.parse(pinned_key(tmp_path))])


def test_no_proof_of_what_is_not_signed_yet(tmp_path: Path) -> None:
    grow(tmp_path, 2)
    with pytest.raises(AuditError, match="not in the checkpoint"):
        prove(tmp_path / "audit", 4)


def test_a_cosigned_head_is_kept_and_told(tmp_path: Path) -> None:
    grow(tmp_path)
    note = cosigned(tmp_path, tmp_path / "memory")
    cosigner = CosignerVerifier.parse(Cosigner(tmp_path / "memory", "other").vkey)
    assert cosigner.name == "auditor.example"
    head, at = take_in(tmp_path / "audit", note, cosigner)
    assert (head.size, abs(at - time.time()) < 600) == (600, True)
    grow(tmp_path, 10, roll=True)
    report = verify(tmp_path / "audit", pinned_key(tmp_path), cosigner=cosigner)
    assert (report.findings, report.cosigned, report.cosigned_at) == ([], 600, at)
    assert assert_verifies(tmp_path).cosigned == 0, "whose signature counts the reader says"


def test_cosignatures_of_two_lie_in_one_head(tmp_path: Path) -> None:
    grow(tmp_path, 5)
    note = (tmp_path / "audit" / CHECKPOINT_NAME).read_bytes()
    keys = [BOX, CosignerKey("second.example", bytes(32))]
    for key in keys:
        line = key.line(text_of(note), 1_790_000_000).encode()
        take_in(tmp_path / "audit", note + line, key.verifier)
    for key in keys:
        report = verify(tmp_path / "audit", pinned_key(tmp_path), cosigner=key.verifier)
        assert (report.findings, report.cosigned) == ([], 10)


def test_the_auditor_refuses_a_log_that_was_rolled_back(tmp_path: Path) -> None:
    grow(tmp_path)
    shutil.copytree(tmp_path / "audit", tmp_path / "earlier")
    grow(tmp_path, 10)
    cosigned(tmp_path, tmp_path / "memory")
    shutil.rmtree(tmp_path / "audit")
    shutil.copytree(tmp_path / "earlier", tmp_path / "audit")
    result = Cosigner(tmp_path / "memory", "").cosign(tmp_path / "audit", pinned_key(tmp_path))
    assert result.note == b""
    assert [finding.code for finding in result.report.findings] == ["rolled_back"]


def test_a_rolled_back_node_refuses_its_own_cosigned_head(tmp_path: Path) -> None:
    grow(tmp_path)
    shutil.copytree(tmp_path / "audit", tmp_path / "earlier")
    grow(tmp_path, 10)
    note = cosigned(tmp_path, tmp_path / "memory")
    cosigner = CosignerVerifier.parse(Cosigner(tmp_path / "memory", "").vkey)
    with pytest.raises(AuditError, match="620 records, the log 600"):
        take_in(tmp_path / "earlier", note, cosigner)
    (tmp_path / "earlier/cosigned").mkdir()
    (tmp_path / "earlier" / cosigned_name(620)).write_bytes(note)
    report = verify(tmp_path / "earlier", pinned_key(tmp_path))
    assert [finding.code for finding in report.findings] == ["rolled_back"]


def test_only_a_head_that_both_signed_is_taken_in(tmp_path: Path) -> None:
    grow(tmp_path, 5)
    note = (tmp_path / "audit" / CHECKPOINT_NAME).read_bytes()
    line = BOX.line(text_of(note), 1_790_000_000).encode()
    with pytest.raises(SignatureError, match="did not cosign"):
        take_in(tmp_path / "audit", note, BOX.verifier)
    with pytest.raises(SignatureError):
        take_in(tmp_path / "audit", f"{text_of(note)}\n".encode() + line, BOX.verifier)
    wrong = line.replace(b"A", b"B", 1) if b"A" in line else line
    with pytest.raises(VerificationError):
        take_in(tmp_path / "audit", note + wrong, BOX.verifier)
    other = text_of(note).replace("\n10\n", "\n9\n")
    forged = load_signer(tmp_path / "key").signer.signature_line(other)
    whole = f"{other}\n{forged}{BOX.line(other, 1)}".encode()
    with pytest.raises(AuditError):
        take_in(tmp_path / "audit", whole, BOX.verifier)


def test_a_changed_cosigned_head_is_found(tmp_path: Path) -> None:
    grow(tmp_path, 5)
    note = (tmp_path / "audit" / CHECKPOINT_NAME).read_bytes()
    note += BOX.line(text_of(note), 1_790_000_000).encode()
    take_in(tmp_path / "audit", note, BOX.verifier)
    path = tmp_path / "audit" / cosigned_name(10)
    for position in range(len(note)):
        path.write_bytes(note[:position] + bytes([note[position] ^ 1]) + note[position + 1 :])
        report = verify(tmp_path / "audit", pinned_key(tmp_path), cosigner=BOX.verifier)
        assert not report.ok or report.cosigned == 0, f"byte {position}"


def test_a_cosigner_s_key_has_one_form_and_is_not_a_log_s() -> None:
    assert CosignerKey.parse(BOX.encoded) == BOX
    assert CosignerVerifier.parse(BOX.verifier.vkey) == BOX.verifier
    with pytest.raises(SignatureError):
        Ed25519Verifier.parse(BOX.verifier.vkey)
    with pytest.raises(SignatureError):
        CosignerVerifier.parse(Ed25519Verifier("log", BOX.verifier.key).vkey)
    with pytest.raises(SignatureError):
        CosignerKey.parse(BOX.encoded.replace("auditor", "auditon"))


def test_notes_are_joined_if_they_say_the_same(tmp_path: Path) -> None:
    grow(tmp_path, 1)
    note = (tmp_path / "audit" / CHECKPOINT_NAME).read_bytes()
    text = text_of(note)
    more = note + BOX.line(text, 1).encode()
    assert join_notes(note, more) == more == join_notes(more, more)
    assert parse_checkpoint(text).size == 2
    with pytest.raises(AuditError):
        join_notes(note, note.replace(text.encode(), text.replace("\n2\n", "\n3\n").encode()))
