"""C2SP signed notes: text, signature lines, and Ed25519 keys in their `vkey` form.

Owns the byte format and one algorithm. Refuses every second spelling of the same bytes
(base64 and hexadecimal are checked for their canonical form), so no bit of a note can change
unnoticed. Another algorithm is another `NoteSigner`/`NoteVerifier` with its own type byte; an
ML-DSA-44 cosignature (type 0x06, c2sp.org/tlog-cosignature) is a line beside this one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from appliance.errors import AuditError, SignatureError

ED25519 = 0x01
MAX_NOTE_BYTES = 1 << 20
MAX_SIGNATURES = 64

_NAME = re.compile(r"[^\s+\x00-\x1f]{1,200}")
_KEY_ID_BYTES = 4
_PRIVATE_PREFIX = "PRIVATE+KEY+"
_DASH = "\N{EM DASH} "


class NoteSigner(Protocol):
    """A key that signs notes."""

    @property
    def name(self) -> str: ...
    def signature_line(self, text: str) -> str: ...


class NoteVerifier(Protocol):
    """A key that a reader of notes trusts."""

    @property
    def name(self) -> str: ...
    @property
    def key_id(self) -> bytes: ...
    def verifies(self, text: str, signature: bytes) -> bool: ...


@dataclass(frozen=True, slots=True)
class Ed25519Verifier:
    """A public key as c2sp.org/signed-note has it: `name+keyid+base64(type || key)`."""

    name: str
    key: bytes

    @classmethod
    def parse(cls, vkey: str) -> Ed25519Verifier:
        """Read a vkey. Raises SignatureError if it is not one, or not of type Ed25519."""
        return cls(*parse_key(vkey, ED25519))

    @property
    def key_id(self) -> bytes:
        return key_id(self.name, ED25519, self.key)

    @property
    def vkey(self) -> str:
        return format_key(self.name, ED25519, self.key)

    def verifies(self, text: str, signature: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Ed25519Signer:
    """A private key; `secret` is the 32-byte seed of RFC 8032."""

    name: str
    secret: bytes

    @classmethod
    def generate(cls, name: str) -> Ed25519Signer:
        if not _NAME.fullmatch(name):
            raise SignatureError(
                f"{name!r} cannot name a key", hint="use a name without spaces and plus signs"
            )
        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> Ed25519Signer:
        """Read `encoded`'s form. Raises SignatureError."""
        signer = cls(*parse_secret(text, ED25519))
        if signer.encoded.removeprefix(_PRIVATE_PREFIX) != text.strip().removeprefix(
            _PRIVATE_PREFIX
        ):
            raise _damaged()
        return signer

    @property
    def encoded(self) -> str:
        """The private key as one line, the form that Go's note tools read."""
        return format_secret(self.name, ED25519, self.secret, self.verifier.key_id)

    @property
    def verifier(self) -> Ed25519Verifier:
        key = Ed25519PrivateKey.from_private_bytes(self.secret)
        return Ed25519Verifier(self.name, key.public_key().public_bytes_raw())

    def signature_line(self, text: str) -> str:
        key = Ed25519PrivateKey.from_private_bytes(self.secret)
        return format_signature(self.name, self.verifier.key_id, key.sign(text.encode()))


def format_key(name: str, kind: int, key: bytes) -> str:
    """The public key `key` of the type `kind` as a vkey."""
    return f"{name}+{key_id(name, kind, key).hex()}+{_encode(bytes([kind]) + key)}"


def parse_key(vkey: str, kind: int) -> tuple[str, bytes]:
    """Name and 32-byte key of a vkey of the type `kind`. Raises SignatureError."""
    parts = vkey.strip().split("+", 2)
    if len(parts) != 3 or not _NAME.fullmatch(parts[0]):
        raise _bad_vkey("it does not have the form name+id+key")
    material = _decode(parts[2])
    if material is None or len(material) != 33 or material[0] != kind:
        raise _bad_vkey("it does not hold an Ed25519 key of the right type")
    if key_id(parts[0], kind, material[1:]).hex() != parts[1]:
        raise _bad_vkey("its key id does not match")
    return parts[0], material[1:]


