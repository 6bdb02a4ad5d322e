"""Checkpoints, c2sp.org/tlog-checkpoint: origin, tree size and root hash in a signed note.

Owns the three lines. Refuses extension lines: nothing in a checkpoint may be unaudited.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.audit.merkle import HASH_BYTES
from appliance.audit.note import NoteSigner, NoteVerifier, open_note, sign_note
from appliance.errors import AuditError

CHECKPOINT_NAME = "checkpoint"

_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of the log `origin` when it had `size` entries."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def signed(self, signers: Sequence[NoteSigner]) -> bytes:
        return sign_note(self.text, signers)


def open_checkpoint(data: bytes, verifiers: Sequence[NoteVerifier]) -> Checkpoint:
    """The checkpoint in `data`, signed by one of `verifiers`, which names the log's origin too.

    Raises SignatureError or AuditError.
    """
    checkpoint = parse_checkpoint(open_note(data, verifiers))
    if checkpoint.origin not in {verifier.name for verifier in verifiers}:
        raise AuditError(f"the checkpoint is of another log, {checkpoint.origin}")
    return checkpoint


def parse_checkpoint(text: str) -> Checkpoint:
    """Read the text of a checkpoint, without its signatures. Raises AuditError."""
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] or not lines[0] or not _SIZE.fullmatch(lines[1]):
        raise AuditError("the checkpoint is malformed")
    try:
        root = base64.b64decode(lines[2].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        root = b""
    checkpoint = Checkpoint(lines[0], int(lines[1]), root)
    if len(root) != HASH_BYTES or checkpoint.text != text:
        raise AuditError("the checkpoint's root hash is malformed")
    return checkpoint
