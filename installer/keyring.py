"""The packager's trust directory: keys, metadata and signer list.

Owns the names in it and the loading of keys:

    private/    one encrypted PKCS #8 file per key, or for a key on a token one that names it;
                the officers' belong elsewhere
    metadata/   every N.root.json, and the newest metadata of each other role
    targets/    signers.json, the accepted model signers; withdrawn.json, once something is
    pending/    a root that waits for officers' signatures, and the new keys that it names
    publishing/ a change that is complete and on its way into the directories above

Refuses to show or write a private key in clear. Keys may be kept on other media: each command
needs only the keys of the roles it signs for.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from appliance.errors import (
    ConflictError,
    MetadataError,
    NotFoundError,
    SignatureError,
    UsageError,
    first_line,
)
from appliance.trust.model_signer import TARGET, ModelSigner, decode_signers
from appliance.trust.withdrawn import TARGET as WITHDRAWN
from appliance.trust.withdrawn import Withdrawn, decode_withdrawn, listing
from installer import hardware_key

PEM = ".pem"
MODEL_SIGNER = "model-signer"
PUBLISHING = "publishing"
_ROOT_NAME = re.compile(r"([1-9][0-9]*)\.root\.json")


class Keyring:
    """A trust directory that `appliance trust init` made."""

    def __init__(self, directory: Path) -> None:
        """Raises NotFoundError if it is no trust directory, ConflictError amid a change of it."""
        self.directory = directory
        self.metadata_dir = directory / "metadata"
        self.targets_dir = directory / "targets"
        if not (self.metadata_dir / "1.root.json").is_file():
            raise NotFoundError(
                f"{directory} is not a trust directory",
                hint="name the directory that `appliance trust init` made",
            )
        if (directory / PUBLISHING).exists():
            raise ConflictError(
                f"a change of the keys in {directory} was interrupted",
                hint="`appliance trust show DIR` completes it",
            )

    def key_file(self, name: str) -> Path:
        """Where the private key `name` (a role, or the model signer) is kept, or named."""
        token = self.directory / "private" / f"{name}{hardware_key.SUFFIX}"
        return token if token.exists() else token.with_suffix(PEM)

    def key_files(self, pattern: str) -> list[Path]:
        """The files of private keys here whose names without suffix match `pattern`."""
        found = (self.directory / "private").glob(f"{pattern}.*")
        return sorted(path for path in found if path.suffix in {PEM, hardware_key.SUFFIX})

    def signer(self, role: str, passphrase: bytes) -> Signer:
        """The key of `role`. Raises NotFoundError, SignatureError."""
        path = self.key_file(role)
        try:
            return signer_in(path, passphrase)
        except FileNotFoundError:
            raise NotFoundError(
                f"the key of the role {role} is not at {path}",
                hint="connect the medium that holds this key, or copy it there",
            ) from None

    def roots(self) -> list[Path]:
        """Every root metadata file, oldest first."""
        found = {
            int(match[1]): path
            for path in self.metadata_dir.iterdir()
            if (match := _ROOT_NAME.fullmatch(path.name))
        }
        return [found[version] for version in sorted(found)]

    def root(self) -> Metadata[Root]:
        """The newest root. Raises MetadataError."""
        return self._parsed(self.roots()[-1])

    def load(self, role: str) -> Metadata[Any] | None:
        """The newest metadata of `role`, or None before the first media. Raises MetadataError."""
        path = self.metadata_dir / f"{role}.json"
        return self._parsed(path) if path.exists() else None

    def _parsed(self, path: Path) -> Metadata[Any]:
        try:
            return Metadata.from_bytes(path.read_bytes())
        except DeserializationError as error:
            raise MetadataError(
                f"{path} is damaged: {error}",
                path=path.name,
                hint="restore the trust directory from its backup",
            ) from None

    def model_signers(self) -> tuple[ModelSigner, ...]:
        """The accepted model signers. Raises NotFoundError, SignatureError."""
        try:
            return decode_signers((self.targets_dir / TARGET).read_bytes())
        except FileNotFoundError:
            raise NotFoundError(
                f"{self.targets_dir} holds no {TARGET}",
                hint="restore the trust directory from its backup",
            ) from None

    def listed(self) -> dict[str, bytes]:
        """What the top-level targets pin: target path -> content."""
        names = [TARGET, *([WITHDRAWN] if (self.targets_dir / WITHDRAWN).exists() else [])]
        return {name: (self.targets_dir / name).read_bytes() for name in names}

    def withdrawn(self) -> Withdrawn:
        """What was withdrawn from nodes. Raises MetadataError."""
        path = self.targets_dir / WITHDRAWN
        return decode_withdrawn(path.read_bytes()) if path.exists() else listing()


def signer_in(path: Path, passphrase: bytes) -> Signer:
    """The key in the file `path`, which is encrypted, or names a token.

    Raises FileNotFoundError, SignatureError; for a token what `hardware_key.signer_at` raises.
    """
    if path.suffix == hardware_key.SUFFIX:
        return hardware_key.signer_in(path)
    return CryptoSigner(opened(path, passphrase))


def opened(path: Path, passphrase: bytes, *, hint: str = "check the passphrase") -> PrivateKeyTypes:
    """The key in the encrypted file `path`.

    Raises FileNotFoundError, SignatureError with `hint`.
    """
    try:
        return load_pem_private_key(path.read_bytes(), passphrase)
    except (ValueError, TypeError) as error:
        raise SignatureError(
            f"the key {path} cannot be opened: the passphrase is wrong or the file is damaged",
            path=path.name,
            hint=hint,
        ) from error


def add_signature(metadata: Metadata[Any], signer: Signer, *, append: bool = False) -> None:
    """Sign `metadata`, beside the signatures that it has if `append`.

    Raises SignatureError; UsageError if there is no PIN.
    """
    try:
        metadata.sign(signer, append=append)
    except UnsignedMetadataError as error:
        if isinstance(error.__cause__, UsageError):  # there was no PIN: nothing was tried
            raise error.__cause__ from None
        raise SignatureError(
            f"the key {signer.public_key.keyid:.12} did not sign: "
            f"{first_line(error.__cause__ or error)}",
            hint="check the token and its PIN: most tokens lock after a few wrong ones",
        ) from error


def signed_by(signed: Root | Snapshot | Targets | Timestamp, *signers: Signer) -> bytes:
    """The metadata of `signed` with a signature by each. Raises SignatureError."""
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        add_signature(metadata, signer, append=True)
    return metadata.to_bytes()


def encrypted(key: PrivateKeyTypes, passphrase: bytes) -> bytes:
    """PEM of `key` as PKCS #8 (RFC 5958), encrypted with `passphrase`."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))
