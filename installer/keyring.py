"""The packager's trust directory: keys, metadata and signer list.

Owns the names in it and the loading of keys:

    private/    one encrypted PKCS #8 file per key; the officers' belong elsewhere
    metadata/   every N.root.json, and the newest metadata of each other role
    targets/    signers.json, the accepted model signers

Refuses to show or write a private key in clear. Keys may be kept on other media: each command
needs only the keys of the roles it signs for.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata
from tuf.api.serialization import DeserializationError

from appliance.errors import MetadataError, NotFoundError, SignatureError
from appliance.trust.model_signer import TARGET, ModelSigner, decode_signers

MODEL_SIGNER = "model-signer"
_ROOT_NAME = re.compile(r"([1-9][0-9]*)\.root\.json")


class Keyring:
    """A trust directory that `appliance trust init` made."""

    def __init__(self, directory: Path) -> None:
        """Raises NotFoundError if `directory` is not a trust directory."""
        self.directory = directory
        self.metadata_dir = directory / "metadata"
        self.targets_dir = directory / "targets"
        if not (self.metadata_dir / "1.root.json").is_file():
            raise NotFoundError(
                f"{directory} is not a trust directory",
                hint="name the directory that `appliance trust init` made",
            )

    def key_file(self, name: str) -> Path:
        """Where the private key `name` (a role, or the model signer) is kept."""
        return self.directory / "private" / f"{name}.pem"

    def signer(self, role: str, passphrase: bytes) -> CryptoSigner:
        """The key of `role`. Raises NotFoundError, SignatureError."""
        path = self.key_file(role)
        try:
            return CryptoSigner(load_pem_private_key(path.read_bytes(), passphrase))
        except FileNotFoundError:
            raise NotFoundError(
                f"the key of the role {role} is not at {path}",
                hint="connect the medium that holds this key, or copy it there",
            ) from None
        except (ValueError, TypeError) as error:
            raise SignatureError(
                f"the key {path} cannot be opened: the passphrase is wrong or the file is damaged",
                path=path.name,
                hint="check the passphrase",
            ) from error

    def roots(self) -> list[Path]:
        """Every root metadata file, oldest first."""
        found = {
            int(match[1]): path
            for path in self.metadata_dir.iterdir()
            if (match := _ROOT_NAME.fullmatch(path.name))
        }
        return [found[version] for version in sorted(found)]

    def load(self, role: str) -> Metadata[Any] | None:
        """The newest metadata of `role`, or None before the first media. Raises MetadataError."""
        path = self.metadata_dir / f"{role}.json"
        try:
            return Metadata.from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
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
