"""A proof that one record is in the log, as one file: c2sp.org/tlog-proof, version 1.

Owns the text form and checking it: index, the hashes from the leaf up to the root, and the signed
checkpoint, all that anybody needs who has the record and the key. Refuses to sign anything: the
checkpoint is the log's newest one, whoever asks.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.audit.checkpoint import (
    CHECKPOINT_NAME,
    Checkpoint,
    open_checkpoint,
    parse_checkpoint,
)
from appliance.audit.merkle import (
    HASH_BYTES,
    inclusion_proof,
    leaf_hash,
    root_at,
    verify_inclusion,
)
from appliance.audit.note import MAX_NOTE_BYTES, NoteVerifier, text_of
from appliance.audit.prune import first_kept
from appliance.audit.regular import read_regular
from appliance.audit.tiles import TILE_WIDTH, TileReader
from appliance.errors import AuditError

HEADER = "c2sp.org/tlog-proof@v1"
_MAX_HASHES = 64


@dataclass(frozen=True, slots=True)
class Proof:
    """That record `index` is under the root of the checkpoint in `note`."""

    index: int
    hashes: tuple[bytes, ...]
    note: bytes

    def encoded(self) -> bytes:
        lines = [HEADER, f"index {self.index}"]
        lines += [base64.b64encode(value).decode("ascii") for value in self.hashes]
        return "".join(f"{line}\n" for line in lines).encode("ascii") + b"\n" + self.note

    def check(self, leaf: bytes, verifiers: Sequence[NoteVerifier]) -> Checkpoint:
        """The checkpoint that proves `leaf`. Raises AuditError or SignatureError if it does not."""
        head = open_checkpoint(self.note, verifiers)
        verify_inclusion(leaf_hash(leaf), self.index, head.size, self.hashes, head.root)
        return head


def parse_proof(data: bytes) -> Proof:
    """Read `Proof.encoded`. Raises AuditError."""
    head, _, note = data.partition(b"\n\n")
    lines = head.decode("utf-8", "replace").split("\n")
    number = lines[1].removeprefix("index ") if len(lines) > 1 else ""
    if lines[0] != HEADER or not number.isdecimal() or len(lines) > 2 + _MAX_HASHES:
        raise AuditError("this is not a proof")
    try:
        hashes = tuple(base64.b64decode(line, validate=True) for line in lines[2:])
    except (binascii.Error, ValueError):
        raise AuditError("a hash of the proof is malformed") from None
    proof = Proof(int(number), hashes, note)
    if any(len(value) != HASH_BYTES for value in hashes) or proof.encoded() != data:
        raise AuditError("the proof is malformed")
    return proof


def prove(directory: Path, index: int) -> tuple[Proof, bytes | None]:
    """The proof that record `index` is in the log, and its leaf; None if that was pruned.

    Checks what it made. Raises AuditError, also for a record that no checkpoint covers yet.
    """
    note, head, node = _published(directory)
    if not 0 <= index < head.size:
        raise AuditError(
            f"record {index} is not in the checkpoint of {head.size} records",
            hint="name a record of it; a new one is covered within a second",
        )
    proof = Proof(index, tuple(inclusion_proof(index, head.size, node)), note)
    verify_inclusion(node(0, index), index, head.size, proof.hashes, head.root)
    if index < first_kept(directory, head.size):
        return proof, None
    leaf = node.leaves(index // TILE_WIDTH)[index % TILE_WIDTH]
    verify_inclusion(leaf_hash(leaf), index, head.size, proof.hashes, head.root)
    return proof, leaf


def _published(directory: Path) -> tuple[bytes, Checkpoint, TileReader]:
    try:
        note = read_regular(directory / CHECKPOINT_NAME, MAX_NOTE_BYTES)
    except OSError as error:
        raise AuditError(f"the checkpoint cannot be read: {error.strerror}") from error
    head = parse_checkpoint(text_of(note))
    node = TileReader(directory, head.size)
    if root_at(head.size, node) != head.root:
        raise AuditError("the tiles do not lead to the checkpoint's root", path=CHECKPOINT_NAME)
    return note, head, node