def format_secret(name: str, kind: int, secret: bytes, identity: bytes) -> str:
    """A private key of the type `kind`, whose public key has the id `identity`, as one line."""
    return f"{_PRIVATE_PREFIX}{name}+{identity.hex()}+{_encode(bytes([kind]) + secret)}"


def parse_secret(text: str, kind: int) -> tuple[str, bytes]:
    """Name and seed of a private key's line; its id is not checked. Raises SignatureError."""
    parts = text.strip().removeprefix(_PRIVATE_PREFIX).split("+", 2)
    material = _decode(parts[2]) if len(parts) == 3 else None
    if material is None or len(material) != 33 or material[0] != kind:
        raise _damaged()
    return parts[0], material[1:]


def format_signature(name: str, key_id: bytes, signature: bytes) -> str:
    """One signature line, with its newline."""
    return f"{_DASH}{name} {_encode(key_id + signature)}\n"


def sign_note(text: str, signers: Sequence[NoteSigner]) -> bytes:
    """The signed note over `text`, which ends with a newline."""
    assert text.endswith("\n"), "a note's text ends with a newline"
    assert signers, "a note has a signature"
    return (text + "\n" + "".join(s.signature_line(text) for s in signers)).encode()


def join_notes(one: bytes, other: bytes) -> bytes:
    """One note with the signatures of both, which have the same text. Raises AuditError."""
    text, lines = _split(one)
    same, more = _split(other)
    if same != text:
        raise AuditError("the two notes say different things")
    signatures = dict.fromkeys([*lines, *more])
    return "".join(f"{line}\n" for line in [text, *signatures]).encode()


def open_note(data: bytes, verifiers: Sequence[NoteVerifier]) -> str:
    """The text of a note that at least one of `verifiers` signed.

    Signatures by unknown keys are ignored; a wrong one by a known key refuses the note.
    Raises AuditError for the form, SignatureError for the signatures.
    """
    text, lines = _split(data)
    known = {(v.name, v.key_id): v for v in verifiers}
    verified = 0
    for line in lines:
        name, key_id, signature = _parse_signature(line)
        verifier = known.get((name, key_id))
        if verifier is None:
            continue
        if not verifier.verifies(text, signature):
            raise SignatureError(f"the signature by {name} does not match")
        verified += 1
    if not verified:
        raise SignatureError(
            "no signature by a known key",
            hint="check that the key belongs to this log",
        )
    return text


def text_of(data: bytes) -> str:
    """The text of a note, its signatures unchecked. Raises AuditError for the form."""
    return _split(data)[0]


def signatures_of(data: bytes) -> Iterator[tuple[str, str, bytes, bytes]]:
    """(text, name, key id, signature) of each signature of a note, unchecked.

    Raises AuditError for the form.
    """
    text, lines = _split(data)
    for line in lines:
        yield text, *_parse_signature(line)


def key_id(name: str, kind: int, key: bytes) -> bytes:
    """What a signature line names a key by."""
    material = f"{name}\n".encode() + bytes([kind]) + key
    return hashlib.sha256(material).digest()[:_KEY_ID_BYTES]


def _split(data: bytes) -> tuple[str, list[str]]:
    try:
        note = data.decode() if len(data) <= MAX_NOTE_BYTES else ""
    except UnicodeDecodeError:
        note = ""
    head, separator, tail = note.rpartition("\n\n")
    if not separator or not tail.endswith("\n") or any(c < " " and c != "\n" for c in note):
        raise AuditError("the note is malformed")
    lines = tail[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise AuditError("the note has too many signatures")
    return head + "\n", lines


def _parse_signature(line: str) -> tuple[str, bytes, bytes]:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    signature = _decode(encoded)
    bad = not line.startswith(_DASH) or not _NAME.fullmatch(name)
    if bad or signature is None or len(signature) <= _KEY_ID_BYTES:
        raise AuditError("a signature line of the note is malformed")
    return name, signature[:_KEY_ID_BYTES], signature[_KEY_ID_BYTES:]


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes | None:
    """Standard base64 in its one canonical spelling; None for anything else."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    return data if _encode(data) == text else None


def _damaged() -> SignatureError:
    return SignatureError("the audit signing key is damaged", hint="restore it")


def _bad_vkey(why: str) -> SignatureError:
    return SignatureError(
        f"this is not a verifier key: {why}",
        hint="use the line that the installation printed, or the file audit.vkey",
    )
