"""The auditor's side: verify a log whole, remember its head, cosign it.

Owns the auditor's directory: `cosigner.key`, made at the first use, and for each log, by its pinned
key, the head that was cosigned last. Refuses to cosign what does not verify or does not continue
that head, so no two of its cosignatures contradict each other. What it remembers is durable before
the cosignature is handed out.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from appliance.audit.checkpoint import CHECKPOINT_NAME, parse_checkpoint
from appliance.audit.cosignature import CosignerKey
from appliance.audit.fsck import Report, verify
from appliance.audit.note import MAX_NOTE_BYTES, Ed25519Verifier, text_of
from appliance.audit.regular import read_regular
from appliance.errors import AuditError, NotFoundError
from appliance.fsops import create_durable, exclusive_lock, make_dirs, write_durable

KEY_NAME = "cosigner.key"
LOCK_NAME = "cosigner.lock"


@dataclass(frozen=True, slots=True)
class Cosigned:
    """What came of it: the verification, and the cosigned head if there was nothing to find."""

    report: Report
    note: bytes
    cosigner: str
    """The cosigner's vkey."""
    continued: bool
    """Whether a head was remembered that the log continues; the first time there is none."""


class Cosigner:
    """The auditor's directory `memory`; made, with a key called `name`, if it is not there."""

    def __init__(self, memory: Path, name: str) -> None:
        """Raises SignatureError if the key is damaged or cannot have that name, OSError."""
        self._memory = memory
        make_dirs(memory)
        path = memory / KEY_NAME
        if not path.exists():
            create_durable(path, f"{CosignerKey.generate(name).encoded}\n".encode())
        self._key = CosignerKey.parse(path.read_text("ascii", "replace"))

    @property
    def vkey(self) -> str:
        return self._key.verifier.vkey

    def cosign(self, directory: Path, pinned: str) -> Cosigned:
        """Verify the log, or the copy of one, in `directory` against the key `pinned`; cosign its
        head if nothing is wrong.

        Raises NotFoundError without a log, SignatureError if `pinned` is no key, AuditError if
        the log went on meanwhile, OSError.
        """
        seen = self._memory / hashlib.sha256(Ed25519Verifier.parse(pinned).key).hexdigest()
        with exclusive_lock(self._memory / LOCK_NAME, wait=True):
            kept = seen.read_bytes() if seen.exists() else None
            note = _head(directory)
            report = verify(directory, pinned, since=kept)
            if not report.ok:
                return Cosigned(report, b"", self.vkey, kept is not None)
            text = text_of(note)
            if parse_checkpoint(text).size != report.size:
                raise AuditError(
                    "the log went on while it was verified",
                    hint="cosign an export: `appliance audit export`",
                )
            note += self._key.line(text, int(time.time())).encode()
            write_durable(seen, note)
        return Cosigned(report, note, self.vkey, kept is not None)


def _head(directory: Path) -> bytes:
    try:
        return read_regular(directory / CHECKPOINT_NAME, MAX_NOTE_BYTES)
    except OSError as error:
        raise NotFoundError(
            f"there is no audit log in {directory}: {error.strerror}", hint="check the path"
        ) from error
