"""The top-level targets, signed anew: whose keys the delegations name, who may sign models, and
what was withdrawn.

Owns the version and the lifetime of targets after the ceremony. Needs the release manager's key,
and refuses another one: what it signed would be refused by every node.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from securesystemslib.signer import Signer
from tuf.api.metadata import Key, Metadata, Root, TargetFile, Targets

from appliance.errors import ConflictError, SignatureError
from appliance.trust.metadata import DELEGATED_ROLES
from installer.keyring import Keyring, signed_by

TARGETS_LIFETIME = timedelta(days=365)
ROLE = "targets"


class TargetsRevision:
    """The next targets of a trust directory. Change `targets`, name `files`, then take `signed`."""

    def __init__(self, keyring: Keyring, now: datetime) -> None:
        """Raises MetadataError, ConflictError if there are no targets."""
        metadata = current_targets(keyring)
        self.targets: Targets = metadata.signed
        self.targets.version += 1
        self.targets.expires = now.replace(microsecond=0) + TARGETS_LIFETIME

    def pin(self, files: Mapping[str, bytes]) -> None:
        """Let the targets name `files`, target path -> content."""
        for path, data in files.items():
            self.targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])

    def replace_key(self, role: str, key: Key) -> None:
        """Let `key` take the place of the delegated role's."""
        assert self.targets.delegations is not None
        assert self.targets.delegations.roles is not None
        for keyid in list(self.targets.delegations.roles[role].keyids):
            self.targets.revoke_key(keyid, role)
        self.targets.add_key(key, role)

    def signed(self, signer: Signer) -> bytes:
        """The metadata, signed."""
        return signed_by(self.targets, signer)

    def file(self, signer: Signer) -> dict[str, bytes]:
        """The same as a file of the trust directory, path -> content."""
        return {f"metadata/{ROLE}.json": self.signed(signer)}


def current_targets(keyring: Keyring) -> Metadata[Targets]:
    """The newest targets. Raises MetadataError, ConflictError if there are none."""
    metadata = keyring.load(ROLE)
    if metadata is None:
        raise ConflictError(
            f"{keyring.directory} has no targets metadata",
            hint="restore the trust directory from its backup",
        )
    return metadata


def targets_signer(keyring: Keyring, passphrase: bytes) -> Signer:
    """The key that the newest root names for targets. Raises NotFoundError, SignatureError."""
    signer = keyring.signer(ROLE, passphrase)
    check_role_key(keyring, ROLE, signer)
    return signer


def check_role_key(keyring: Keyring, role: str, signer: Signer) -> None:
    """Refuse a key that was replaced, or is of another trust directory. Raises SignatureError."""
    if signer.public_key.keyid not in _delegator(keyring, role).get_delegated_role(role).keyids:
        raise SignatureError(
            f"{keyring.key_file(role)} is not the key that the metadata name for {role}",
            path=f"{role}.pem",
            hint="it was replaced, or belongs to other keys: fetch the present one from its medium",
        )


def _delegator(keyring: Keyring, role: str) -> Root | Targets:
    return current_targets(keyring).signed if role in DELEGATED_ROLES else keyring.root().signed
