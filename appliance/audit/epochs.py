"""How each epoch ended: `epochs/N`, the head that its key signed last and its KEYROLL.

Owns the files' form and names. The head's last record is the KEYROLL, which names the next key, so
the files alone lead from the key that an auditor pinned to the one in force, also when the records
themselves were pruned. Refuses to judge signatures: the reader knows whose turn it is.

    file = signed note of the checkpoint | empty line | the KEYROLL's leaf | newline
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.audit.checkpoint import Checkpoint, parse_checkpoint
from appliance.audit.event import MAX_LEAF_BYTES, Keyroll, decode_leaf
from appliance.audit.note import MAX_NOTE_BYTES, Ed25519Verifier, text_of
from appliance.audit.regular import read_regular
from appliance.errors import AuditError, SignatureError

EPOCHS = "epochs"
MAX_EPOCH_BYTES = MAX_NOTE_BYTES + MAX_LEAF_BYTES + 2


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """The end of epoch `number`."""

    number: int
    note: bytes
    leaf: bytes

    @property
    def encoded(self) -> bytes:
        return self.note + b"\n" + self.leaf + b"\n"

    @property
    def checkpoint(self) -> Checkpoint:
        """The head, its signature unchecked. Raises AuditError."""
        return parse_checkpoint(text_of(self.note))

    @property
    def next_key(self) -> Ed25519Verifier:
        """The key of the next epoch, as the KEYROLL names it. Raises AuditError."""
        record = decode_leaf(self.leaf)
        if not isinstance(record, Keyroll) or record.epoch != self.number:
            raise AuditError("its last record is not the KEYROLL of its epoch")
        return next_key_of(record)


def epoch_name(number: int) -> str:
    """Path of the end of epoch `number`, relative to the log's directory."""
    return f"{EPOCHS}/{number:08d}"


def next_key_of(record: Keyroll) -> Ed25519Verifier:
    """Raises AuditError if the record names no key."""
    try:
        return Ed25519Verifier.parse(record.next_key)
    except SignatureError as error:
        raise AuditError(f"a KEYROLL names no key: {error.message}") from error


def decode_epoch(number: int, data: bytes) -> EpochEnd:
    """Read `EpochEnd.encoded`. Raises AuditError."""
    note, separator, leaf = data[:-1].rpartition(b"\n")
    end = EpochEnd(number, note, leaf)
    if not separator or end.encoded != data or not note.endswith(b"\n"):
        raise AuditError("it is malformed", path=epoch_name(number))
    return end


def read_epoch(directory: Path, number: int) -> EpochEnd | None:
    """The end of epoch `number`; None if it did not end. Raises AuditError, OSError."""
    try:
        return decode_epoch(number, read_regular(directory / epoch_name(number), MAX_EPOCH_BYTES))
    except FileNotFoundError:
        return None


def key_at(directory: Path, size: int, first: Ed25519Verifier) -> Ed25519Verifier:
    """The key that signs a head of `size` records, by the chain from the key `first`.

    Raises AuditError or OSError if the ends of the epochs cannot be read.
    """
    number, key = 0, first
    while (end := read_epoch(directory, number)) is not None and end.checkpoint.size < size:
        number, key = number + 1, end.next_key
    return key
