"""Heads of the log that a second party cosigned, kept with it: `cosigned/SIZE`.

Owns taking one in. A kept head is evidence against a rollback that forgot to remove it, and for
everybody who trusts the cosigner; what the cosigner remembers is the evidence against all others.
Refuses a head that is not this log's, or not signed by the key of its epoch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from appliance.audit.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from appliance.audit.cosignature import CosignerVerifier
from appliance.audit.epochs import key_at
from appliance.audit.merkle import root_at
from appliance.audit.note import Ed25519Verifier, join_notes, text_of
from appliance.audit.regular import read_regular
from appliance.audit.signer import VKEY_NAME
from appliance.audit.state import read_state
from appliance.audit.storage import TEMPORARY_SUFFIX, replace_files
from appliance.audit.tiles import TileReader
from appliance.errors import AuditError, NotFoundError, SignatureError
from appliance.fsops import exclusive_lock

COSIGNED = "cosigned"
MAX_COSIGNED_BYTES = 1 << 16
LOCK_NAME = "cosigned.lock"

_NAME = re.compile(r"[0-9]{20}")


def cosigned_name(size: int) -> str:
    """Path of the cosigned head of `size` records, relative to the log's directory."""
    return f"{COSIGNED}/{size:020d}"


def cosigned_sizes(directory: Path) -> Iterator[int]:
    """Sizes of the heads that are kept, ascending."""
    if (directory / COSIGNED).is_dir():
        names = sorted(path.name for path in (directory / COSIGNED).iterdir())
        yield from (int(name) for name in names if _NAME.fullmatch(name))


def unexpected_cosigned_files(directory: Path) -> Iterator[str]:
    """Names in the heads' directory that are not heads."""
    if (directory / COSIGNED).is_dir():
        for path in (directory / COSIGNED).iterdir():
            head = _NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink()
            if not head and path.suffix != TEMPORARY_SUFFIX:
                yield f"{COSIGNED}/{path.name}"


def take_in(directory: Path, note: bytes, cosigner: CosignerVerifier) -> tuple[Checkpoint, int]:
    """Keep the head that `cosigner` cosigned in `note`; returns it and the Unix time of that.

    Raises SignatureError or AuditError if it is not a head of this log that both signed,
    NotFoundError without a log, OSError.
    """
    at = cosigner.time_of(note)
    if at is None:
        raise SignatureError(
            f"{cosigner.name} did not cosign this", hint="check the cosigner's key"
        )
    try:
        first = Ed25519Verifier.parse((directory / VKEY_NAME).read_text("ascii", "replace"))
        published = read_state(directory).size
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no audit log in {directory}", hint="install the node first"
        ) from None
    size = parse_checkpoint(text_of(note)).size
    if size > published:
        raise AuditError(
            f"the cosigned head has {size} records, the log {published}",
            hint="the log was rolled back: keep it as it is and call the auditor",
        )
    head = open_checkpoint(note, [key_at(directory, size, first)])
    if root_at(size, TileReader(directory, published)) != head.root:
        raise AuditError(
            f"the first {size} records are not those that were cosigned",
            hint="keep the log as it is and call the auditor",
        )
    with exclusive_lock(directory / LOCK_NAME, wait=True):
        kept = read_cosigned(directory, size)
        replace_files(directory, {cosigned_name(size): join_notes(kept or note, note)})
    return head, at


def read_cosigned(directory: Path, size: int) -> bytes | None:
    """The note of the head of `size` records; None if none is kept. Raises OSError."""
    try:
        return read_regular(directory / cosigned_name(size), MAX_COSIGNED_BYTES)
    except FileNotFoundError:
        return None
