"""New private keys, and the form in which they are kept or named.

Owns which scheme a role's key has. Refuses to hand out a private key unencrypted.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner, Signer

from appliance.trust.model_signer import ModelSigner
from installer import hardware_key
from installer.keyring import PEM, encrypted
from installer.rotation.publish import GONE, PRIVATE


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key for a name that had another, or none: what signs with it, and its file."""

    signer: Signer
    suffix: str
    content: bytes

    def files(self, name: str) -> dict[str, bytes]:
        """See `key_files`."""
        return key_files(name, self.suffix, self.content)


def key_files(name: str, suffix: str, content: bytes) -> dict[str, bytes]:
    """The files of the key `name`, as `publish` takes them: the one with `suffix`, and no other."""
    files = {f"{PRIVATE}{name}{other}": GONE for other in (PEM, hardware_key.SUFFIX)}
    return files | {f"{PRIVATE}{name}{suffix}": content}


def new_key(passphrase: bytes, token: str | None = None) -> NewKey:
    """An Ed25519 key (RFC 8032) for a role or an officer, or the one at the URI `token`.

    Raises what `hardware_key.signer_at` raises.
    """
    if token is not None:
        content = f"{token}\n".encode("ascii", "replace")
        return NewKey(hardware_key.signer_at(token), hardware_key.SUFFIX, content)
    private = Ed25519PrivateKey.generate()
    return NewKey(CryptoSigner(private), PEM, encrypted(private, passphrase))


def new_model_signer(name: str, passphrase: bytes) -> tuple[ModelSigner, bytes]:
    """An ECDSA key on P-256, as OpenSSF Model Signing takes it; its listing, its file's content."""
    private = generate_private_key(SECP256R1())
    return listed(name, private), encrypted(private, passphrase)


def listed(name: str, private: EllipticCurvePrivateKey) -> ModelSigner:
    """How `signers.json` lists the key `private`."""
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return ModelSigner(name, public.decode("ascii"))
