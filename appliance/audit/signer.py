"""The audit log's signing key on disk.

Owns the two files of the key directory, which is never inside the log's own directory: a copy
of the log holds no secret. Refuses to replace a key. Today one key signs for good (epoch 0);
epoch keys would be further files here, chosen by `load_signer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.audit.note import Ed25519Signer, Ed25519Verifier
from appliance.errors import NotFoundError, StorageError
from appliance.fsops import create_durable, make_dirs

SECRET_NAME = "audit.key"  # noqa: S105
VKEY_NAME = "audit.vkey"


@dataclass(frozen=True, slots=True)
class EpochSigner:
    """The key in force, and its number as the records name it."""

    epoch: int
    signer: Ed25519Signer

    @property
    def verifier(self) -> Ed25519Verifier:
        return self.signer.verifier


def create_signer(key_dir: Path, name: str) -> str:
    """Create the signing key of the log called `name` and return its vkey.

    A key that exists already is kept, whatever its name. Raises SignatureError for a name that
    cannot be a key's, StorageError.
    """
    try:
        if not (key_dir / SECRET_NAME).exists():
            signer = Ed25519Signer.generate(name)
            make_dirs(key_dir)
            create_durable(key_dir / SECRET_NAME, f"{signer.encoded}\n".encode())
        vkey = load_signer(key_dir).verifier.vkey
        if not (key_dir / VKEY_NAME).exists():
            create_durable(key_dir / VKEY_NAME, f"{vkey}\n".encode(), mode=0o644)
    except OSError as error:
        raise StorageError(f"the audit key cannot be written: {error.strerror}") from error
    return vkey


def load_signer(key_dir: Path) -> EpochSigner:
    """The key in force. Raises NotFoundError, StorageError, SignatureError if it is damaged."""
    path = key_dir / SECRET_NAME
    try:
        text = path.read_text("ascii", errors="replace")
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no audit signing key in {key_dir}", hint="install the node first"
        ) from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    return EpochSigner(0, Ed25519Signer.parse(text))
