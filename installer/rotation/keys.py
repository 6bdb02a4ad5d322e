"""New private keys, and the form in which they are kept.

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
from securesystemslib.signer import CryptoSigner

from appliance.trust.model_signer import ModelSigner
from installer.keyring import encrypted


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was made just now: what signs with it, and its file's content."""

    signer: CryptoSigner
    pem: bytes


def new_key(passphrase: bytes) -> NewKey:
    """An Ed25519 key (RFC 8032) for a role or an officer."""
    private = Ed25519PrivateKey.generate()
    return NewKey(CryptoSigner(private), encrypted(private, passphrase))


def new_model_signer(name: str, passphrase: bytes) -> tuple[ModelSigner, bytes]:
    """An ECDSA key on P-256, as OpenSSF Model Signing takes it; its listing, its file's content."""
    private = generate_private_key(SECP256R1())
    return listed(name, private), encrypted(private, passphrase)


def listed(name: str, private: EllipticCurvePrivateKey) -> ModelSigner:
    """How `signers.json` lists the key `private`."""
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return ModelSigner(name, public.decode("ascii"))
