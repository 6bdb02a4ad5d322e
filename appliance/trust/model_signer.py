"""Model signers: whose OpenSSF Model Signing (OMS) signature makes a bundle acceptable.

Owns `signers.json`, the TUF target that lists the accepted keys; leaving a key out of the next
one retires it. Refuses every key but ECDSA on P-256, and certificates altogether.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Signature, SSlibKey

from appliance.errors import SignatureError

TARGET = "signers.json"
MAX_SIGNERS_BYTES = 1024 * 1024


class ModelSigner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One accepted key; `public_key` is a PEM SubjectPublicKeyInfo."""

    name: str
    public_key: str

    @property
    def hint(self) -> str:
        """SHA-256 of the PEM text: how an OMS signature names its key."""
        return hashlib.sha256(self.public_key.encode("ascii")).hexdigest()

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` (DER) over `message` was made with this key."""
        key = SSlibKey.from_crypto(_p256(self.public_key))
        try:
            key.verify_signature(Signature(key.keyid, signature.hex()), message)
        except UnverifiedSignatureError:
            return False
        return True


class _SignerList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["appliance-signers/1"]
    signers: tuple[ModelSigner, ...]


def encode_signers(signers: Iterable[ModelSigner]) -> bytes:
    """Canonical bytes of a `signers.json`."""
    return msgspec.json.encode(_SignerList("appliance-signers/1", tuple(signers)))


def decode_signers(data: bytes) -> tuple[ModelSigner, ...]:
    """Parse a verified `signers.json`. Raises SignatureError."""
    if len(data) > MAX_SIGNERS_BYTES:
        raise _bad(f"it is {len(data)} bytes long")
    try:
        signers = msgspec.json.decode(data, type=_SignerList).signers
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad(str(error)) from None
    if len({signer.hint for signer in signers}) != len(signers):
        raise _bad("it lists one key twice")
    for signer in signers:
        canonical = _p256(signer.public_key).public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        if canonical.decode("ascii") != signer.public_key:
            raise _bad(f"the key of {signer.name!r} is not in canonical form")
    return signers


def _p256(pem: str) -> EllipticCurvePublicKey:
    try:
        key = load_pem_public_key(pem.encode("utf-8"))
    except ValueError as error:
        raise _bad(str(error)) from None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise _bad("a key is not an ECDSA P-256 key")
    return key


def _bad(reason: str) -> SignatureError:
    return SignatureError(
        f"{TARGET} is not a valid list of model signers: {reason}",
        path=TARGET,
        hint="get fresh media from the packager",
    )
