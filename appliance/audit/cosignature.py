"""Cosignatures: a second party's word that it saw a head, and that the log led up to it.

Owns the form of c2sp.org/tlog-cosignature, version 1: Ed25519 over the time and the checkpoint,
type 0x04, so that a cosigner's key can never stand for the log's. Keys are in the forms of note.py
with that type. Refuses to sign: whoever cosigns must have verified first (cosigner.py).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from appliance.audit.note import (
    Ed25519Signer,
    format_key,
    format_secret,
    format_signature,
    key_id,
    parse_key,
    parse_secret,
    signatures_of,
)
from appliance.errors import SignatureError

COSIGNATURE = 0x04
_TIMED = struct.Struct(">Q64s")


@dataclass(frozen=True, slots=True)
class CosignerVerifier:
    """A cosigner's public key: `name+keyid+base64(0x04 || key)`."""

    name: str
    key: bytes

    @classmethod
    def parse(cls, vkey: str) -> CosignerVerifier:
        """Read a cosigner's vkey. Raises SignatureError."""
        return cls(*parse_key(vkey, COSIGNATURE))

    @property
    def key_id(self) -> bytes:
        return key_id(self.name, COSIGNATURE, self.key)

    @property
    def vkey(self) -> str:
        return format_key(self.name, COSIGNATURE, self.key)

    def verifies(self, text: str, signature: bytes) -> bool:
        if len(signature) != _TIMED.size:
            return False
        at, signed = _TIMED.unpack(signature)
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(signed, _message(text, at))
        except (InvalidSignature, ValueError):
            return False
        return True

    def time_of(self, note: bytes) -> int | None:
        """Unix time at which this key cosigned `note`; None if it did not.

        Raises AuditError for a malformed note, SignatureError for a wrong signature.
        """
        for text, name, identity, signature in signatures_of(note):
            if (name, identity) == (self.name, self.key_id):
                if not self.verifies(text, signature):
                    raise SignatureError(f"the cosignature by {name} does not match")
                return int(_TIMED.unpack(signature)[0])
        return None


@dataclass(frozen=True, slots=True)
class CosignerKey:
    """A cosigner's private key; `secret` is the 32-byte seed of RFC 8032."""

    name: str
    secret: bytes

    @classmethod
    def generate(cls, name: str) -> CosignerKey:
        """Raises SignatureError if `name` cannot be a key's."""
        return cls(name, Ed25519Signer.generate(name).secret)

    @classmethod
    def parse(cls, text: str) -> CosignerKey:
        """Read `encoded`'s form. Raises SignatureError."""
        name, secret = parse_secret(text, COSIGNATURE)
        key = cls(name, secret)
        if format_secret(name, COSIGNATURE, secret, key.verifier.key_id) != text.strip():
            raise SignatureError("the cosigner's key is damaged", hint="restore it")
        return key

    @property
    def encoded(self) -> str:
        """The private key as one line."""
        return format_secret(self.name, COSIGNATURE, self.secret, self.verifier.key_id)

    @property
    def verifier(self) -> CosignerVerifier:
        public = Ed25519PrivateKey.from_private_bytes(self.secret).public_key()
        return CosignerVerifier(self.name, public.public_bytes_raw())

    def line(self, text: str, at: int) -> str:
        """The signature line for the checkpoint `text`, seen at Unix time `at`."""
        signed = Ed25519PrivateKey.from_private_bytes(self.secret).sign(_message(text, at))
        return format_signature(self.name, self.verifier.key_id, _TIMED.pack(at, signed))


def _message(text: str, at: int) -> bytes:
    return f"cosignature/v1\ntime {at}\n{text}".encode()
