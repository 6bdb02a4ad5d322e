"""The node's own key: signs what the node itself vouches for.

Owns import receipts' and compile records' signatures (Ed25519 in a DSSE envelope). Refuses to be
used for anything that comes from outside: the node key proves "this node wrote this", never
"this model is good". The private half is readable by root alone and never leaves the node.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Signature, SSlibKey

from appliance.errors import NotFoundError, SignatureError
from appliance.fsops import create_durable, make_dirs, write_durable
from appliance.trust import dsse

PRIVATE_NAME = "node.key"
PUBLIC_NAME = "node.pub"


class NodePublicKey:
    """Verifies what the node signed."""

    def __init__(self, pem: bytes) -> None:
        """`pem` is a SubjectPublicKeyInfo. Raises SignatureError if it is not an Ed25519 key."""
        try:
            self._key = SSlibKey.from_crypto(load_pem_public_key(pem))
        except ValueError as error:
            raise _unusable(str(error)) from None
        if self._key.scheme != "ed25519":
            raise _unusable(f"it is a {self._key.scheme} key")

    @classmethod
    def load(cls, path: Path) -> NodePublicKey:
        """Read `node.pub`. Raises NotFoundError, SignatureError."""
        try:
            return cls(path.read_bytes())
        except FileNotFoundError:
            raise _missing(path) from None

    @property
    def keyid(self) -> str:
        """Hex id of the key, the same on every machine."""
        return self._key.keyid

    def verify(self, envelope: bytes, payload_type: str, *, path: str = "") -> bytes:
        """The payload that this node signed. Raises SignatureError naming `path`."""
        payload, signature, keyid = dsse.opened(
            dsse.decode(envelope, path=path), payload_type, path=path
        )
        if keyid != self.keyid:
            raise dsse.refused(
                "another node signed it",
                path,
                hint="after a restore, `appliance models compile` makes this node's own",
            )
        try:
            self._key.verify_signature(
                Signature(keyid, signature.hex()), dsse.preimage(payload, payload_type)
            )
        except UnverifiedSignatureError:
            raise dsse.refused("its signature does not match", path) from None
        return payload


class NodeKey:
    """The private half. Make it with `create` or `load`."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = NodePublicKey(_public_pem(private))

    @classmethod
    def create(cls, directory: Path) -> NodeKey:
        """The key in `directory`, made first if there is none. Safe to repeat after a kill."""
        make_dirs(directory, mode=0o755)
        pem = Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        create_durable(directory / PRIVATE_NAME, pem, mode=0o600)
        key = cls.load(directory)
        public = _public_pem(key._private)
        path = directory / PUBLIC_NAME
        if not path.exists() or path.read_bytes() != public:
            write_durable(path, public, mode=0o644)
        return key

    @classmethod
    def load(cls, directory: Path) -> NodeKey:
        """Read the key from `directory`. Raises NotFoundError, SignatureError."""
        path = directory / PRIVATE_NAME
        try:
            private = load_pem_private_key(path.read_bytes(), password=None)
        except FileNotFoundError:
            raise _missing(path) from None
        except (ValueError, TypeError) as error:
            raise _unusable(str(error)) from None
        if not isinstance(private, Ed25519PrivateKey):
            raise _unusable("it is not an Ed25519 key")
        return cls(private)

    def sign(self, payload: bytes, payload_type: str) -> bytes:
        """A DSSE envelope, as JSON bytes, over `payload`."""
        signature = self._private.sign(dsse.preimage(payload, payload_type))
        return dsse.encode(payload, payload_type, signature=signature, keyid=self.public.keyid)


def _public_pem(private: Ed25519PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _missing(path: Path) -> NotFoundError:
    return NotFoundError(
        f"there is no node key at {path}",
        hint="run `appliance install` first, or name the node's prefix with --root",
    )


def _unusable(reason: str) -> SignatureError:
    return SignatureError(
        f"the node key cannot be used: {reason}",
        path=PUBLIC_NAME,
        hint="restore the node key from the backup of the state directory",
    )
