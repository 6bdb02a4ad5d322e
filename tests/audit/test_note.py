"""Signed notes and checkpoints are those of C2SP, and no bit of them can change unnoticed."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.audit.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from appliance.audit.note import Ed25519Signer, Ed25519Verifier, open_note, sign_note
from appliance.errors import AuditError, SignatureError, VerificationError

# The example in the documentation of golang.org/x/mod/sumdb/note.
VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
SIGNATURE = (
    "— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)

# The example in c2sp.org/tlog-checkpoint.
CHECKPOINT_TEXT = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
)

SIGNER = Ed25519Signer("log.example/a", hashlib.sha256(b"a").digest())
OTHER = Ed25519Signer("witness.example/b", hashlib.sha256(b"b").digest())


def test_a_note_is_signed_and_verified_as_the_go_implementation_does_it() -> None:
    signer = Ed25519Signer.parse(SKEY)
    assert signer.encoded == SKEY
    assert signer.verifier.vkey == VKEY
    note = sign_note(TEXT, [signer])
    assert note == (TEXT + "\n" + SIGNATURE).encode()
    assert open_note(note, [Ed25519Verifier.parse(VKEY)]) == TEXT


def test_the_example_checkpoint_of_the_specification_is_understood() -> None:
    checkpoint = parse_checkpoint(CHECKPOINT_TEXT)
    assert checkpoint.origin == "example.com/behind-the-sofa"
    assert checkpoint.size == 20852163
    assert checkpoint.text == CHECKPOINT_TEXT


def test_signatures_of_others_are_ignored_and_kept_beside_ours() -> None:
    note = sign_note(TEXT, [OTHER, SIGNER])
    assert open_note(note, [SIGNER.verifier]) == TEXT
    assert open_note(note, [OTHER.verifier]) == TEXT
    with pytest.raises(SignatureError, match="no signature by a known key"):
        open_note(sign_note(TEXT, [OTHER]), [SIGNER.verifier])


def test_one_wrong_signature_by_a_known_key_refuses_the_whole_note() -> None:
    good = sign_note(TEXT, [OTHER]).decode()
    wrong = SIGNER.signature_line("another text\n")
    with pytest.raises(SignatureError, match=r"log\.example/a"):
        open_note((good + wrong).encode(), [SIGNER.verifier, OTHER.verifier])


@given(st.data())
def test_a_checkpoint_with_any_one_bit_flipped_is_refused(data: st.DataObject) -> None:
    note = Checkpoint(SIGNER.name, 1234, hashlib.sha256(b"").digest()).signed([SIGNER])
    position = data.draw(st.integers(0, len(note) - 1))
    bit = data.draw(st.integers(0, 7))
    flipped = note[:position] + bytes([note[position] ^ 1 << bit]) + note[position + 1 :]
    with pytest.raises(VerificationError):
        open_checkpoint(flipped, [SIGNER.verifier])


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_at_all_crash_the_reader_of_notes(data: bytes) -> None:
    with pytest.raises(VerificationError):
        open_checkpoint(data, [SIGNER.verifier])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "origin\n1\n",
        "origin\n01\n" + "A" * 43 + "=\n",
        "origin\n-1\n" + "A" * 43 + "=\n",
        "origin\n1\n" + "A" * 42 + "==\n",
        "origin\n1\n" + "A" * 42 + "B=\n",
        "\n1\n" + "A" * 43 + "=\n",
        "origin\n1\n" + "A" * 43 + "=\nextension\n",
    ],
)
def test_a_malformed_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(AuditError):
        parse_checkpoint(text)


def test_a_checkpoint_of_another_log_is_refused() -> None:
    note = Checkpoint("another.example/log", 0, bytes(32)).signed([SIGNER])
    with pytest.raises(AuditError, match="another log"):
        open_checkpoint(note, [SIGNER.verifier])


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "name",
        "name+c74f20a3",
        VKEY.replace("c74f20a3", "c74f20a4"),
        VKEY.replace("PeterNeumann", "PeterNewman"),
        VKEY[:-1] + "X",
        VKEY + "AAAA",
        VKEY.replace("+ARpc", "+BBpc"),
    ],
)
def test_a_damaged_key_is_refused(vkey: str) -> None:
    with pytest.raises(SignatureError):
        Ed25519Verifier.parse(vkey)


@pytest.mark.parametrize("name", ["", "two words", "a+b", "line\nbreak"])
def test_a_name_that_a_note_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(SignatureError):
        Ed25519Signer.generate(name)
